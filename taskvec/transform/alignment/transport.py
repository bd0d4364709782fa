"""What maps between spaces do to each parameter of a task vector (theseus spec 1.1 and 1.2).

The backbone names the space of every axis of every parameter, and one rule serves all kinds: each axis is multiplied
by the map of its space. For a linear layer that is tau_B = T_out^T tau_A T_in, for a bias or a norm T_out^T tau_A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from taskvec.transform.base import Shape

Axes: TypeAlias = tuple[str | None, ...]

# The sum of what a model's input layers put out: patches, class token, words, positions
STEM = "residual"


@dataclass(frozen=True)
class Itinerary:
    """Which parameters are carried, by name the space of each axis, and why each of the others is left at zero."""

    carried: dict[str, Axes]
    left: dict[str, str]


def itinerary(
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    axes: Mapping[str, Axes],
    lengths: Mapping[str, Shape],
) -> Itinerary:
    """Return what becomes of each parameter of the source.

    ``source`` and ``target`` hold the shapes of all parameters, ``axes`` the map of each axis of those that are to be
    carried, ``lengths`` the shape [a, b] of each map.
    """
    carried, left = {}, {}
    for name, shape in source.items():
        reason = _obstacle(shape, target.get(name), axes.get(name), lengths)
        if reason is None:
            carried[name] = axes[name]
        else:
            left[name] = reason
    return Itinerary(carried, left)


def _obstacle(
    shape: Shape, wanted: Shape | None, axes: Axes | None, lengths: Mapping[str, Shape]
) -> str | None:
    """Return why a parameter cannot be carried, None if it can."""
    if wanted is None:
        return "the target has no such parameter"
    if axes is None:
        return "it is not to be carried"
    if len(wanted) != len(shape):
        return f"it has {len(shape)} axes, and {len(wanted)} in the target"
    for here, there, space in zip(shape, wanted, axes, strict=True):
        if space is None and here != there:
            return f"an axis that no activations belong to has {here} entries, and {there} in the target"
        if space is not None and space not in lengths:
            return f"{space} was not observed in both models"
        if space is not None and lengths[space] != (here, there):
            return f"{space} has {here} channels, {there} in the target, and a map {list(lengths[space])}"
    return None


def carry(delta: Tensor, axes: Axes, maps: Mapping[str, Tensor]) -> Tensor:
    """Return a delta with every axis multiplied by the map [a, b] of its space, in the dtype of the maps.

    An axis without a space stays as it is.
    """
    for axis, space in enumerate(axes):
        if space is None:
            continue
        mapping = maps[space].to(delta.device)
        delta = torch.tensordot(delta.to(mapping.dtype), mapping, dims=([axis], [0]))
        delta = delta.movedim(-1, axis)
    return delta.contiguous()


def pad(delta: Tensor, shape: Shape) -> Tensor:
    """Return a delta cut or filled up with zeros to a shape, at the end of each axis."""
    common = tuple(slice(0, min(sizes)) for sizes in zip(delta.shape, shape, strict=True))
    resized = delta.new_zeros(shape)
    resized[common] = delta[common]
    return resized


def random_map(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return a semi-orthogonal map [a, b] float64, uniform among all (Haar measure)."""
    longer, shorter = max(rows, columns), min(rows, columns)
    gaussian = torch.randn(longer, shorter, generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(gaussian)
    # QR alone is not uniform; the signs of the triangle's diagonal make it so (Mezzadri 2007).
    basis = basis * triangle.diagonal().sign()
    return basis if rows > columns else basis.mT
