"""The task vector of whatever was tuned from a base: a model, an adapter, a vector's file; checked against the base."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from taskvec.checkpoints.adapter import Adapter
from taskvec.checkpoints.names import difference, names_of
from taskvec.checkpoints.reading import Checkpoint, Opened, VectorFile, open_checkpoint
from taskvec.errors import UserError
from taskvec.vectors import LowRank, TaskVector, Tensors


class Tunable(Protocol):
    """What of a backbone is asked: where its weights are, and what they compute."""

    @property
    def place(self) -> str:
        """A file, a folder, or a name of the hub."""

    def function(self, description: Any = None) -> Any:
        """Return the settings that say what weights compute, by a model's description (None: its own)."""


def tuned_vector(opened: Opened, backbone: Tunable, weights: Tensors, key: str) -> TaskVector:
    """Return tau = theta - theta_0 under the backbone's own names; ``key`` is the setting that asks for it.

    ``weights`` are theta_0; meta tensors do where only shapes are to be checked. A model's deltas are subtracted at
    every look.

    Raises:
        UserError: if it is not a fine-tuned version of the base.
    """
    if isinstance(opened, VectorFile):
        _check_names(opened.vector, weights, opened.name, key)
        return opened.vector
    if isinstance(opened, Adapter):
        base = open_checkpoint(backbone.place, "backbone")
        vector = _of_adapter(opened, base, weights)
        _check_names(vector, weights, opened.name, key)
        return vector
    _check_function(opened, backbone, key)
    return difference(opened, weights)


def _of_adapter(adapter: Adapter, base: Checkpoint, weights: Tensors) -> TaskVector:
    """Return an adapter's vector; products stay factors where the base stores a matrix as we name it."""
    found = adapter.vector(base.tensors)
    names = names_of(base)
    dense: dict[str, torch.Tensor] = {}
    factors: dict[str, LowRank] = {}
    for stored in found:
        product = found.factors.get(stored)
        ours = list(names.canonical({stored: base.tensors[stored].to("meta")}))
        alone = len(ours) == 1 and product is not None
        if alone and product.like().shape == weights.get(ours[0], product.like()).shape:
            factors[ours[0]] = product
        else:
            dense |= names.canonical({stored: found[stored].float()})
    return TaskVector(dense, {}, factors)


def _check_names(vector: TaskVector, weights: Tensors, label: str, key: str) -> None:
    """Check that a vector changes editable parameters of a base alone.

    Raises:
        UserError: for another name or shape.
    """
    for name in vector:
        if name not in weights:
            raise UserError(
                f"{key}: {label} changes {name}, which is no editable parameter of the base"
            )
        found, wanted = vector.announced(name).shape, weights[name].shape
        if found != wanted:
            raise UserError(
                f"{key}: {label}: {name} has shape {tuple(found)}, the base has {tuple(wanted)}"
            )


def _check_function(tuned: Checkpoint, backbone: Tunable, key: str) -> None:
    """Check that a model computes the function that the base computes: architecture, activation, normalisation.

    Raises:
        UserError: naming the first setting that differs.
    """
    if tuned.config is None:
        return
    ours, theirs = backbone.function(), backbone.function(tuned.config)
    for name, value in ours.items():
        if theirs[name] != value:
            raise UserError(
                f"{key}: {tuned.name} has {name} {theirs[name]!r}, the base has {value!r}"
            )
