"""Rows of two models on the same examples, token by token, across patch grids and lengths (spec theseus 1.3)."""

from __future__ import annotations

from math import isqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.statistics.passes.tokens import Tokens

Align = Literal["interpolate2d", "interpolate", "cls", "mean"]


def paired(source: Tokens, target: Tokens, how: Align) -> tuple[Tensor, Tensor]:
    """Return rows A [n, a] of the source and B [n, b] of the target that belong together.

    Where an example has as many real tokens in both models, they pair up as they are. Else, by ``how``:

    - ``interpolate2d``: images: the source's patches are resized to the target's grid, bilinearly, and a class token in
      front is kept; where no square grid fits, and for texts: as ``interpolate``;
    - ``interpolate``: the source's real tokens are resized to the number of the target's, linearly, class token
      included.

    ``cls`` takes the first token alone and ``mean`` the mean over real tokens, equal counts or not. Corners are not
    aligned in either interpolation.
    """
    if how == "cls":
        return source.values[:, 0], target.values[:, 0]
    if how == "mean":
        return source.mean(), target.mean()
    if _alike(source, target):
        return source.rows(), target.rows()
    are_images = source.real is None and target.real is None
    if how == "interpolate2d" and are_images:
        length = target.values.shape[1]
        resized = resize_grid(source.values, length)
        if resized is not None:
            return resized.flatten(0, 1), target.rows()
    rows = []
    for own, other in zip(source.apart(), target.apart(), strict=True):
        rows.append(resize_line(own, len(other)))
    return torch.cat(rows), target.rows()


def resize_line(tokens: Tensor, length: int) -> Tensor:
    """Return tokens [R, d] resized to [length, d], linearly; the same tokens where nothing changes."""
    if len(tokens) == length:
        return tokens
    line = F.interpolate(
        tokens.T.unsqueeze(0),
        size=length,
        mode="linear",
        align_corners=False,
    )
    return line.squeeze(0).T


def resize_grid(tokens: Tensor, length: int) -> Tensor | None:
    """Return tokens [N, L, d] on a square grid, behind a class token or without one, resized to [N, length, d].

    None where L and ``length`` are not both such a grid.
    """
    for front in (1, 0):
        old = _side(tokens.shape[1] - front)
        new = _side(length - front)
        if old is None or new is None:
            continue
        return _grid_weights(old, new, front).to(tokens) @ tokens
    return None


def _grid_weights(old: int, new: int, front: int) -> Tensor:
    """Return W [front + new^2, front + old^2] float32 with W X the tokens X resized; those in front stay.

    Bilinear interpolation is linear: resizing each patch's unit image gives its column. A product with W takes a
    fraction of the time of resizing wide tokens channel by channel.
    """
    units = torch.eye(old**2).unflatten(1, (1, old, old))
    resized = F.interpolate(
        units,
        size=(new, new),
        mode="bilinear",
        align_corners=False,
    )
    return torch.block_diag(torch.eye(front), resized.flatten(1).mT)


def _side(patches: int) -> int | None:
    """Return the side of a square grid of patches, None if there is none."""
    side = isqrt(patches)
    return side if side**2 == patches else None


def _alike(source: Tokens, target: Tokens) -> bool:
    """Return whether every example has the same real tokens in both."""
    if source.values.shape[1] != target.values.shape[1]:
        return False
    if source.real is None or target.real is None:
        return source.real is target.real
    return torch.equal(source.real, target.real)
