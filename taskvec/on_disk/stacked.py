"""Models that are made of layers of others, one slice after the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from taskvec.checkpoints.beside import shown
from taskvec.checkpoints.reading import Checkpoint, Opened, open_any, open_checkpoint
from taskvec.errors import UserError
from taskvec.on_disk.mergekit.parameters import LAYER, layer_of, stands_before

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")  # keys of configs


@dataclass(frozen=True)
class Part:
    """The layers first, ..., last - 1 of a model."""

    model: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{shown(self.model)} [{self.first}, {self.last})"


@dataclass(frozen=True)
class Stack:
    """Layers of models, one part after the other; what stands before them is the first model's, the rest the last's."""

    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


Place = str | Stack


def open_place(place: Place, key: str = "models") -> Opened:
    """Open a model, or a stack of parts of models.

    Raises:
        UserError: if one cannot be opened, or lacks a layer.
    """
    return open_any(place, key) if isinstance(place, str) else _stacked(place, key)


def open_base(place: Place) -> Checkpoint:
    """Open theta_0.

    Raises:
        UserError: if it is no model.
    """
    return open_checkpoint(place) if isinstance(place, str) else _stacked(place, "base")


def _stacked(stack: Stack, key: str) -> Checkpoint:
    """Return the model that a stack makes; its tensors stay in their files.

    Raises:
        UserError: if a part lacks a layer.
    """
    opened = {part.model: open_checkpoint(part.model, key) for part in stack.parts}
    tensors: dict[str, Tensor] = {}
    first, last = opened[stack.parts[0].model], opened[stack.parts[-1].model]
    for name, tensor in first.tensors.items():
        if layer_of(name) is None and stands_before(name):
            tensors[name] = tensor
    depth = 0
    for part in stack.parts:
        tensors |= _layers(opened[part.model], part, depth)
        depth += part.last - part.first
    for name, tensor in last.tensors.items():
        if layer_of(name) is None and not stands_before(name):
            tensors[name] = tensor
    places: list[Path] = []
    for checkpoint in opened.values():
        places += checkpoint.places
    config = dict(first.config or {})
    for name in DEPTHS:
        if name in config:
            config[name] = depth
    return Checkpoint(str(stack), first.kind, tensors, config, first.source, tuple(places))


def _layers(checkpoint: Checkpoint, part: Part, depth: int) -> dict[str, Tensor]:
    """Return a part's tensors, numbered from ``depth`` on.

    Raises:
        UserError: if it lacks a layer.
    """
    found: dict[str, Tensor] = {}
    left = set(range(part.first, part.last))
    for name, tensor in checkpoint.tensors.items():
        layer = layer_of(name)
        if layer is None or not part.first <= layer < part.last:
            continue
        left.discard(layer)
        found[_renumbered(name, depth + layer - part.first)] = tensor
    if left:
        raise UserError(f"{part.model} has no layer {min(left)}, which layer_range {part} asks for")
    return found


def _renumbered(name: str, layer: int) -> str:
    return LAYER.sub(lambda match: f"{match[1]}{match[2]}.{layer}.", name, count=1)


def depth_of(config: dict[str, Any] | None) -> int | None:
    """Return the number of layers that a config speaks of."""
    for name in DEPTHS:
        value = (config or {}).get(name)
        if isinstance(value, int):
            return value
    return None
