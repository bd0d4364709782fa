"""Tasks of lm-evaluation-harness by name, from their YAML files alone: what they read, and whether they run code.

Importing the harness takes seconds and listing its 14,000 files more, so a task is looked for where its name says.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskvec.data.files import sha256
from taskvec.errors import UserError

INSTALL = "protocol=harness: lm-evaluation-harness is not installed; pip install 'taskvec[llm]'"
CODE = re.compile(r"\bcode_eval\b|HF_ALLOW_CODE_EVAL|\bexec\(|\bsubprocess\b")
CODE_EVAL = re.compile(r"\bcode_eval\b|HF_ALLOW_CODE_EVAL")
BUILDERS = ("parquet", "json", "csv", "text", "arrow")  # of data sets from local files


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


@dataclass(frozen=True)
class Function:
    """A ``!function module.name`` of a YAML file: as it is written, and where its module would lie."""

    named: str
    place: Path
    foreign: bool


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
    files: set[Path] = set()
    reasons: list[str] = []
    code_eval = False
    for path, config in seen.items():
        functions = config["_functions"]
        modules = {function.place for function in functions if function.place.is_file()}
        texts = {module: module.read_text(encoding="utf-8", errors="replace") for module in sorted(modules)}
        scripts = [script for script in _scripts(config) if script.exists()]
        files |= {path, *config["_files"], *texts, *_data(name, config)}
        for foreign in (*(function.place for function in functions if function.foreign), *scripts):
            files |= _beside(foreign)
        reasons += _foreign(config, functions)
        reasons += _executing(path, config, texts)
        spoken = str(config.get("metric_list", "")) + "".join(texts.values())
        code_eval = code_eval or bool(CODE_EVAL.search(spoken))
    # Of two tasks of one name the harness takes that of the last folder: the user's.
    folders = sorted({path.parent for path in seen}, key=lambda folder: not folder.is_relative_to(roots[-1]))
    return Found(name, tuple(files), tuple(folders), next(iter(reasons), None), code_eval)


def _foreign(config: Mapping[str, Any], functions: list[Function]) -> Iterator[str]:
    """Yield what a task runs that is no part of the harness."""
    for function in functions:
        if function.foreign:
            yield f"runs Python of its own (!function {function.named})"
    for metric in _metrics(config):
        named = metric.get("metric")
        if metric.get("hf_evaluate") or (isinstance(named, str) and named not in known_metrics()):
            yield f"scores with {named!r}, which is a script and no metric of the harness"
    if config.get("use_prompt"):
        yield f"renders templates of a prompt library (use_prompt {config['use_prompt']})"
    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, Mapping) and kwargs.get("trust_remote_code"):
        yield "loads its data with trust_remote_code"


def _executing(path: Path, config: Mapping[str, Any], texts: Mapping[Path, str]) -> Iterator[str]:
    """Yield the files by which the harness's own task executes what the model writes."""
    runs = [module for module, text in texts.items() if CODE.search(text)]
    metrics = str(config.get("metric_list", ""))
    if config.get("unsafe_code") or CODE_EVAL.search(metrics) or runs:
        yield f"executes code that the model writes ({(runs[0] if runs else path).name})"


def _metrics(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the metrics that the harness looks up; where a task computes its own, they are mere names."""
    if config.get("process_results"):
        return []
    listed = config.get("metric_list")
    return [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []


@cache
def known_metrics() -> frozenset[str]:
    """Return the names of the harness's metrics, read from its source: importing it takes seconds."""
    source = own_tasks().parent / "api" / "metrics.py"
    return frozenset(re.findall(r"metric=\"([^\"]+)\"", source.read_text(encoding="utf-8")))


def _scripts(config: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the places that metrics name instead of a known name."""
    for metric in _metrics(config):
        named = metric.get("metric")
        if isinstance(named, str) and named not in known_metrics():
            yield Path(named)


def _beside(code: Path) -> set[Path]:
    """Return the Python files that a module can import by lying beside it, itself among them."""
    folder = code if code.is_dir() else code.parent
    found = folder.rglob("*.py") if folder.is_dir() else ()
    return {path.resolve() for path in found if path.is_file()}


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

    functions: list[Function] = []
    foreign = not path.resolve().is_relative_to(own_tasks())

    def function(loader: yaml.SafeLoader, node: Any) -> Function:
        named = loader.construct_scalar(node)
        module = named.rpartition(".")[0].replace(".", "/")
        found = Function(named, (path.parent / f"{module}.py").resolve(), foreign)
        functions.append(found)  # it is imported when the file is read, though another file may override the key
        return found

    Loader.add_constructor("!function", function)
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506 (a safe loader with one tag)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"protocol.tasks: {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(config, dict) or path in seen:
        raise UserError(f"protocol.tasks: {path} {'includes itself' if path in seen else 'is no mapping'}")
    includes = config.pop("include", None) or []
    merged: dict[str, Any] = {"_files": [path], "_functions": functions}
    for include in [includes] if isinstance(includes, str) else includes:
        inner = _load((path.parent / include).resolve(), (*seen, path))
        merged |= inner | {key: merged[key] + inner[key] for key in ("_files", "_functions")}
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


def _data(name: str, config: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the local files that a task's examples come from.

    Raises:
        UserError: naming a file that does not exist.
    """
    named = (config.get("dataset_kwargs") or {}).get("data_files") or []
    for value in named.values() if isinstance(named, Mapping) else [named]:
        for item in [value] if isinstance(value, str) else value:
            if "://" in item:
                continue
            place = os.path.expanduser(item)
            if glob.has_magic(place) and not os.path.exists(place):
                yield from (Path(path).resolve() for path in sorted(glob.glob(place, recursive=True)))
            elif os.path.isfile(place):
                yield Path(place).resolve()
            elif config.get("dataset_path") in BUILDERS:
                raise UserError(f"protocol.tasks: {name} reads {place}, which does not exist")
    folder = Path(str(config.get("dataset_path") or "/nowhere"))
    if folder.is_dir():
        yield from (path.resolve() for path in sorted(folder.rglob("*")) if path.is_file())
