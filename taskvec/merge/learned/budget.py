"""The vectors that aTLAS learns coefficients for: all of them, some, random ones, or mixtures of their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskvec.merge.learned import choosing
from taskvec.merge.learned.bases import RandomBasis
from taskvec.needs import Examples, Given, Signed, label_of
from taskvec.training.blocks import Blocks
from taskvec.vectors import Tensors

ROWS = 500  # of a batch of features

Deltas = Sequence[Tensors]


@dataclass(frozen=True)
class Chosen:
    """Vectors, their labels, and what to report of the choice."""

    deltas: Deltas
    labels: Sequence[str]
    report: dict[str, Any] = field(default_factory=dict)

    def some(self, places: Sequence[int]) -> Chosen:
        """Return the vectors at some places."""
        labels = [self.labels[place] for place in places]
        deltas = [self.deltas[place] for place in places]
        return Chosen(deltas, labels, {"chosen": labels})


def chosen(
    merge: Any, base: Tensors, vectors: Sequence[Signed], given: Given, cut: Blocks
) -> Chosen:
    """Return the vectors within a merge's budget."""
    offered = _offered(merge, base, vectors, given)
    if merge.budget is None or merge.budget >= len(offered.deltas):
        return offered
    if merge.choose == "random":
        count = len(offered.deltas)
        return offered.some(choosing.at_random(count, merge.budget, merge.seed_of(given)))
    if merge.choose == "features":
        return offered.some(_by_features(merge, vectors, given))
    slopes = _slopes(merge, offered.deltas, given, cut)
    if merge.choose == "gradient":
        return offered.some(choosing.by_slope(slopes, merge.budget))
    return _mixed(offered, slopes, merge.budget, cut)


def _offered(merge: Any, base: Tensors, vectors: Sequence[Signed], given: Given) -> Chosen:
    """Return the run's vectors, or random ones."""
    if merge.random_bases is None:
        labels = [label_of(signed.expression) for signed in vectors]
        return Chosen(merge.checked(vectors), labels)
    seed, numbers = merge.seed_of(given), range(merge.random_bases)
    bases = [RandomBasis(base, number, seed) for number in numbers]
    return Chosen(bases, [f"random {number}" for number in numbers])


def _mixed(offered: Chosen, slopes: Tensor, budget: int, cut: Blocks) -> Chosen:
    """Return vectors of which the first has in every block the vector of largest slope there, and so on."""
    ranks = choosing.block_ranks(slopes, budget)
    mixed = [choosing.Mixed(offered.deltas, cut, rank) for rank in ranks]
    shares = {}
    for place, label in enumerate(offered.labels):
        taken = ranks == place
        shares[label] = taken.double().mean().item()
    labels = [f"rank {number + 1}" for number in range(budget)]
    return Chosen(mixed, labels, {"share_of_blocks": shares})


def _by_features(merge: Any, vectors: Sequence[Signed], given: Given) -> list[int]:
    """Return the places of the vectors whose own tasks look most like what is learned on."""
    target = _mean_features(given, given.learning.examples)
    sources = []
    for signed in vectors:
        needs = [Examples(task, "train", "calibration") for task in signed.tasks]
        sources.append(_mean_features(given, needs))
    return choosing.by_features(target, sources, merge.budget)


@torch.no_grad()
def _mean_features(given: Given, needs: Sequence[Examples]) -> Tensor:
    """Return the mean over tasks of the mean zero-shot feature [d]."""
    means = []
    for need in needs:
        parts = [given.evaluator.features({}, need, rows) for rows in given[need].batches(ROWS)]
        features = torch.cat(parts)
        means.append(features.mean(0))
    return torch.stack(means).mean(0)


def _slopes(merge: Any, deltas: Deltas, given: Given, cut: Blocks) -> Tensor:
    """Return the gradient at coefficients zero [n, m], summed over the tasks that are learned on."""
    total = torch.zeros(len(deltas), cut.count, dtype=torch.float64)
    for need in merge.gradients(given.scope):
        gradient = given[need].mean
        total += choosing.slopes(gradient, deltas, cut)
    return total
