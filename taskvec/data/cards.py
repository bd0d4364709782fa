"""The cards of tasks, YAML files: words stay words, relative paths start at the file, size and depth are bounded.

YAML 1.1 turns ``no``, ``on``, ``null``, ``1.0`` or ``2024-01-01`` into other things than words. In the lists of names
(:data:`WORDS`) every entry is what stands in the file; everywhere else YAML's own types hold. Nothing is interpolated:
a template or a name may contain ``${``, and what is in the environment never reaches a result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from taskvec.data.tasks import BY_HAND, Facts, Task
from taskvec.errors import UserError
from taskvec.registry import did_you_mean

if TYPE_CHECKING:
    from taskvec.config import Config
    from taskvec.data.tasks import Suite

WORDS = ("classes", "keep", "words", "templates")
PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
MAX_BYTES, MAX_NODES, MAX_DEPTH = 4 << 20, 200_000, 20


def read_card(path: Path) -> dict[str, Any]:
    """Return the mapping in a task's file, with ``path`` resolved.

    Raises:
        UserError: in one line, if it is no YAML mapping, too large or too deep, or names a key twice.
    """
    where = f"task/{path.name}"
    try:
        found = _parsed(path)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: not valid YAML: {reason[:300]}") from error
    if found is None:
        raise UserError(f"{where}: must be a mapping of keys to values")
    if found.get("path") and isinstance(found["path"], str):
        found["path"] = resolved(found["path"], path)
    return found


def _parsed(path: Path) -> dict[str, Any] | None:
    """Return a file's mapping, None if it holds something else.

    Raises:
        ValueError: if it is too large or too deep, no UTF-8, or names a key twice.
    """
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
    # compiled where it is there: the parser in Python is thirty times as slow
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(content.decode("utf-8-sig"))
    node = loader.get_single_node()
    if not isinstance(node, yaml.MappingNode):
        return None
    return _Reader(loader).mapping(node, 0)


class _Reader:
    """Turns YAML nodes into values; nodes that aliases repeat count each time."""

    def __init__(self, loader: Any):
        self.loader, self.seen = loader, 0

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, child in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"{_line(key_node)}: a key must be a word")
            if key in found:
                raise ValueError(f"{_line(key_node)}: {key!r} for the second time")
            words = depth == 0 and key in WORDS
            found[key] = self.value(child, depth + 1, words=words)
        return found

    def value(self, node: yaml.Node, depth: int, *, words: bool = False) -> Any:
        self.seen += 1
        if self.seen > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError("too many values, or too deep")
        if not isinstance(node, yaml.ScalarNode) and node.tag not in PLAIN:
            raise ValueError(f"{_line(node)}: tags such as {node.tag} are not read")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._entry(child, depth, words) for child in node.value]
        return self.loader.construct_object(node)

    def _entry(self, node: yaml.Node, depth: int, words: bool) -> Any:
        if words and isinstance(node, yaml.ScalarNode):
            return node.value
        return self.value(node, depth + 1)


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def resolved(path: str, card: Path) -> str:
    """Return a local path as an absolute one, a name of the hub or of a shipped folder as it is.

    A relative path starts at the folder of the file that names it, or at the one above, which holds ``task/``. A name
    without a leading dot is a local folder if there is one, else one of the hub.
    """
    expanded = os.path.expanduser(path)
    if path.startswith("pkg://") or os.path.isabs(expanded):
        return expanded
    beside = card.resolve().parent
    for start in (beside, beside.parent):
        folder = start / path
        if os.path.exists(folder):  # False for a path too long, where Path raises
            return str(folder.resolve())
    if path.startswith("."):
        folder = beside / path
        return str(folder.resolve())
    return path


def load_tasks(
    suite: Mapping[str, Any], kind: type[Suite], folders: Sequence[Path]
) -> dict[str, Config]:
    """Return the definition of every task a suite names, from its card in the first folder that has one.

    The card of a task NAME is ``task/CARDS/NAME.yaml`` for the folders that ``suite.cards`` lists, else
    ``task/NAME.yaml``. A card may start from another with ``extends: FOLDER/NAME``.

    Raises:
        UserError: for a list of another type, a task without a card, a card that does not fit the schema, or a mirror
            that lacks a task.
    """
    for key in ("tasks", "held_out", "cards"):
        if not isinstance(suite.get(key), list | None):
            raise UserError(
                f"suite.{key}: must be a list of names, got {suite[key]!r}; write suite.{key}=[NAME,...]"
            )
    names = [
        *(suite.get("tasks") or []),
        *filter(None, [suite.get("control")]),
        *(suite.get("held_out") or []),
    ]
    places = [f"{folder}/" for folder in suite.get("cards") or []]
    found = {}
    for name in map(str, names):
        called = _called(name, [*places, ""], folders)
        task = _task(called, kind, folders)
        found[name] = _of_suite(name, task, suite)
    return found


def _called(name: str, places: Sequence[str], folders: Sequence[Path]) -> str:
    """Return the name of a task's card with the folder that it lies in.

    Raises:
        UserError: if there is none.
    """
    for place in places:
        # False for a name too long, where Path raises
        if any(os.path.isfile(folder / "task" / f"{place}{name}.yaml") for folder in folders):
            return f"{place}{name}"
    known = {path.stem for folder in folders for place in places for path in _cards(folder, place)}
    raise UserError(f"suite.tasks: unknown task {name[:200]!r}{did_you_mean(name, sorted(known))}")


def _cards(folder: Path, place: str) -> list[Path]:
    return list((folder / "task" / place).glob("*.yaml"))


def _of_suite(name: str, task: Config, suite: Mapping[str, Any]) -> Config:
    """Return a task with what its suite decides: where files are, how validation comes about, what is checked."""
    if not isinstance(task, Task):
        return task
    changed: dict[str, Any] = {}
    if suite.get("split_rule"):
        changed["split_rule"] = suite["split_rule"]
    if suite.get("check_counts") is False:
        changed["facts"] = Facts()
    return _mirrored(name, task, suite.get("data_dir")).model_copy(update=changed)


def _mirrored(name: str, task: Task, mirror: str | None) -> Task:
    if not mirror or task.folder is not None:
        return task
    path = task.path.removeprefix(BY_HAND)
    folder = Path(os.path.expanduser(mirror), path, task.config or "").resolve()
    if not folder.is_dir():
        files = ", ".join(f"{file}.parquet" for file in task.splits.values() if file)
        raise UserError(f"suite.data_dir: task {name} needs the folder {folder} with {files}")
    return task.model_copy(update={"path": str(folder), "config": None, "revision": None})


def _task(name: str, kind: type[Suite], folders: Sequence[Path]) -> Config:
    node = _read(name, folders)
    schema = kind.schema(node)
    try:
        return schema.model_validate(node)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # a misspelt key tells more than the one that is missing for it
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        detail = (unknown or details)[0]
        key = ".".join(map(str, detail["loc"]))[:200]
        hint = (
            did_you_mean(key, list(schema.model_fields))
            if detail["type"] == "extra_forbidden"
            else ""
        )
        message = detail["msg"].removeprefix("Value error, ")[:500]
        if hint:
            message = "unknown key"
        raise UserError(f"task/{name}.yaml: {key}: {message}{hint}") from error


def _read(name: str, folders: Sequence[Path], extending: tuple[str, ...] = ()) -> dict[str, Any]:
    if name in extending:
        raise UserError(f"task/{name}.yaml: extends itself: {' -> '.join((*extending, name))}")
    for folder in folders:
        path = folder / "task" / f"{name}.yaml"
        if os.path.isfile(path):  # False for a name too long, where Path raises
            node = read_card(path)
            parent = node.pop("extends", None)
            return {**_read(str(parent), folders, (*extending, name)), **node} if parent else node
    known = sorted({path.stem for folder in folders for path in _cards(folder, "")})
    raise UserError(f"suite.tasks: unknown task {name[:200]!r}{did_you_mean(name, known)}")
