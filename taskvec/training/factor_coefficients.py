"""LoRA vectors whose factors are composed instead of their products (spec 6.7, for parity with the research code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskvec.errors import UserError
from taskvec.training.blocks import blocks
from taskvec.training.coefficients import Coefficients
from taskvec.vectors import LowRank, TaskVector, Tensors

SPREAD = 5**0.5  # of peft's start of A: kaiming_uniform_ with this slope
UP, DOWN = "up/", "down/"


class FactorCoefficients:
    """theta = theta_0 + s B A with A = A_0 + sum_i lambda_i A_i and B = sum_i lambda'_i B_i, a coefficient a factor.

    A_0 [r, in] is a random start by ``seed``, so B = 0 leaves theta_0 as it is. The product is bilinear in the
    coefficients [n vectors, 2 per parameter], which start at zero; equal ones do not add the vectors up.
    """

    def __init__(self, base: Tensors, vectors: Sequence[TaskVector], seed: int):
        self.base = base
        self.names = _shared_names(vectors)
        self.scales = {name: _shared_scale(name, vectors) for name in self.names}
        starts, factors = self._starts(vectors, seed), [_factors(vector) for vector in vectors]
        shapes = {name: start.shape for name, start in starts.items()}
        self.blocks = blocks("tensor", shapes)
        self.factors = Coefficients(starts, factors, self.blocks)
        self.leaves = self.factors.leaves

    @property
    def coefficients(self) -> Tensor:
        """The leaf [n, m]."""
        return self.factors.coefficients

    def parameters(self) -> dict[str, Tensor]:
        """Return theta by name, where any vector changes it; differentiable in the coefficients."""
        return {name: self.base[name] + delta for name, delta in self.deltas().items()}

    def deltas(self) -> dict[str, Tensor]:
        """Return s B A by name, likewise."""
        return {name: product.delta() for name, product in self._products().items()}

    def vector(self) -> TaskVector:
        """Return s B A as a task vector of factors, without a graph."""
        with torch.no_grad():
            return TaskVector({}, factors=self._products())

    def _products(self) -> dict[str, LowRank]:
        composed = self.factors.parameters()
        products = {}
        for name in self.names:
            up, down = composed[UP + name], composed[DOWN + name]
            products[name] = LowRank(up, down, self.scales[name])
        return products

    def _starts(self, vectors: Sequence[TaskVector], seed: int) -> dict[str, Tensor]:
        """Return zero for each B and a random A_0 for each A."""
        generator = torch.Generator().manual_seed(seed)
        starts = {}
        for name in self.names:
            like = vectors[0].factors[name]
            drawn = torch.empty(like.down.shape)
            torch.nn.init.kaiming_uniform_(drawn, a=SPREAD, generator=generator)
            starts[UP + name] = torch.zeros_like(like.up)
            starts[DOWN + name] = drawn.to(like.down)
        return starts


def _factors(vector: TaskVector) -> dict[str, Tensor]:
    found = {}
    for name, product in vector.factors.items():
        found[UP + name], found[DOWN + name] = product.up, product.down
    return found


def _shared_names(vectors: Sequence[TaskVector]) -> list[str]:
    """Return the parameters whose factors all vectors hold.

    Raises:
        UserError: if a vector is not made of factors, or of other ones.
    """
    names = list(vectors[0].factors)
    for vector in vectors:
        if set(vector) != set(names) or list(vector.factors) != names or not names:
            raise UserError(
                "merge.lora=factor composes the factors of LoRA vectors; set finetune.select=lora, or merge.lora=delta"
            )
    return names


def _shared_scale(name: str, vectors: Sequence[TaskVector]) -> float:
    """Return alpha / r of a parameter.

    Raises:
        UserError: if vectors have different ones, or different ranks.
    """
    kinds = {(vector.factors[name].scale, len(vector.factors[name].down)) for vector in vectors}
    if len(kinds) > 1:
        raise UserError(
            f"merge.lora=factor: {name} has factors of different rank or scale; set merge.lora=delta"
        )
    ((scale, _),) = kinds
    return scale
