"""The correction of an added block: its components made to put out what its origin's put out (theseus spec 1.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-6


class Affine(NamedTuple):
    """y -> M y + offset on a component's outputs: ``matrix`` [d, d] or, for norms, its diagonal [d]; ``offset`` [d]."""

    matrix: Tensor
    offset: Tensor


def ridge(now: Tensor, wanted: Tensor, pull: float) -> Affine:
    """Return the affine map of rows ``now`` X [n, d] onto rows ``wanted`` Y [n, d], pulled towards the identity.

    M minimises ||X M^T - Y||^2 + 1e-6 ||M||^2 + pull ||M - I||^2 over centred rows, in float64:
    M^T = (X^T X + (1e-6 + pull) I)^-1 (X^T Y + pull I), and the offset is mean(Y) - M mean(X).
    """
    now, wanted = now.double(), wanted.double()
    mean_now, mean_wanted = now.mean(0), wanted.mean(0)
    centred = now - mean_now
    identity = torch.eye(now.shape[1]).to(now)
    left = centred.mT @ centred + (RIDGE + pull) * identity
    right = centred.mT @ (wanted - mean_wanted) + pull * identity
    matrix = torch.linalg.solve(left, right).mT
    return Affine(matrix, mean_wanted - matrix @ mean_now)


def diagonal(correction: Affine, now: Tensor, wanted: Tensor) -> Affine:
    """Return a correction's diagonal, which is all that a norm's gain can take up, with the offset that fits it."""
    scale = correction.matrix.diagonal()
    offset = wanted.double().mean(0) - scale * now.double().mean(0)
    return Affine(scale, offset)


def absorbed(correction: Affine, tensor: Tensor, *, shift: bool) -> Tensor:
    """Return a component's weight or bias after the correction: W <- M W, b <- M b + offset.

    A task vector is a difference of weights, so that its bias gets no offset (``shift`` false).
    """
    values = tensor.double()
    scaled = (
        correction.matrix @ values if correction.matrix.ndim == 2 else correction.matrix * values
    )
    if shift:
        scaled = scaled + correction.offset
    return scaled.to(tensor.dtype)


# (weights, names of components) -> the output rows [n, d] of each on the calibration examples
Measure = Callable[[Mapping[str, Tensor], str], Tensor]


def correct(
    weights: dict[str, Tensor],
    components: Iterable[tuple[str, str]],
    now: Measure,
    wanted: Callable[[str], Tensor],
    pull: Mapping[str, float] | float,
) -> dict[str, Affine]:
    """Correct the components of added blocks one after the other, each measured behind the ones before.

    ``weights`` of the extended model are changed; ``components`` pairs each component of an added block with the one it
    descends from, in the order of the forward pass. ``now`` measures a component at given weights, ``wanted`` its
    origin in the original model. Returns the corrections by component, for the task vectors to go through as well.
    """
    corrections = {}
    for component, origin in components:
        rows, reference = now(weights, component), wanted(origin)
        strength = pull if isinstance(pull, (int, float)) else pull[component.rsplit(".", 1)[-1]]
        correction = ridge(rows, reference, strength)
        weight = f"{component}.weight"
        if weights[weight].ndim == 1:
            correction = diagonal(correction, rows, reference)
        corrections[component] = correction
        weights[weight] = absorbed(correction, weights[weight], shift=False)
        bias = f"{component}.bias"
        if bias in weights:
            weights[bias] = absorbed(correction, weights[bias], shift=True)
    return corrections
