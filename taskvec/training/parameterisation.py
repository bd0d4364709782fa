"""How the trained leaves make weights: the weights themselves, their deltas, or low-rank factors of the deltas.

Each starts from theta_0 or, with ``start``, from theta_0 + that vector; what it changes outside the trained names stays
as it is there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from taskvec.vectors import LowRank, TaskVector, Tensors


class Weights:
    """The leaves are the weights; weight decay pulls them towards zero (task-arithmetic papers)."""

    def __init__(self, base: Tensors, names: Sequence[str], start: Tensors | None = None):
        self.base, self.names = base, list(names)
        self.start: dict[str, Tensor] = {}  # deltas to begin with
        self.fixed: dict[str, Tensor] = {}  # deltas that are not trained
        for name in start or ():
            part = self.start if name in self.names else self.fixed
            part[name] = start[name].to(base[name])
        self.leaves = self._initial()
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def _initial(self) -> dict[str, Tensor]:
        """Return the leaves at the start."""
        leaves = {}
        for name in self.names:
            leaves[name] = self.base[name].clone()
            if name in self.start:
                leaves[name] += self.start[name]
        return leaves

    def at(self, leaves: Mapping[str, Tensor]) -> Self:
        """Return the same with the values of other leaves, of which it takes its own by name."""
        other = copy.copy(self)
        other.leaves = {name: leaves[name].to(leaf) for name, leaf in self.leaves.items()}
        return other

    def parameters(self) -> dict[str, Tensor]:
        """Return theta by name, where it is not theta_0."""
        fixed = {name: self.base[name] + delta for name, delta in self.fixed.items()}
        return self.leaves | fixed

    def deltas(self) -> dict[str, Tensor]:
        """Return tau = theta - theta_0."""
        trained = {name: leaf - self.base[name] for name, leaf in self.leaves.items()}
        return trained | self.fixed

    def vector(self) -> TaskVector:
        """Return tau as a task vector, without a graph."""
        return TaskVector({name: delta.detach() for name, delta in self.deltas().items()})


class Deltas(Weights):
    """The leaves are the deltas; weight decay pulls the weights towards theta_0 (TAK, spec 3.4)."""

    def _initial(self) -> dict[str, Tensor]:
        leaves = {}
        for name in self.names:
            leaves[name] = torch.zeros_like(self.base[name])
            if name in self.start:
                leaves[name] += self.start[name]
        return leaves

    def parameters(self) -> dict[str, Tensor]:
        """Return theta = theta_0 + tau."""
        return {name: self.base[name] + delta for name, delta in self.deltas().items()}

    def deltas(self) -> dict[str, Tensor]:
        """Return tau."""
        return self.leaves | self.fixed


class Factors(Deltas):
    """tau = (alpha / r) B A with B [out, r] from zero and A [r, in] from peft's start (Hu et al., arXiv 2106.09685).

    With a start tau_0 it is tau_0 + (alpha / r) B A.
    """

    def __init__(
        self,
        base: Tensors,
        names: Sequence[str],
        rank: int,
        alpha: float,
        seed: int,
        start: Tensors | None = None,
    ):
        self.rank, self.scale, self.seed = rank, alpha / rank, seed
        super().__init__(base, names, start)

    def _initial(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        leaves = {}
        for name in self.names:
            weight = self.base[name]
            rows, columns = weight.shape
            down = torch.empty(self.rank, columns, dtype=weight.dtype)
            torch.nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            leaves[f"{name}/A"] = down.to(weight.device)
            leaves[f"{name}/B"] = weight.new_zeros(rows, self.rank)
        return leaves

    def factors(self) -> dict[str, LowRank]:
        """Return B, A and alpha / r of each trained name."""
        factors = {}
        for name in self.names:
            up, down = self.leaves[f"{name}/B"], self.leaves[f"{name}/A"]
            factors[name] = LowRank(up, down, self.scale)
        return factors

    def deltas(self) -> dict[str, Tensor]:
        """Return (alpha / r) B A, on top of the start."""
        deltas = {}
        for name, product in self.factors().items():
            deltas[name] = product.delta()
            if name in self.start:
                deltas[name] = deltas[name] + self.start[name]
        return deltas | self.fixed

    def vector(self) -> TaskVector:
        """Return tau as a task vector, without a graph: factors where nothing was trained before."""
        if self.start:
            return super().vector()
        factors = {}
        for name, product in self.factors().items():
            factors[name] = LowRank(product.up.detach(), product.down.detach(), self.scale)
        return TaskVector(self.fixed, factors=factors)
