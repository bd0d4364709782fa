"""How the trained leaves make weights: the weights themselves, their deltas, or low-rank factors of the deltas.

Each starts from theta_0 or, with ``start``, from theta_0 + that vector; what it changes outside the trained names stays
as it is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taskvec.vectors import LowRank as Product
from taskvec.vectors import TaskVector


class Weights:
    """The leaves are the weights; weight decay pulls them towards zero (task-arithmetic papers)."""

    def __init__(self, base: Mapping[str, Tensor], names: Sequence[str], start: Mapping[str, Tensor] | None = None):
        self.base, self.names = base, list(names)
        given = {name: delta.to(base[name]) for name, delta in (start or {}).items()}
        self.start = {name: given.pop(name) for name in names if name in given}
        self.fixed = given  # deltas that are not trained
        self.leaves = {name: leaf.requires_grad_() for name, leaf in self._initial()}

    def _initial(self) -> list[tuple[str, Tensor]]:
        """Return the leaves' names and start values."""
        weights = []
        for name in self.names:
            weight = self.base[name].clone()
            weights.append((name, weight + self.start[name] if name in self.start else weight))
        return weights

    def parameters(self) -> dict[str, Tensor]:
        """Return theta by name, where it is not theta_0."""
        return dict(self.leaves) | self._fixed_weights()

    def deltas(self) -> dict[str, Tensor]:
        """Return tau = theta - theta_0."""
        return {name: leaf - self.base[name] for name, leaf in self.leaves.items()} | self.fixed

    def vector(self) -> TaskVector:
        """Return tau as a task vector, without a graph."""
        return TaskVector({name: delta.detach() for name, delta in self.deltas().items()})

    def _fixed_weights(self) -> dict[str, Tensor]:
        return {name: self.base[name] + delta for name, delta in self.fixed.items()}


class Deltas(Weights):
    """The leaves are the deltas; weight decay pulls the weights towards theta_0 (TAK, spec 3.4)."""

    def _initial(self) -> list[tuple[str, Tensor]]:
        deltas = []
        for name in self.names:
            zero = torch.zeros_like(self.base[name])
            deltas.append((name, zero + self.start[name] if name in self.start else zero))
        return deltas

    def parameters(self) -> dict[str, Tensor]:
        """Return theta = theta_0 + tau."""
        return {name: self.base[name] + delta for name, delta in self.deltas().items()}

    def deltas(self) -> dict[str, Tensor]:
        """Return tau."""
        return dict(self.leaves) | self.fixed


class LowRank(Deltas):
    """tau = (alpha / r) B A with B [out, r] from zero and A [r, in] from peft's start (Hu et al., arXiv 2106.09685).

    With a start tau_0 it is tau_0 + (alpha / r) B A.
    """

    def __init__(  # noqa: PLR0913 (what shapes the factors)
        self,
        base: Mapping[str, Tensor],
        names: Sequence[str],
        rank: int,
        alpha: float,
        seed: int,
        start: Mapping[str, Tensor] | None = None,
    ):
        self.rank, self.scale, self.seed = rank, alpha / rank, seed
        super().__init__(base, names, start)

    def _initial(self) -> list[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        factors = []
        for name in self.names:
            weight = self.base[name]
            down = torch.empty(self.rank, weight.shape[1], dtype=weight.dtype)
            torch.nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            factors.append((f"{name}/A", down.to(weight.device)))
            factors.append((f"{name}/B", weight.new_zeros(weight.shape[0], self.rank)))
        return factors

    def factors(self) -> dict[str, Product]:
        """Return B, A and alpha / r of each trained name."""
        return {name: Product(self.leaves[f"{name}/B"], self.leaves[f"{name}/A"], self.scale) for name in self.names}

    def deltas(self) -> dict[str, Tensor]:
        """Return (alpha / r) B A, on top of the start."""
        deltas = {}
        for name, product in self.factors().items():
            delta = product.delta()
            deltas[name] = self.start[name] + delta if name in self.start else delta
        return deltas | self.fixed

    def vector(self) -> TaskVector:
        """Return tau as a task vector, without a graph: factors where nothing was trained before."""
        if self.start:
            return super().vector()
        factors = {}
        for name, product in self.factors().items():
            factors[name] = Product(product.up.detach(), product.down.detach(), product.scale)
        return TaskVector(self.fixed, factors=factors)
