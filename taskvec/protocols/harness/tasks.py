"""Tasks of lm-evaluation-harness by name, from their YAML files alone: what they read, and whether they run code.

Importing the harness takes seconds and listing its 14,000 files more, so a task is looked for where its name says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskvec.data.files import sha256
from taskvec.errors import UserError

INSTALL = "protocol=harness: lm-evaluation-harness is not installed; pip install 'taskvec[llm]'"
CODE = re.compile(r"\bcode_eval\b|HF_ALLOW_CODE_EVAL|\bexec\(|\bsubprocess\b")
CODE_EVAL = re.compile(r"\bcode_eval\b|HF_ALLOW_CODE_EVAL")


@dataclass(frozen=True)
class Found:
    """A task or group with all that belongs to it: the files it is made from, and the file that runs code, if any."""

    name: str
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    code: Path | None
    code_eval: bool

    def digest(self) -> dict[str, str]:
        """Return the checksums of the files, by folder and name."""
        return {f"{path.parent.name}/{path.name}": sha256(path) for path in sorted(self.files)}


class Function(str):
    """A ``!function module.name`` of a YAML file, as the path of its module."""


def own_tasks() -> Path:
    """Return the folder of the harness's own tasks.

    Raises:
        UserError: if the harness is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(INSTALL)
    return Path(spec.submodule_search_locations[0]).resolve() / "tasks"


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
    seen = _members(name, roots)
    files, code, code_eval = set(), None, False
    for path, config in seen.items():
        modules = sorted({Path(value) for value in _functions(config)})
        texts = {module: module.read_text(encoding="utf-8") for module in modules if module.is_file()}
        files |= {path, *config["_files"], *texts, *_data(name, config)}
        metrics = str(config.get("metric_list", ""))
        runs = [module for module, text in texts.items() if CODE.search(text)]
        if config.get("unsafe_code") or CODE_EVAL.search(metrics) or runs:
            code = code or (runs[0] if runs else path)
        code_eval = code_eval or bool(CODE_EVAL.search(metrics + "".join(texts.values())))
    # Of two tasks of one name the harness takes that of the last folder: the user's.
    folders = sorted({path.parent for path in seen}, key=lambda folder: not folder.is_relative_to(roots[-1]))
    return Found(name, tuple(files), tuple(folders), code, code_eval)


def _members(name: str, roots: list[Path]) -> dict[Path, dict[str, Any]]:
    """Return the configs of a task, or of a group and all that belongs to it, by file.

    Raises:
        UserError: naming what is not there.
    """
    seen: dict[Path, dict[str, Any]] = {}
    pending, names = [name], set()
    while pending:
        current = pending.pop()
        if current in names:
            continue
        names.add(current)
        path = _file(current, roots, next(iter(seen)).parent if seen else None)
        if path is None:
            places = " and ".join(map(str, roots))
            raise UserError(f"protocol.tasks: no task or group {current!r} in {places}; `lm-eval ls tasks` lists them")
        seen[path] = config = _load(path)
        pending += _children(config)
    return seen


def _file(name: str, roots: list[Path], near: Path | None) -> Path | None:
    """Return the YAML file that defines a name, looking first where its words and its group's file point."""
    pattern = re.compile(rf"^(task|group):\s*[\"']?{re.escape(name)}[\"']?\s*(#.*)?$", re.M)
    for root in roots:
        for path in _candidates(name, root, near if near and near.is_relative_to(root) else None):
            if pattern.search(path.read_text(encoding="utf-8", errors="replace")):
                return path.resolve()
    return None


def _candidates(name: str, root: Path, near: Path | None) -> Iterator[Path]:
    words = re.split(r"[_-]", name)
    guesses = [root / "_".join(words[:count]) for count in range(len(words), 0, -1)]
    tried: set[Path] = set()
    for folder in [*([near] if near else []), *guesses, root / "benchmarks", root]:
        found = [path for path in sorted(folder.rglob("*.yaml")) if path not in tried] if folder.is_dir() else []
        tried.update(found)
        yield from sorted(found, key=lambda path: path.stem != name)


def _load(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a YAML file merged over those it includes; ``_files`` lists them.

    Raises:
        UserError: if it cannot be read.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: Any) -> Function:
        module = loader.construct_scalar(node).rpartition(".")[0]
        return Function(path.parent / f"{module.replace('.', '/')}.py")

    Loader.add_constructor("!function", function)
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506 (a safe loader with one tag)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"protocol.tasks: {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or path in seen:
        raise UserError(f"protocol.tasks: {path} {'includes itself' if path in seen else 'is no mapping'}")
    includes = config.pop("include", None) or []
    merged: dict[str, Any] = {"_files": [path]}
    for include in [includes] if isinstance(includes, str) else includes:
        inner = _load((path.parent / include).resolve(), (*seen, path))
        merged |= inner | {"_files": merged["_files"] + inner["_files"]}
    return merged | config


def _children(config: Mapping[str, Any]) -> list[str]:
    """Return the names that a group consists of; tasks written out inside it have a data set of their own."""
    members = config.get("task") if isinstance(config.get("task"), list) else []
    names = []
    for member in members:
        if isinstance(member, str):
            names.append(member)
        elif isinstance(member, Mapping) and "dataset_path" not in member:
            named = member.get("task") or member.get("group")
            names += [named] if isinstance(named, str) else _children(member)
    return names


def _functions(node: Any) -> Iterator[Function]:
    if isinstance(node, Function):
        yield node
    elif isinstance(node, Mapping | list):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _functions(value)


def _data(name: str, config: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the local files that a task's examples come from.

    Raises:
        UserError: naming a file that does not exist.
    """
    named = (config.get("dataset_kwargs") or {}).get("data_files") or []
    for value in named.values() if isinstance(named, Mapping) else [named]:
        for item in [value] if isinstance(value, str) else value:
            if "://" in item or "*" in item:
                continue
            path = Path(item).expanduser()
            if not path.is_file() and config.get("dataset_path") in ("parquet", "json", "csv", "text", "arrow"):
                raise UserError(f"protocol.tasks: {name} reads {path}, which does not exist")
            if path.is_file():
                yield path.resolve()
    folder = Path(str(config.get("dataset_path") or "/nowhere"))
    if folder.is_dir():
        yield from (path.resolve() for path in sorted(folder.rglob("*")) if path.is_file())
