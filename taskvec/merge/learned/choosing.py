"""Which b of n vectors to learn coefficients for: scores of vectors, and vectors whose blocks come from several.

At coefficients zero the gradient of any loss with respect to lambda_i^(j) is <dL/d theta_0^(j), tau_i^(j)>, so one
backward pass through the base serves any number of vectors, which are streamed (spec 6.6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.training.blocks import Blocks
from taskvec.training.coefficients import inner_products
from taskvec.vectors import Tensors


def slopes(gradient: Tensors, vectors: Sequence[Tensors], blocks: Blocks) -> Tensor:
    """Return dL/d lambda [n, m] at zero, given dL/d theta_0 by name; parameters without a gradient count as zero."""
    found = torch.zeros(len(vectors), blocks.count, dtype=torch.float64)
    for name, layout in blocks.layouts.items():
        if name not in gradient:
            continue
        slope = gradient[name]
        for row, vector in enumerate(vectors):
            if name not in vector:
                continue
            delta = vector[name]
            products = inner_products(slope, [delta], layout)
            found[row, layout.columns] += products[0].cpu()
    return found


def highest(scores: Tensor, budget: int) -> list[int]:
    """Return the positions of the highest scores [n], best first; ties go to the first."""
    order = scores.argsort(descending=True, stable=True)
    return order[:budget].tolist()


def by_slope(found: Tensor, budget: int) -> list[int]:
    """Return the vectors of highest sum_j |dL/d lambda^(j)|, best first."""
    return highest(found.abs().sum(1), budget)


def by_features(target: Tensor, sources: Sequence[Tensor], budget: int) -> list[int]:
    """Return the sources whose mean features [d] have the highest cosine with the target's, best first."""
    cosines = torch.stack([F.cosine_similarity(source, target, dim=0) for source in sources])
    return highest(cosines, budget)


def at_random(count: int, budget: int, seed: int) -> list[int]:
    """Return distinct positions below ``count``, drawn by a seed."""
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return drawn[:budget].tolist()


def block_ranks(found: Tensor, budget: int) -> Tensor:
    """Return for each rank and block the vector of that rank by |dL/d lambda^(j)| [b, m] int64."""
    order = found.abs().argsort(dim=0, descending=True, stable=True)
    return order[:budget]


class Mixed(Mapping):
    """A vector whose every block is that of some vector: ``source`` [m] int64 says whose."""

    def __init__(self, vectors: Sequence[Tensors], blocks: Blocks, source: Tensor):
        self.vectors = vectors
        self.source: dict[str, int] = {}
        for name, layout in blocks.layouts.items():
            self.source[name] = int(source[layout.first])
        self.names = [name for name, number in self.source.items() if name in vectors[number]]

    def __getitem__(self, name: str) -> Tensor:
        return self.vectors[self.source[name]][name]

    def __contains__(self, name: object) -> bool:
        return name in self.source and name in self.vectors[self.source[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
