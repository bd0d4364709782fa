"""One registry for every group: a name, its schema, the paper it comes from, and the code of a user's own.

A component of the package is imported when it is first asked for; its name is read off its decorator before.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from taskvec.config import Component
from taskvec.errors import UserError

PACKAGES = {
    "backbone": "taskvec.models",
    "suite": "taskvec.data",
    "statistic": "taskvec.statistics",
    "finetune": "taskvec.finetune",
    "transform": "taskvec.transform",
    "merge": "taskvec.merge",
    "protocol": "taskvec.protocols",
    "tracker": "taskvec.runner.track",
    "question": "taskvec.protocols",
    "objective": "taskvec.training",
    "adapter": "taskvec.merge.adapters",
}
# Parts of components: they have no config group of their own.
PARTS = ("statistic", "question", "objective", "adapter")
GROUPS = tuple(group for group in PACKAGES if group not in PARTS)
PACKAGE = Path(__file__).resolve().parent
MANY = 30
DECORATOR = b"@register("
DECORATED = re.compile(r'^@register\(\s*"(\w+)",\s*"([^"]+)"', re.MULTILINE)
STAGES = ("finetune", "transform", "merge", "protocol")

T = TypeVar("T", bound=type[Component])


@dataclass(frozen=True)
class Entry:
    """What the registry knows of one component."""

    group: str
    name: str
    schema: type[Component]
    paper: str
    source: Path

    @property
    def shipped(self) -> bool:
        """Whether it came with taskvec, and not from a file of the user's."""
        return self.source.is_relative_to(PACKAGE)


_entries: dict[tuple[str, str], Entry] = {}


def register(group: str, name: str, *, paper: str = "") -> Callable[[T], T]:
    """Enter a component's class under ``group`` as ``name``.

    Raises:
        ValueError: if the group is unknown or the name is taken by another file.
    """
    if group not in PACKAGES:
        raise ValueError(f"unknown group {group!r}; groups: {', '.join(PACKAGES)}")

    def enter(schema: T) -> T:
        source = Path(inspect.getfile(schema)).resolve()
        entry = _entries.get((group, name))
        known = entry.source if entry else shipped().get((group, name))
        if known and known != source:
            raise ValueError(
                f"{group}={name} is registered by {known.name} already; rename one of the two"
            )
        _entries[group, name] = Entry(group, name, schema, paper, source)
        return schema

    return enter


@cache
def shipped() -> dict[tuple[str, str], Path]:
    """Return the file of every component of the package by group and name; none is imported."""
    found = {}
    for package_name in dict.fromkeys(PACKAGES.values()):
        folder = PACKAGE.joinpath(*package_name.split(".")[1:])
        for path in sorted(folder.rglob("*.py")):
            source = path.read_bytes()
            # most files have none, and every plan comes by here
            if DECORATOR in source:
                names = DECORATED.findall(source.decode())
                found |= dict.fromkeys(names, path)
    return found


def load_builtin(group: str | None = None) -> None:
    """Import the package's components, of one group or of all; none of them imports torch at its top."""
    for (place, name), path in shipped().items():
        if group in (None, place) and (place, name) not in _entries:
            _import(path)


def _import(path: Path) -> None:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    importlib.import_module(".".join(parts))


def load_file(path: Path) -> None:
    """Import a user's Python file, which registers components of its own.

    Raises:
        UserError: if the file is missing or fails to import.
    """
    if not path.is_file():
        raise UserError(f"--include {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"taskvec_user_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"--include {path}: cannot be imported: {type(error).__name__}: {error}"
        ) from error
    helpers = {sys.modules[name] for name in set(sys.modules) - before} | _imported_beside(
        module, path.parent
    )
    code = _code_of(path, helpers)
    for entry in _entries.values():
        if entry.source == path.resolve():
            entry.schema.code = code


def _imported_beside(module: ModuleType, folder: Path) -> set[ModuleType]:
    """Return the modules of a folder that a module refers to, those that were imported earlier too."""
    found = set()
    for value in vars(module).values():
        name = (
            value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        )
        other = sys.modules.get(name) if isinstance(name, str) else None
        if other is not None and other is not module and _source(other, folder):
            found.add(other)
    return found


def _source(module: ModuleType, folder: Path) -> Path | None:
    """Return a module's file if it lies below a folder, and is none of ours."""
    name = getattr(module, "__file__", None)
    if not name:
        return None
    path = Path(name).resolve()
    theirs = path.is_relative_to(folder.resolve()) and not path.is_relative_to(PACKAGE)
    return path if theirs else None


def _code_of(path: Path, helpers: set[ModuleType]) -> str:
    """Return the checksum of a user's file and of the modules beside it that it imports."""
    files = {path.resolve()} | {
        found for helper in helpers if (found := _source(helper, path.parent))
    }
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def names(group: str) -> list[str]:
    """Return the names of a group's components, sorted; none is imported."""
    found = {name for place, name in (*shipped(), *_entries) if place == group}
    return sorted(found)


def entries(group: str | None = None) -> list[Entry]:
    """Return the registered components, of one group or of all, by name."""
    load_builtin(group)
    return sorted(
        (e for e in _entries.values() if group in (None, e.group)), key=lambda e: (e.group, e.name)
    )


def lookup(group: str, name: str) -> Entry:
    """Return one component's entry.

    Raises:
        UserError: if there is none of that name; the message names the nearest.
    """
    key = group, name
    if key not in _entries and key in shipped():
        _import(shipped()[key])
    if key not in _entries:
        raise UserError(f"{group}.kind: unknown {group} {name!r}{did_you_mean(name, names(group))}")
    return _entries[key]


def did_you_mean(word: str, known: list[str]) -> str:
    """Return a hint that names the nearest known word and the allowed ones, of a long list a part of them."""
    if not known:
        return " (it takes none)"
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    allowed = known if len(known) <= MANY else _some(word, known)
    return f"{hint} (allowed: {', '.join(allowed)})"


def _some(word: str, known: list[str]) -> list[str]:
    """Return the names without a dot, or where all are alike the nearest ones, and how many there are beside them."""
    shown = [name for name in known if "." not in name]
    if len(shown) == len(known):
        shown = get_close_matches(word, known, n=8, cutoff=0.2)
    return [*shown, f"and {len(known) - len(shown)} more"]
