"""The nodes of the computation graph: what an artefact is made from determines its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from taskvec.config import Config
from taskvec.graph.encoding import decode
from taskvec.needs import Examples

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.models.batching import Batching

Json = Any


@dataclass(frozen=True)
class Content:
    """What a stored artefact holds: tensors by name, and JSON values."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


class Work(Protocol):
    """The workspace, as nodes see it (:class:`taskvec.graph.workspace.Workspace`)."""

    device: str
    bf16: bool
    compile: bool
    batching: Batching

    def get(self, node: Node) -> Content:
        """Return a stored node's content, computed where it is missing."""

    def keep(self, node: Node, make: Any) -> Any:
        """Return ``make()``, made once for the life of the process."""


def aside(**more: Any) -> Any:
    """Declare a field of a node that shapes nothing: a label, a place, the scope of planning."""
    return field(metadata={"identity": False}, **more)


@dataclass(frozen=True, eq=False)
class Node(ABC):
    """An artefact: its fields that are nodes are its inputs, the others (but :func:`aside`) shape its result.

    ``stored`` ones are computed once per store by :meth:`compute`; the others exist in memory only. :meth:`value` is
    what other nodes and components work with. ``version`` counts changes of what :meth:`compute` does with its inputs.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    looks: ClassVar[bool] = False  # whether its spec depends on files
    copies: ClassVar[int] = 0  # of the weights, in bytes about, that the store keeps with it

    @property
    def stored(self) -> bool:
        """Whether the store keeps it."""
        return True

    @property
    def label(self) -> str:
        """A name for people, no part of the identity."""
        return self.kind

    @cached_property
    def inputs(self) -> dict[str, Node]:
        """The nodes it is made from, by field name, those of a collection numbered or by key."""
        found: dict[str, Node] = {}
        for name in _fields(self):
            value = getattr(self, name)
            for key, part in _parts(value):
                if isinstance(part, Node):
                    found[f"{name}/{key}" if key else name] = part
        return found

    def spec(self) -> Json:
        """Return the fields that shape the result and are no nodes, as JSON values."""
        found = {}
        for name in _fields(self):
            value = getattr(self, name)
            if not any(isinstance(part, Node) for _, part in _parts(value)):
                found[name] = plain(value)
        return found

    def sees(self) -> Iterable[Examples]:
        """Return the examples it looks at."""
        return ()

    def compute(self, work: Work) -> Content:
        """Return what the store keeps.

        Raises:
            NotImplementedError: for a node that is not stored.
        """
        raise NotImplementedError(f"{type(self).__name__} is not stored")

    def value(self, work: Work) -> Any:
        """Return what others work with; a stored node's content unless the class says otherwise."""
        return work.get(self)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that determines the result: kind, version, settings, the inputs' fingerprints."""
        inputs = {name: node.fingerprint for name, node in self.inputs.items()}
        return {"kind": self.kind, "version": self.version, "spec": self.spec(), "inputs": inputs}

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the recipe, shortened to 32 hexadecimal digits."""
        return fingerprint(self.recipe)

    def walk(self) -> Iterator[Node]:
        """Yield every artefact below this one and then itself, each once, inputs before what needs them."""
        return walk([self])


def walk(roots: Iterable[Node]) -> Iterator[Node]:
    """Yield every artefact that some roots stand on, and the roots, each once, inputs before what needs them."""
    seen: set[str] = set()

    def visit(node: Node) -> Iterator[Node]:
        if node.fingerprint in seen:
            return
        seen.add(node.fingerprint)
        for child in node.inputs.values():
            yield from visit(child)
        yield node

    for root in roots:
        yield from visit(root)


def data_seen(nodes: Iterable[Node]) -> dict[str, list[str]]:
    """Return the "task/split" that some artefacts look at, by use."""
    seen: dict[str, set[str]] = {
        use: set() for use in ("learning", "calibration", "selection", "report")
    }
    for node in nodes:
        for examples in node.sees():
            seen[examples.use].add(f"{examples.task}/{examples.split}")
    return {use: sorted(splits) for use, splits in seen.items()}


def _fields(node: Node) -> list[str]:
    return [part.name for part in dataclasses.fields(node) if part.metadata.get("identity", True)]


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a field's value, or what a collection of nodes holds, with the key below the field's name."""
    if isinstance(value, Mapping):
        for position, (key, part) in enumerate(value.items()):
            yield (key if isinstance(key, str) else str(position)), part
    elif isinstance(value, tuple):
        for position, part in enumerate(value):
            yield str(position), part
    else:
        yield "", value


def plain(value: Any) -> Json:
    """Return a field's value as JSON values: records by their identity, dataclasses by their fields."""
    if isinstance(value, Config):
        return value.identity()
    if dataclasses.is_dataclass(value):
        return {part.name: plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple | frozenset):
        return [plain(child) for child in value]
    return value


def fingerprint(recipe: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form, shortened to 32 hexadecimal digits."""
    text = json.dumps(
        recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_json(path: Path) -> Any:
    """Return the value of a JSON file, or None if it is missing or broken."""
    try:
        return decode(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
