"""Task vectors in the basis of their common column space, layer by layer (KnOTS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskvec.merge.pieces import working_dtype
from taskvec.merge.spectral.linalg import leading_svd
from taskvec.needs import Signed
from taskvec.vectors import LowRank, Tensors


@dataclass(frozen=True)
class Layer:
    """A matrix by name, and its bias that becomes a column of it."""

    weight: str
    bias: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that the layer holds."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass
class Aligned:
    """The vectors' blocks [k, i] by weight's name, bases [o, k] that take them back, and empty blocks of the shape."""

    layers: list[Layer] = field(default_factory=list)
    bases: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, Tensor] = field(default_factory=dict)
    vectors: list[dict[str, Tensor]] = field(default_factory=list)


def aligned(
    layers: Sequence[Layer], base: Tensors, vectors: Sequence[Signed], drop: float, scaled: bool
) -> Aligned:
    """Return diag(S) V_t^T of every vector and layer, or V_t^T with S left to the basis (not ``scaled``)."""
    found = Aligned(vectors=[{} for _ in vectors])
    for layer in layers:
        parts = [_part(layer, base, signed) for signed in vectors]
        if any(part is not None for part in parts):
            _align(found, layer, parts, drop, scaled)
    return found


def returned(blocks: Aligned, merged: Tensors, base: Tensors) -> dict[str, Tensor]:
    """Return U times the merged blocks, under the parameters' own names."""
    found = {}
    for layer in blocks.layers:
        if layer.weight not in merged:
            continue
        block = merged[layer.weight]
        whole = blocks.bases[layer.weight] @ block.double()
        whole = whole.to(block.dtype)
        width = base[layer.weight].shape[1]
        found[layer.weight] = whole[:, :width].contiguous()
        if layer.bias is not None:
            found[layer.bias] = whole[:, width].contiguous()
    return found


@dataclass(frozen=True)
class _Part:
    """One vector's matrix as left [o, r] right [r, i], float64; ``columns`` spans it with the same singular values.

    ``dtype`` is that of its blocks.
    """

    left: Tensor
    right: Tensor | None
    columns: Tensor
    dtype: torch.dtype

    def projected(self, basis: Tensor) -> Tensor:
        """Return basis^T times the matrix."""
        block = basis.T @ self.left
        return block if self.right is None else block @ self.right


def _align(
    found: Aligned, layer: Layer, parts: Sequence[_Part | None], drop: float, scaled: bool
) -> None:
    """Add a layer: the basis of all its parts' columns, and each part in it."""
    present = [part.columns for part in parts if part is not None]
    together = leading_svd(torch.cat(present, dim=1))
    svd = together.first(int((together.values > drop).sum()))
    scales = svd.values.unsqueeze(1)
    name = layer.weight
    found.layers.append(layer)
    found.bases[name] = svd.left if scaled else svd.left * svd.values
    for part, blocks in zip(parts, found.vectors, strict=True):
        if part is None:
            continue
        block = part.projected(svd.left)
        if not scaled:
            block = block / scales
        blocks[name] = block.to(part.dtype)
        found.shapes[name] = block.to("meta")


def _part(layer: Layer, base: Tensors, signed: Signed) -> _Part | None:
    """Return a vector's part in a layer, None if it leaves the layer at theta_0."""
    present = [name for name in layer.names if name in signed.vector]
    if not present:
        return None
    factors = signed.vector.factors
    if layer.weight in factors and layer.bias not in present:
        return _part_of_factors(factors[layer.weight], signed.sign, layer.bias is not None)
    delta = signed.delta
    dtype = working_dtype([delta[name].dtype for name in present])
    weight = base[layer.weight]
    matrix = torch.zeros_like(weight, dtype=torch.float64)
    if layer.weight in present:
        matrix = delta[layer.weight].double()
    if layer.bias is not None:
        column = matrix.new_zeros(len(weight))
        if layer.bias in present:
            column = delta[layer.bias].double()
        matrix = torch.cat([matrix, column.unsqueeze(1)], dim=1)
    return _Part(matrix, None, matrix, dtype)


def _part_of_factors(factors: LowRank, sign: float, biased: bool) -> _Part:
    left = factors.up.double() * (factors.scale * sign)
    right = factors.down.double()
    if biased:
        column = right.new_zeros(len(right), 1)
        right = torch.cat([right, column], dim=1)
    # down^T = Q R, so up down = (up R^T) Q^T, and Q's columns are orthonormal
    triangle = torch.linalg.qr(right.T, mode="r").R
    return _Part(left, right, left @ triangle.T, working_dtype([factors.up.dtype]))
