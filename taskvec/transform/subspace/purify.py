"""From a model's layers to purified task vectors: what PAVE does to one vector, given the ranks to keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from taskvec.statistics.values import LayerMoments
from taskvec.transform.subspace.faithful import damped, purified
from taskvec.transform.subspace.projection import Whitening, prune, without
from taskvec.transform.subspace.ranks import Ranks


def sizes(model: Any, moments: LayerMoments, roles: tuple[str, ...] | None) -> dict[str, int]:
    """Return R = min(out, in) of every linear layer that is purified: of a role, with inputs that were seen."""
    found = {}
    for layer in model.layers:
        chosen = roles is None or layer.role in roles
        weight = model.parameters.get(f"{layer.name}.weight")
        if chosen and layer.name in moments and weight is not None:
            found[layer.name] = min(weight.shape)
    return found


def prune_layers(
    model: Any,
    vector: Mapping[str, Tensor],
    moments: LayerMoments,
    ranks: Ranks,
    damping: float,
    whitening: Whitening,
) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Yield each layer's name, its pruned directions P [out, R - rank] float32, and what they cost."""
    for layer, rank in ranks.items():
        weight = tuned(model, vector, layer)
        moment = moments[layer].second(weight.device)
        pruned = prune(weight, moment, rank, damping=damping, whitening=whitening)
        report = {
            "rank": rank,
            "pruned_energy": pruned.energy,
            "activated_error": pruned.error,
            "determined": pruned.determined,
        }
        yield layer, pruned.directions.float(), report


def projected(
    model: Any, vector: Mapping[str, Tensor], layer: str, directions: Tensor, *, of_delta: bool
) -> Tensor:
    """Return tau - P P^T W_t of a layer, or with ``of_delta`` tau - P P^T tau."""
    delta = delta_of(model, vector, layer)
    weight = delta if of_delta else tuned(model, vector, layer)
    return without(delta, weight, directions.to(delta.device))


def by_inverse(
    model: Any,
    vector: Mapping[str, Tensor],
    layer: str,
    rank: int,
    moments: list[LayerMoments],
    damping: float,
    tolerance: float,
) -> Tensor:
    """Return SVD_r(W_t C) C^-1 - W_B of a layer as the authors do; the first moments are those at theta_t."""
    weight = tuned(model, vector, layer)
    covariances = [found[layer].second(weight.device) for found in moments]
    covariance = damped(covariances, damping, tolerance)
    return purified(weight, covariance, rank) - model.parameters[f"{layer}.weight"]


def delta_of(model: Any, vector: Mapping[str, Tensor], layer: str) -> Tensor:
    """Return a layer's delta, zero where the vector leaves it alone."""
    name = f"{layer}.weight"
    return vector[name] if name in vector else torch.zeros_like(model.parameters[name])


def tuned(model: Any, vector: Mapping[str, Tensor], layer: str) -> Tensor:
    """Return a layer's fine-tuned weight W_t = W_B + tau."""
    return model.parameters[f"{layer}.weight"] + delta_of(model, vector, layer)
