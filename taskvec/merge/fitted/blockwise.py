"""RegMean++'s pass through a model from below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from taskvec.merge.average import Average
from taskvec.merge.fitted.solve import regression, shrunk
from taskvec.merge.piece import Deltas
from taskvec.models.layers import LinearLayer
from taskvec.needs import Observe, View
from taskvec.statistics.collect import collect
from taskvec.statistics.input_moments import InputMoments
from taskvec.vectors import TaskVector, Tensors

BATCH = 32


def solve_blocks(
    model: Any, deltas: Deltas, views: Sequence[View], off_diagonal: float, observe: Observe
) -> TaskVector:
    """Return the merged vector: the mean, in which the linear layers are replaced block after block.

    ``views`` are each vector's examples. For every block each model is run with the merged weights, but its own ones in
    the block.
    """
    base = model.parameters
    merged = dict(Average().merged(base, deltas, None))
    groups = [list(group) for _, group in groupby(model.layers, key=lambda layer: layer.block)]
    for done, group in enumerate(groups, start=1):
        moments = []
        for delta, view in zip(deltas, views, strict=True):
            weights = _candidate(base, merged, delta, group)
            batches = [view.take(rows) for rows in view.batches(BATCH)]
            (found,) = collect(model, batches, [InputMoments()], parameters=weights, head=view.head)
            moments.append(found)
        solved = _solved(group, merged, deltas, moments, off_diagonal)
        merged |= solved
        observe(done, len(groups), {})
    return TaskVector(merged)


def _candidate(
    base: Tensors,
    merged: Tensors,
    delta: Tensors,
    group: Sequence[LinearLayer],
) -> dict[str, Tensor]:
    """Return the merged weights with one model's own in the layers of a group."""
    weights = {name: base[name] + change for name, change in merged.items()}
    for layer in group:
        for name in (f"{layer.name}.weight", f"{layer.name}.bias"):
            if name in merged:
                weights[name] = base[name] + delta.get(name, 0)
    return weights


def _solved(
    group: Sequence[LinearLayer],
    merged: Tensors,
    deltas: Deltas,
    moments: Sequence[Mapping[str, Any]],
    off_diagonal: float,
) -> dict[str, Tensor]:
    """Return the regressions of a group's weights."""
    found = {}
    for layer in group:
        name = f"{layer.name}.weight"
        if name not in merged or any(layer.name not in known for known in moments):
            continue
        grams = []
        for known in moments:
            moment = known[layer.name]
            grams.append(shrunk(moment.gram / max(1, moment.rows), off_diagonal))
        parts = [delta.get(name) for delta in deltas]
        found[name] = regression(parts, grams, merged[name]).to(merged[name])
    return found
