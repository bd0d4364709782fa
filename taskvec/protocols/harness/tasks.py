"""Tasks of lm-evaluation-harness by name, from their YAML files alone: what they read, and whether they run code.

Importing the harness takes seconds and listing its 14,000 files more, so a task is looked for where its name says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.data.files import sha256
from taskvec.errors import UserError
from taskvec.protocols.harness.code import running, scores_with_code_eval, unknown_metrics
from taskvec.protocols.harness.files import (
    Definition,
    beside,
    data_files,
    own_tasks,
    read_definition,
)


@dataclass(frozen=True)
class Found:
    """A task or group with all that belongs to it: the files it is made from, and what it runs, if anything.

    ``code`` says what would run that is not the harness's own: a module, a script, what the model writes.
    """

    name: str
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    code: str | None
    code_eval: bool

    def digest(self) -> tuple[tuple[str, str], ...]:
        """Return the files by folder and name with their checksums; where the folders lie does not count."""
        found = [(f"{path.parent.name}/{path.name}", sha256(path)) for path in self.files]
        return tuple(sorted(found))


def find(name: str, include_path: str | None) -> Found:
    """Return a task or group of the user's folder or of the harness, in this order.

    Raises:
        UserError: if there is none of that name, a file of it cannot be read, or the folder or the harness is missing.
    """
    roots = [own_tasks()]
    if include_path is not None:
        folder = Path(include_path).expanduser()
        if not folder.is_dir():
            raise UserError(f"protocol.include_path: no folder {folder}")
        roots.insert(0, folder)
    members = _members(name, roots)
    files: set[Path] = set()
    reasons: list[str] = []
    for path, found in members.items():
        files |= {path, *_files(name, found)}
        reasons += running(path, found)
    # Of two tasks of one name the harness takes that of the last folder: the user's.
    places = {path.parent for path in members}
    folders = sorted(places, key=lambda place: not place.is_relative_to(roots[-1]))
    code_eval = any(scores_with_code_eval(found) for found in members.values())
    reason = reasons[0] if reasons else None
    return Found(name, tuple(files), tuple(folders), reason, code_eval)


def _files(name: str, found: Definition) -> set[Path]:
    """Return all files that count in a task's identity: what is read, and what can run."""
    files = {*found.files, *found.modules(), *data_files(name, found.settings)}
    for function in found.functions:
        if function.foreign:
            files |= beside(function.place)
    for metric in unknown_metrics(found.settings):
        if Path(metric).exists():
            files |= beside(Path(metric))
    return files


def _members(name: str, roots: list[Path]) -> dict[Path, Definition]:
    """Return the definitions of a task, or of a group and all that belongs to it, by file.

    Raises:
        UserError: naming what is not there.
    """
    seen: dict[Path, Definition] = {}
    pending, names = [name], set()
    while pending:
        current = pending.pop()
        if current in names:
            continue
        names.add(current)
        near = next(iter(seen)).parent if seen else None
        path = _file(current, roots, near)
        if path is None:
            places = " and ".join(map(str, roots))
            raise UserError(
                f"protocol.tasks: no task or group {current!r} in {places}; `lm-eval ls tasks` lists them"
            )
        seen[path] = read_definition(path)
        pending += _children(seen[path].settings)
    return seen


def _file(name: str, roots: list[Path], near: Path | None) -> Path | None:
    """Return the YAML file that defines a name, looking first where its words and its group's file point."""
    pattern = re.compile(rf"^(task|group):\s*[\"']?{re.escape(name)}[\"']?\s*(#.*)?$", re.M)
    for root in roots:
        inside = near is not None and near.is_relative_to(root)
        here = near if inside else None
        for path in _candidates(name, root, here):
            text = path.read_text(encoding="utf-8", errors="replace")
            if pattern.search(text):
                return path.resolve()
    return None


def _candidates(name: str, root: Path, near: Path | None) -> Iterator[Path]:
    words = re.split(r"[_-]", name)
    folders = [] if near is None else [near]
    for count in range(len(words), 0, -1):
        folders.append(root / "_".join(words[:count]))
    tried: set[Path] = set()
    for folder in (*folders, root / "benchmarks", root):
        if folder.is_dir():
            found = sorted(path for path in folder.rglob("*.yaml") if path not in tried)
            tried.update(found)
            yield from sorted(found, key=lambda path: path.stem != name)


def _children(settings: Mapping[str, Any]) -> list[str]:
    """Return the names that a group consists of; tasks written out inside it have a data set of their own."""
    members = settings.get("task")
    if not isinstance(members, list):
        return []
    names = []
    for member in members:
        if isinstance(member, str):
            names.append(member)
        elif isinstance(member, Mapping) and "dataset_path" not in member:
            named = member.get("task") or member.get("group")
            names += [named] if isinstance(named, str) else _children(member)
    return names
