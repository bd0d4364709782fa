"""Penalties on the drift that a task vector causes on other tasks, for the training loop.

Adding tau moves the features of task t by J tau: mean ||J tau||^2 = tau^T G_t tau (spec 3.1). ``penalty`` takes G from
a stored curvature and needs no data; ``drift`` measures it on images of the other tasks (tau-Jp, Yoshida et al.).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from taskvec.training.linearise import jvp_features
from taskvec.training.schedule import PenaltySettings
from taskvec.vectors import Tensors

if TYPE_CHECKING:
    from taskvec.models.base import Model
    from taskvec.statistics.blocks import Block
    from taskvec.statistics.curvature_value import Curvature

Value = Callable[[int, Tensors], Tensor]  # of step and deltas
PROJECTION = "projection"  # the role of the layer that writes the features


def penalty(
    curvature: Curvature | Sequence[tuple[float, Curvature]],
    deltas: Tensors,
    *,
    full_scale: float = 1.0,
    projection_scale: float = 1.0,
) -> Tensor:
    """Return tau^T G tau, a scalar in the deltas' dtype, differentiable once.

    L = sum_layers tr(B [dW|db] A [dW|db]^T) + projection_scale * L_projection + full_scale * sum_vectors d^T F d
    (spec 3.3), the layer terms sum D (U_B^T dW U_A)^2 for EKFAC and sum D d^2 for the diagonal. ``curvature`` is one
    task's or the merged one, or the pairs (weight, curvature) of an exact sum over tasks. ``deltas`` are by canonical
    parameter name; an absent one is zero, and those without a block (positions, patches, embeddings) add nothing.

    Raises:
        ValueError: for a delta whose shape is not that of its block.
    """
    if not deltas:
        return torch.zeros(())
    first = next(iter(deltas.values()))
    terms = [first.new_zeros(())]
    for weight, part in curvature if isinstance(curvature, Sequence) else [(1.0, curvature)]:
        for name, block in part.layers.items():
            scale = weight * (projection_scale if part.roles[name] == PROJECTION else 1.0)
            delta = layer_delta(deltas, name, block, name in part.biased)
            if scale and delta is not None:
                terms.append(scale * quadratic(block, delta, name))
        for name, block in part.vectors.items():
            if weight * full_scale and name in deltas:
                terms.append(weight * full_scale * quadratic(block, deltas[name], name))
    return torch.stack(terms).sum()


def layer_delta(deltas: Tensors, name: str, block: Block, biased: bool) -> Tensor | None:
    """Return [dW | db] [out, in + 1] of a layer with an editable bias, else dW [out, in]; None if neither moved."""
    weight = deltas.get(f"{name}.weight")
    bias = deltas.get(f"{name}.bias") if biased else None
    if not biased or (weight is None and bias is None):
        return weight
    if weight is None:
        weight = bias.new_zeros(len(bias), block.shape[1] - 1)
    if bias is None:
        bias = weight.new_zeros(len(weight))
    return torch.cat([weight, bias.unsqueeze(1)], dim=1)


def quadratic(block: Block, delta: Tensor, name: str = "delta") -> Tensor:
    """Return <d, H d>, whose gradient 2 H d is known once the value is: one product with H serves both.

    Raises:
        ValueError: naming the parameter if its shape is not that of the block.
    """
    if delta.shape != block.shape:
        raise ValueError(
            f"{name}: a change of shape {list(delta.shape)}, but a curvature for {list(block.shape)}"
        )
    return _Quadratic.apply(delta, block)


class _Quadratic(torch.autograd.Function):
    """<d, H d> for symmetric H."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, block: Block) -> Tensor:
        product = block.matmul(delta)
        ctx.save_for_backward(product)
        return (delta * product).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (product,) = ctx.saved_tensors
        return 2 * grad * product, None


def drift(model: Model, deltas: Tensors, inputs: Tensor, head: Tensor | None = None) -> Tensor:
    """Return mean_x ||J(x) tau||^2 over a batch of decoded examples: the data-dependent penalty tau-Jp (spec 3.4)."""
    moved = jvp_features(model, deltas, inputs, head)[1]
    moved = moved.to(torch.promote_types(moved.dtype, torch.float32))
    return moved.square().sum(1).mean()


def regulariser(value: Value, settings: PenaltySettings) -> Value:
    """Return (step, deltas) -> strength(step) * value(step, deltas); steps of strength 0 compute nothing."""

    def term(step: int, deltas: Tensors) -> Tensor:
        strength = settings.strength(step)
        found = strength * value(step, deltas) if strength else None
        if found is None or not found.requires_grad:
            # without a block for anything that is trained there is no graph, and the loop wants one
            return torch.zeros((), requires_grad=True)
        return found

    return term
