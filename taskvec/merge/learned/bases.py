"""Random bases in place of task vectors, for comparison (aTLAS, spec 6.8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from taskvec.training.batches import generator
from taskvec.vectors import Tensors


class RandomBasis(Mapping):
    """N(mean, std) of every pre-trained tensor, drawn again at every look by (seed, number, position of the name)."""

    def __init__(self, base: Tensors, number: int, seed: int):
        self.base, self.number, self.seed = base, number, seed
        self.positions = {name: position for position, name in enumerate(sorted(base))}

    def __getitem__(self, name: str) -> Tensor:
        weights = self.base[name]
        stream = self.number * len(self.positions) + self.positions[name]
        noise = torch.randn(weights.shape, generator=generator(self.seed, stream))
        spread = weights.float().std(unbiased=False)
        return (weights.float().mean() + spread * noise.to(weights.device)).to(weights)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)
