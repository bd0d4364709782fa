"""The cards of tasks, YAML files: words stay words, relative paths start at the file, size and depth are bounded.

YAML 1.1 turns ``no``, ``on``, ``null``, ``1.0`` or ``2024-01-01`` into other things than words. In the lists of names
(:data:`WORDS`) every entry is what stands in the file; everywhere else YAML's own types hold. Nothing is interpolated:
a template or a name may contain ``${``, and what is in the environment never reaches a result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml
from pydantic import ValidationError

from taskvec.data.tasks import BY_HAND, Task
from taskvec.errors import UserError
from taskvec.registry import did_you_mean

if TYPE_CHECKING:
    from taskvec.config import Config
    from taskvec.data.tasks import Suite

Node: TypeAlias = Mapping[str, Any]  # the settings of a suite
Folders: TypeAlias = Sequence[Path]

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


def load_tasks(node: Node, kind: type[Suite], folders: Folders) -> dict[str, Config]:
    """Return the definition of every task that a suite's settings name, from the first folder that has its card.

    The card of a task NAME is ``task/CARDS/NAME.yaml`` for the folders that ``cards`` lists, else ``task/NAME.yaml``. A
    card may start from another with ``extends: FOLDER/NAME``.

    Raises:
        UserError: for a list of another type, a task without a card, a card that does not fit the schema, or a mirror
            that lacks a task.
    """
    names = [*_listed(node, "tasks"), *_listed(node, "held_out")]
    if node.get("control"):
        names.append(node["control"])
    places = [f"{place}/" for place in _listed(node, "cards")]
    places.append("")
    found = {}
    for name in map(str, names):
        card = _called(name, places, folders)
        task = _task(card, kind, folders)
        found[name] = _of_suite(name, task, node)
    return found


def _listed(node: Node, key: str) -> list[Any]:
    """Return a list of names, empty where there is none.

    Raises:
        UserError: if it is something else.
    """
    value = node.get(key)
    if not isinstance(value, list | None):
        remedy = f"write suite.{key}=[NAME,...]"
        raise UserError(f"suite.{key}: must be a list of names, got {value!r}; {remedy}")
    return value or []


def _called(name: str, places: Sequence[str], folders: Folders) -> str:
    """Return the name of a task's card with the folder that it lies in.

    Raises:
        UserError: if there is none.
    """
    for place in places:
        called = f"{place}{name}"
        if _file(called, folders) is not None:
            return called
    raise UserError(_unknown(name, places, folders))


def _file(name: str, folders: Folders) -> Path | None:
    """Return the file of a card in the first folder that has it."""
    for folder in folders:
        path = folder / "task" / f"{name}.yaml"
        if os.path.isfile(path):  # False for a name too long, where Path raises
            return path
    return None


def _unknown(name: str, places: Sequence[str], folders: Folders) -> str:
    """Return what is said of a task without a card."""
    known: set[str] = set()
    for folder in folders:
        for place in places:
            cards = (folder / "task" / place).glob("*.yaml")
            known.update(path.stem for path in cards)
    hint = did_you_mean(name, sorted(known))
    return f"suite.tasks: unknown task {name[:200]!r}{hint}"


def _of_suite(name: str, task: Config, node: Node) -> Config:
    """Return a task with what its suite decides: where files are, how validation comes about, what is checked."""
    if not isinstance(task, Task):
        return task
    changed: dict[str, Any] = {}
    if node.get("split_rule"):
        changed["split_rule"] = node["split_rule"]
    if node.get("check_counts") is False:
        changed["facts"] = task.facts.model_copy(update={"rows": {}})
    mirror = node.get("data_dir")
    if mirror and task.folder is None:
        folder = _mirrored(name, task, mirror)
        changed |= {"path": str(folder), "config": None, "revision": None}
    return task.model_copy(update=changed)


def _mirrored(name: str, task: Task, mirror: str) -> Path:
    """Return a task's folder in a local mirror.

    Raises:
        UserError: if it is not there.
    """
    root = os.path.expanduser(mirror)
    path = task.path.removeprefix(BY_HAND)
    folder = Path(root, path, task.config or "").resolve()
    if folder.is_dir():
        return folder
    called = filter(None, task.splits.values())
    files = ", ".join(f"{file}.parquet" for file in called)
    raise UserError(f"suite.data_dir: task {name} needs the folder {folder} with {files}")


def _task(name: str, kind: type[Suite], folders: Folders) -> Config:
    """Return what a card says.

    Raises:
        UserError: if it does not fit its schema.
    """
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
        hint = ""
        if detail["type"] == "extra_forbidden":
            hint = did_you_mean(key, list(schema.model_fields))
        message = detail["msg"].removeprefix("Value error, ")[:500]
        if hint:
            message = "unknown key"
        raise UserError(f"task/{name}.yaml: {key}: {message}{hint}") from error


def _read(name: str, folders: Folders, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a card's mapping, over that of the card that it extends.

    Raises:
        UserError: if there is no such card, or it extends itself.
    """
    chain = (*extending, name)
    if name in extending:
        circle = " -> ".join(chain)
        raise UserError(f"task/{name}.yaml: extends itself: {circle}")
    path = _file(name, folders)
    if path is None:
        raise UserError(_unknown(name, [""], folders))
    node = read_card(path)
    parent = node.pop("extends", None)
    if not parent:
        return node
    return _read(str(parent), folders, chain) | node
