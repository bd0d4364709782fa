"""Task vectors in the basis of their common column space, layer by layer (KnOTS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskvec.merge.piece import Tensors
from taskvec.merge.spectral.linalg import leading_svd
from taskvec.needs import Signed
from taskvec.vectors import LowRank


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


def aligned(layers: Sequence[Layer], base: Tensors, vectors: Sequence[Signed], drop: float, scaled: bool) -> Aligned:
    """Return diag(S) V_t^T of every vector and layer, or V_t^T with S left to the basis (not ``scaled``)."""
    found = Aligned(vectors=[{} for _ in vectors])
    for layer in layers:
        parts = [_Part.of(layer, base, signed) for signed in vectors]
        columns = [part.columns for part in parts if part is not None]
        if not columns:
            continue
        svd = leading_svd(torch.cat(columns, dim=1))
        kept = svd.values > drop
        left, values = svd.left[:, kept], svd.values[kept]
        found.layers.append(layer)
        found.bases[layer.weight] = left if scaled else left * values
        width = base[layer.weight].shape[1] + (layer.bias is not None)
        found.shapes[layer.weight] = torch.empty(len(values), width, device="meta")
        for part, blocks in zip(parts, found.vectors, strict=True):
            if part is not None:
                block = part.projected(left)
                blocks[layer.weight] = (block if scaled else block / values[:, None]).float()
    return found


def returned(blocks: Aligned, merged: Tensors, base: Tensors) -> dict[str, Tensor]:
    """Return U times the merged blocks, under the parameters' own names."""
    found = {}
    for layer in blocks.layers:
        if layer.weight not in merged:
            continue
        whole = (blocks.bases[layer.weight] @ merged[layer.weight].double()).float()
        width = base[layer.weight].shape[1]
        found[layer.weight] = whole[:, :width].contiguous()
        if layer.bias is not None:
            found[layer.bias] = whole[:, width].contiguous()
    return found


@dataclass(frozen=True)
class _Part:
    """One vector's matrix as left [o, r] right [r, i], float64; ``columns`` spans it with the same singular values."""

    left: Tensor
    right: Tensor | None
    columns: Tensor

    @classmethod
    def of(cls, layer: Layer, base: Tensors, signed: Signed) -> _Part | None:
        """Return the part of a vector, None if it leaves the layer at theta_0."""
        present = [name for name in layer.names if name in signed.vector]
        if not present:
            return None
        factors = signed.vector.factors
        if layer.weight in factors and layer.bias not in present:
            return cls._of_factors(factors[layer.weight], signed.sign, layer.bias is not None)
        delta = signed.delta
        zero = torch.zeros_like(base[layer.weight], dtype=torch.float64)
        matrix = delta[layer.weight].double() if layer.weight in present else zero
        if layer.bias is not None:
            column = delta[layer.bias].double() if layer.bias in present else zero[:, 0]
            matrix = torch.cat([matrix, column[:, None]], dim=1)
        return cls(matrix, None, matrix)

    @classmethod
    def _of_factors(cls, factors: LowRank, sign: float, biased: bool) -> _Part:
        left = factors.up.double() * (factors.scale * sign)
        right = factors.down.double()
        if biased:
            right = torch.cat([right, right.new_zeros(len(right), 1)], dim=1)
        # down^T = Q R, so up down = (up R^T) Q^T, and Q's columns are orthonormal
        triangle = torch.linalg.qr(right.T, mode="r").R
        return cls(left, right, left @ triangle.T)

    def projected(self, basis: Tensor) -> Tensor:
        """Return basis^T times the matrix."""
        block = basis.T @ self.left
        return block if self.right is None else block @ self.right
