"""The model linearised at theta_0: one forward-mode product per batch gives features and their derivative along tau.

Ortiz-Jimenez et al., NeurIPS 2023, arXiv 2305.12827 (spec 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import jvp

from taskvec.training.dual import differentiate
from taskvec.vectors import Tensors

if TYPE_CHECKING:
    from taskvec.models.base import Model


def jvp_features(
    model: Model, direction: Tensors, inputs: Tensor, head: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return f(x; theta_0) and J(x) tau, both [N, d], for tau = ``direction`` (absent parameters: zero).

    The linearised features are g(x; theta_0 + alpha tau) = f + alpha J tau for every alpha. The derivative is of the
    family's features, CLIP's at unit length.
    """
    return jvp_along(lambda parameters: model.features(parameters, inputs, head), model, direction)


def jvp_along(
    function: Callable[[Tensors], Tensor], model: Model, direction: Tensors
) -> tuple[Tensor, Tensor]:
    """Return function(theta_0) and its derivative along tau = ``direction`` (absent parameters: zero)."""
    if not direction:
        value = function(model.parameters)
        return value, torch.zeros_like(value)
    base = {name: model.parameters[name] for name in direction}
    tangents = {name: delta.to(base[name]) for name, delta in direction.items()}
    return jvp(function, (base,), (tangents,))


def along(
    model: Model, directions: Sequence[Tensors]
) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """Return the function of (inputs, head) that gives f(x; theta_0) [N, d] and J(x) tau_t [T, N, d] for T directions.

    The derivatives share one evaluation of the model at theta_0, about 1 + 2T forward passes in all. The directions are
    stacked once for all batches.
    """
    names = list(dict.fromkeys(name for direction in directions for name in direction))
    base = {name: model.parameters[name] for name in names}
    stacked = {}
    for name, parameter in base.items():
        zero = torch.zeros_like(parameter)
        deltas = [
            direction[name].to(zero) if name in direction else zero for direction in directions
        ]
        stacked[name] = torch.stack(deltas)

    def product(inputs: Tensor, head: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features, derivatives = differentiate(
            lambda moved: model.features(moved, inputs, head), base, stacked
        )
        if derivatives is None:
            derivatives = features.new_zeros(len(directions), *features.shape)
        return features, derivatives

    return product


def exact(x: Tensor) -> Tensor:
    """Return bfloat16 features in float32, for the head."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
