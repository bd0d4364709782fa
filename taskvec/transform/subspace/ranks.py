"""How many directions each layer of each task keeps (spec 1.4 and 1.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Allocation = Literal["model", "layer", "uniform"]
Ranks: TypeAlias = dict[str, int]  # by layer
Spectra: TypeAlias = Mapping[str, Tensor]  # by layer, singular values, descending [R]

MOST_PRUNED = 1.5  # no task loses more than this multiple of what is pruned on average
SMALLEST = 1e-300  # a layer that sees nothing has only zeros


def rounded_rank(full: int, ratio: float) -> int:
    """Return max(1, round(R * ratio)), halves to the even number, as the authors do."""
    return max(1, round(full * ratio))


def uniform(sizes: Mapping[str, int], ratio: float) -> Ranks:
    """Return the ranks of one task whose layers, of full rank ``sizes``, all keep the same share."""
    ranks = {}
    for layer, full in sizes.items():
        ranks[layer] = rounded_rank(full, ratio)
    return ranks


def allocate(
    spectra: Mapping[str, Spectra], ratio: float, allocation: Allocation
) -> dict[str, Ranks]:
    """Return the ranks of several tasks, by task and layer, from the spectra of their W_t C_t.

    "layer": :func:`greedy` among the tasks in each layer; "model": one share for all layers of a task, the mean of
    what "layer" keeps, weighted by R; "uniform": ``ratio`` everywhere.
    """
    tasks = list(spectra)
    allocated: dict[str, Ranks] = {task: {} for task in tasks}
    for layer in spectra[tasks[0]]:
        of_layer = [spectra[task][layer] for task in tasks]
        for task, rank in zip(tasks, greedy(of_layer, ratio), strict=True):
            allocated[task][layer] = rank
    finish = {"layer": _at_least_one, "model": _averaged, "uniform": _uniform}[allocation]
    ranks = {}
    for task in tasks:
        sizes = {layer: len(values) for layer, values in spectra[task].items()}
        ranks[task] = finish(allocated[task], sizes, ratio)
    return ranks


def _at_least_one(allocated: Ranks, sizes: Mapping[str, int], ratio: float) -> Ranks:
    return {layer: max(1, rank) for layer, rank in allocated.items()}


def _averaged(allocated: Ranks, sizes: Mapping[str, int], ratio: float) -> Ranks:
    kept = sum(allocated.values())
    return uniform(sizes, kept / sum(sizes.values()))


def _uniform(allocated: Ranks, sizes: Mapping[str, int], ratio: float) -> Ranks:
    return uniform(sizes, ratio)


def greedy(spectra: Sequence[Tensor], ratio: float) -> list[int]:
    """Return the rank of each model in one layer: the smallest sigma_j / sigma_1 of all models are dropped first.

    ``spectra`` are descending [R]. The total is the largest below ``ratio`` * models * R, unless every model has lost
    1.5 times its share already; of equal values the first model's is dropped. As sequences are sorted, this minimises
    the sum over models of any increasing function of the dropped values.
    """
    models = len(spectra)
    full = len(spectra[0])
    average = full - round(full * ratio)
    most = min(full, round(MOST_PRUNED * average))  # that one model may lose
    candidates = []
    for values in spectra:
        relative = values / values[0].clamp(min=SMALLEST)
        candidates.append(relative.flip(0)[:most])
    # The sort is stable, so that of equal values the first model's go first, and within a model the last ones.
    order = torch.argsort(torch.cat(candidates), stable=True)
    dropped = order[: _to_drop(models * full, ratio)]
    owners = dropped // max(1, most)
    lost = torch.bincount(owners, minlength=models)
    return [full - count for count in lost.tolist()]


def _to_drop(total: int, ratio: float) -> int:
    """Return how many of ``total`` values are dropped until the kept share lies below the ratio."""
    kept = total
    while kept > 0 and kept / total >= ratio:
        kept -= 1
    return total - kept
