"""Reading the YAML file of a task: words stay words, relative paths start at the file, size and depth are bounded.

YAML 1.1 turns ``no``, ``on``, ``null``, ``1.0`` or ``2024-01-01`` into other things than words. In the lists of names
(:data:`WORDS`) every entry is what stands in the file; everywhere else YAML's own types hold. Nothing is interpolated:
a template or a name may contain ``${``, and what is in the environment never reaches a result.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from taskvec.errors import UserError

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
