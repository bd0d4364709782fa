"""Models whose leaves are coefficients of task vectors: theta = theta_0 + sum_i Lambda_i tau_i.

The composition is one autograd function. Forward adds the scaled vectors up without a graph; backward gets
G = dL/dtheta and returns the inner products <G, tau_i> over each block. So memory beyond the vectors is theta and its
gradient, whatever the number of vectors, and vectors may lie in files that are mapped into memory (spec 6.9).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskvec.training.blocks import Blocks, Layout, Whole
from taskvec.vectors import TaskVector, Tensors

ENTRIES = 2**17  # of a piece that stays in the processor's cache while all vectors are added to it

Vectors = Sequence[Tensors]
LEAF = "coefficients"


class Coefficients:
    """The leaves are the coefficients [n vectors, m blocks], from ``start``; parameters without blocks stay at theta_0.

    Deltas that a vector lacks are zero. Where the base is frozen and the vectors are given, nothing else can train.
    ``half`` rounds as the released code of aTLAS does: see :func:`half_sum`.
    """

    def __init__(
        self,
        base: Tensors,
        vectors: Vectors,
        blocks: Blocks,
        start: float = 0.0,
        *,
        half: bool = False,
    ):
        self.base, self.vectors, self.blocks, self.half = base, list(vectors), blocks, half
        moved = set().union(*self.vectors)
        self.names = [name for name in blocks.names if name in moved]
        first = next(iter(base.values()))
        dtype = torch.promote_types(first.dtype, torch.float32)
        coefficients = torch.full(
            (len(self.vectors), blocks.count), start, device=first.device, dtype=dtype
        )
        self.leaves = {LEAF: coefficients.requires_grad_()}

    @property
    def coefficients(self) -> Tensor:
        """The leaf [n, m]."""
        return self.leaves[LEAF]

    def parameters(self) -> dict[str, Tensor]:
        """Return theta by name, where any vector changes it; differentiable in the coefficients."""
        return self._composed(on_base=True)

    def deltas(self) -> dict[str, Tensor]:
        """Return tau = theta - theta_0, likewise."""
        return self._composed(on_base=False)

    def vector(self) -> TaskVector:
        """Return tau as a task vector, without a graph."""
        with torch.no_grad():
            return TaskVector(self.deltas())

    def _composed(self, *, on_base: bool) -> dict[str, Tensor]:
        if not self.names:
            return {}
        tensors = _Compose.apply(self.coefficients, self, on_base)
        return dict(zip(self.names, tensors, strict=True))


class _Compose(torch.autograd.Function):
    """(coefficients, who holds base, vectors and blocks, whether theta_0 is added) -> one tensor for each name."""

    @staticmethod
    def forward(
        ctx, coefficients: Tensor, owner: Coefficients, on_base: bool
    ) -> tuple[Tensor, ...]:
        ctx.owner, ctx.shape = owner, coefficients.shape
        ctx.set_materialize_grads(False)
        composed = []
        for name in owner.names:
            start = owner.base[name]
            total = start.clone() if on_base else torch.zeros_like(start)
            if owner.half:
                total += half_sum(owner, name, coefficients)
            else:
                _add_all(total, owner, name, coefficients)
            composed.append(total)
        return tuple(composed)

    @staticmethod
    def backward(ctx, *gradients: Tensor | None):
        owner = ctx.owner
        device = owner.coefficients.device
        found = torch.zeros(ctx.shape, dtype=torch.float64, device=device)
        for name, gradient in zip(owner.names, gradients, strict=True):
            if gradient is None:  # the model does not use the parameter
                continue
            layout = owner.blocks.layouts[name]
            if owner.half:
                found += _half_gradient(owner, name, gradient)
                continue
            rows = [row for row, vector in enumerate(owner.vectors) if name in vector]
            deltas = [owner.vectors[row][name] for row in rows]
            found[rows, layout.columns] += inner_products(gradient, deltas, layout)
        return found.to(owner.coefficients.dtype), None, None


def half_sum(owner: Coefficients, name: str, coefficients: Tensor) -> Tensor:
    """Return sum_i Lambda_i tau_i of one parameter as the released code rounds it (spec 6.9), differentiable.

    Vectors are float16 and a float32 coefficient does not widen them, so every product and every partial sum, from the
    first vector to the last, is rounded to float16. The caller adds the sum to the float32 weights.
    """
    layout = owner.blocks.layouts[name]
    total: Tensor | int = 0
    for row, vector in zip(coefficients, owner.vectors, strict=True):
        if name not in vector:
            continue
        spread = layout.spread(row[layout.columns])
        # A 0-d factor leaves the product in float16 by itself
        own = spread if spread.ndim == 0 else spread.half()
        total = total + vector[name].half() * own
    return total


def _half_gradient(owner: Coefficients, name: str, gradient: Tensor) -> Tensor:
    """Return the gradient [n, m] float64 through :func:`half_sum`, one parameter's graph at a time."""
    with torch.enable_grad():
        leaf = owner.coefficients.detach().requires_grad_()
        total = half_sum(owner, name, leaf)
    (found,) = torch.autograd.grad(total, leaf, gradient.to(total.dtype))
    return found.double()


def _add_all(total: Tensor, owner: Coefficients, name: str, coefficients: Tensor) -> None:
    """Add Lambda_i tau_i of all vectors to a contiguous tensor in place."""
    layout = owner.blocks.layouts[name]
    own = coefficients[:, layout.columns]
    moving = own.any(1).tolist()  # zero coefficients leave the tensor as it is, bit for bit
    rows = [row for row, vector in enumerate(owner.vectors) if moving[row] and name in vector]
    if not isinstance(layout, Whole):
        for row in rows:
            delta = owner.vectors[row][name].to(total)
            total.addcmul_(delta, layout.spread(own[row]).to(total))
        return
    scales = own[:, 0].tolist()
    deltas = {row: owner.vectors[row][name].reshape(-1) for row in rows}
    flat = total.view(-1)
    for part in _pieces(flat):
        piece = flat[part]
        for row, delta in deltas.items():
            piece.add_(delta[part].to(piece), alpha=scales[row])


def inner_products(gradient: Tensor, deltas: Sequence[Tensor], layout: Layout) -> Tensor:
    """Return <G, tau_i> over each of a parameter's blocks [n, count] float64, for the deltas of n vectors."""
    if not isinstance(layout, Whole):
        sums = [layout.summed(gradient * delta.to(gradient)) for delta in deltas]
        return torch.stack(sums).double()
    flat, others = gradient.reshape(-1), [delta.reshape(-1) for delta in deltas]
    total = torch.zeros(len(others), dtype=torch.float64, device=gradient.device)
    for part in _pieces(flat):
        piece = flat[part]
        dots = [torch.dot(piece, other[part].to(piece)) for other in others]
        total += torch.stack(dots).double()
    return total.unsqueeze(1)


def _pieces(flat: Tensor) -> list[slice]:
    """Return the pieces of a flat tensor that all vectors pass over in turn: on a CPU as large as its cache holds."""
    size = ENTRIES if flat.device.type == "cpu" else max(1, len(flat))
    return [slice(start, start + size) for start in range(0, len(flat), size)]
