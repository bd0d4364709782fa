"""The nodes of the computation graph: what an artefact is made from determines its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.runner.stages import version

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.runner.workspace import Workspace


@dataclass(frozen=True)
class Content:
    """What an artefact holds: tensors by name, and JSON values."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Artefact:
    """A node: its kind, the settings it depends on, its inputs, and how it is computed.

    ``spec`` holds JSON values only. ``label`` is for people and is no part of the identity.
    """

    kind: str
    label: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, Artefact]
    compute: Callable[[Workspace, Artefact], Content]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that determines the result: kind, code version, settings, the inputs' fingerprints."""
        inputs = {name: node.fingerprint for name, node in self.inputs.items()}
        return {"kind": self.kind, "version": version(f"stage/{self.kind}"), "spec": dict(self.spec), "inputs": inputs}

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the recipe, shortened to 32 hexadecimal digits."""
        return fingerprint(self.recipe)

    def walk(self) -> Iterator[Artefact]:
        """Yield every artefact below this one and then itself, each once, inputs before what needs them."""
        seen: set[str] = set()

        def visit(node: Artefact) -> Iterator[Artefact]:
            if node.fingerprint in seen:
                return
            seen.add(node.fingerprint)
            for child in node.inputs.values():
                yield from visit(child)
            yield node

        yield from visit(self)


def fingerprint(recipe: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form, shortened to 32 hexadecimal digits."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_json(path: Path) -> Any:
    """Return the value of a JSON file, or None if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
