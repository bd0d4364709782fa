"""The files that a task of the harness is made from: YAML with what it includes, modules, scripts, local data."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskvec.errors import UserError

INSTALL = "protocol=harness: lm-evaluation-harness is not installed; pip install 'taskvec[llm]'"
BUILDERS = ("parquet", "json", "csv", "text", "arrow")  # of data sets from local files


@dataclass(frozen=True)
class Function:
    """A ``!function module.name`` of a YAML file: as it is written, and where its module would lie."""

    named: str
    place: Path
    foreign: bool


@dataclass
class Definition:
    """A YAML file's settings merged over those of the files it includes, and what was read for it."""

    settings: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)

    def modules(self) -> dict[Path, str]:
        """Return the text of each module that its functions come from."""
        places = {function.place for function in self.functions}
        found = sorted(place for place in places if place.is_file())
        return {place: place.read_text(encoding="utf-8", errors="replace") for place in found}


def own_tasks() -> Path:
    """Return the folder of the harness's own tasks.

    Raises:
        UserError: if the harness is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(INSTALL)
    return Path(spec.submodule_search_locations[0]).resolve() / "tasks"


def read_definition(path: Path, seen: tuple[Path, ...] = ()) -> Definition:
    """Return the definition in a YAML file.

    Raises:
        UserError: if it cannot be read.
    """
    if path in seen:
        raise UserError(f"protocol.tasks: {path} includes itself")
    settings, functions = _read(path)
    named = settings.pop("include", None) or []
    includes = [named] if isinstance(named, str) else named
    merged = Definition(files=[path], functions=functions)
    for include in includes:
        inner = read_definition((path.parent / include).resolve(), (*seen, path))
        merged.settings |= inner.settings
        merged.files += inner.files
        # a module is imported when its file is read, though another file overrides the key
        merged.functions += inner.functions
    merged.settings |= settings
    return merged


def _read(path: Path) -> tuple[dict[str, Any], list[Function]]:
    """Return the mapping in a YAML file, and the functions that it names.

    Raises:
        UserError: if it cannot be read.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    functions: list[Function] = []
    foreign = not path.resolve().is_relative_to(own_tasks())

    def function(loader: yaml.SafeLoader, node: Any) -> Function:
        named = loader.construct_scalar(node)
        module = named.rpartition(".")[0].replace(".", "/")
        place = (path.parent / f"{module}.py").resolve()
        functions.append(Function(named, place, foreign))
        return functions[-1]

    Loader.add_constructor("!function", function)
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506 (a safe loader with one tag)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"protocol.tasks: {path} cannot be read: {reason[:200]}") from error
    if not isinstance(settings, dict):
        raise UserError(f"protocol.tasks: {path} is no mapping")
    return settings, functions


def beside(code: Path) -> set[Path]:
    """Return the Python files that a module can import by lying beside it, itself among them."""
    folder = code if code.is_dir() else code.parent
    if not folder.is_dir():
        return set()
    return {path.resolve() for path in folder.rglob("*.py") if path.is_file()}


def data_files(name: str, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the local files that a task's examples come from.

    Raises:
        UserError: naming a file that does not exist.
    """
    for item in _named_files(settings):
        place = os.path.expanduser(item)
        if os.path.isfile(place):
            yield Path(place).resolve()
        elif glob.has_magic(place):
            yield from (Path(path).resolve() for path in sorted(glob.glob(place, recursive=True)))
        elif settings.get("dataset_path") in BUILDERS:
            raise UserError(f"protocol.tasks: {name} reads {place}, which does not exist")
    folder = Path(str(settings.get("dataset_path") or "/nowhere"))
    if folder.is_dir():
        yield from (path.resolve() for path in sorted(folder.rglob("*")) if path.is_file())


def _named_files(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the local files, or patterns of them, that ``data_files`` names: one, a list, or either by split."""
    kwargs = settings.get("dataset_kwargs") or {}
    named = kwargs.get("data_files") or []
    values = named.values() if isinstance(named, Mapping) else [named]
    for value in values:
        items = [value] if isinstance(value, str) else value
        yield from (item for item in items if "://" not in item)
