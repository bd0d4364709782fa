"""How the trained leaves make weights: the weights themselves, their deltas, or low-rank factors of the deltas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Weights:
    """The leaves are the weights, from theta_0; weight decay pulls them towards zero (task-arithmetic papers)."""

    def __init__(self, base: Mapping[str, Tensor], names: Sequence[str]):
        self.base = base
        self.leaves = {name: base[name].clone().requires_grad_() for name in names}

    def parameters(self) -> dict[str, Tensor]:
        """Return theta by name for the trained names."""
        return dict(self.leaves)

    def deltas(self) -> dict[str, Tensor]:
        """Return tau = theta - theta_0."""
        return {name: leaf - self.base[name] for name, leaf in self.leaves.items()}


class Deltas(Weights):
    """The leaves are the deltas, from zero; weight decay pulls the weights towards theta_0 (TAK, spec 3.4)."""

    def __init__(self, base: Mapping[str, Tensor], names: Sequence[str]):
        self.base = base
        self.leaves = {name: torch.zeros_like(base[name]).requires_grad_() for name in names}

    def parameters(self) -> dict[str, Tensor]:
        """Return theta = theta_0 + tau."""
        return {name: self.base[name] + leaf for name, leaf in self.leaves.items()}

    def deltas(self) -> dict[str, Tensor]:
        """Return tau."""
        return dict(self.leaves)


class LowRank(Deltas):
    """tau = (alpha / r) B A with B [out, r] from zero and A [r, in] from peft's start (Hu et al., arXiv 2106.09685)."""

    def __init__(self, base: Mapping[str, Tensor], names: Sequence[str], rank: int, alpha: float, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.base, self.scale, self.names = base, alpha / rank, list(names)
        self.leaves = {}
        for name in names:
            weight = base[name]
            down = torch.empty(rank, weight.shape[1], dtype=weight.dtype)
            torch.nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            self.leaves[f"{name}/A"] = down.to(weight.device).requires_grad_()
            self.leaves[f"{name}/B"] = weight.new_zeros(weight.shape[0], rank).requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        """Return theta_0 + (alpha / r) B A."""
        return {name: self.base[name] + delta for name, delta in self.deltas().items()}

    def deltas(self) -> dict[str, Tensor]:
        """Return (alpha / r) B A."""
        return {name: self.scale * self.leaves[f"{name}/B"] @ self.leaves[f"{name}/A"] for name in self.names}
