"""From the moments of paired activations to the map of each space (theseus spec 1.3 and 1.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from taskvec.statistics.cross_value import CrossMoment, SpaceMoments
from taskvec.transform.alignment.procrustes import Alignment, align, align_product
from taskvec.transform.alignment.transport import Axes

Weights: TypeAlias = Mapping[str, Tensor]

# Activations come in float32: a map whose gap is narrower may turn by more than 1e-2 with their rounding errors.
DETERMINED = 1e-4

# The inputs of an activation function have the rank of the layer before it, its outputs have full rank. Both are
# indexed by the same hidden units, so that the map of the outputs may serve for the inputs.
HIDDEN = "mlp.hidden"
BEFORE_HIDDEN = ("mlp.fc", "mlp.gate", "mlp.up")


@dataclass(frozen=True)
class Alignments:
    """How maps are found: rows less their means, whitened by C <- G_A^-p C G_B^-p with G + ``whiten_eps`` I, directions
    below ``tolerance`` left out, the MLP's hidden units with one map or one before and one after the activation.
    """

    centre: bool = False
    whiten: float = 0.0
    whiten_eps: float = 1e-6
    tolerance: float = 0.0
    hidden: Literal["own", "shared"] = "own"

    def stand_in(self, space: str) -> str:
        """Return the space whose map serves for a space."""
        if self.hidden == "own":
            return space
        for role in BEFORE_HIDDEN:
            if space.endswith(role):
                return space.removesuffix(role) + HIDDEN
        return space

    def of(self, moment: CrossMoment) -> Alignment:
        """Return the map of one space from its moments."""
        if self.centre:
            moment = moment.centred()
        cross = moment.cross.double()
        if self.whiten:
            cross = whitened(cross, moment.grams, self.whiten, self.whiten_eps)
        return align(cross, self.tolerance)


def whitened(cross: Tensor, grams: tuple[Tensor, Tensor], power: float, eps: float) -> Tensor:
    """Return G_A^-p C G_B^-p with G + eps I in place of the Grams; p = 1/2 gives canonical directions."""
    own, other = grams
    return _power(own, -power, eps) @ cross @ _power(other, -power, eps)


def _power(gram: Tensor, power: float, eps: float) -> Tensor:
    shifted = gram.double().clone()
    shifted.diagonal().add_(eps)
    values, vectors = torch.linalg.eigh(shifted)
    scaled = vectors * values.clamp(min=eps).pow(power)
    return scaled @ vectors.mT


def pooled(parts: Sequence[SpaceMoments]) -> SpaceMoments:
    """Return the moments of the rows of several data sets together."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    tensors = {}
    for name in first.tensors:
        tensors[name] = sum(part.tensors[name] for part in parts)
    rows = {}
    for space in first.meta["rows"]:
        rows[space] = sum(part.meta["rows"][space] for part in parts)
    return SpaceMoments(tensors, {**first.meta, "rows": rows})


class SpaceMaps:
    """The maps between a source's spaces and a target's, each found once, when it is asked for.

    ``source`` and ``target`` are the weights that the moments were taken at.
    """

    def __init__(self, moments: SpaceMoments, source: Weights, target: Weights, how: Alignments):
        self.moments, self.source, self.target, self.how = moments, source, target, how
        self._found: dict[str, Alignment] = {}

    def observed(self, space: str) -> bool:
        """Return whether a space has a map of its own."""
        return space in self.moments.spaces

    def known(self, axes: Mapping[str, Axes]) -> dict[str, Axes]:
        """Return, for each axis of each parameter, the name under which :meth:`of` gives its map.

        Parameters with an axis in a space that was not observed keep that name, which has no map.
        """
        found = {}
        for name, spaces in axes.items():
            found[name] = tuple(self._serving(space) for space in spaces)
        return found

    def _serving(self, space: str | None) -> str | None:
        if space is None:
            return None
        serving = self.how.stand_in(space)
        return self.moments.aliases.get(serving, serving)

    def of(self, space: str) -> Alignment:
        """Return the map of a space."""
        if space not in self._found:
            self._found[space] = self._align(space)
        return self._found[space]

    def _align(self, space: str) -> Alignment:
        """Return the map of a space, from the moments of the layer's inputs where those are the smaller ones."""
        found = self._from_inputs(space)
        if found is not None:
            return found
        moment = self.moments.moment(space, self.source, self.target)
        return self.how.of(moment)

    def _from_inputs(self, space: str) -> Alignment | None:
        """Return the map of a layer's outputs by its factors, None where that is not asked for or not faster."""
        if space not in self.moments.derived or not self.how.tolerance or self.how.whiten:
            return None
        inputs, own, other = self.moments.derived[space]
        left, right = _layer(self.source, own), _layer(self.target, other)
        if not (widens(left) and widens(right)):
            return None
        moment = self.moments.moment(inputs, self.source, self.target)
        core = _core(moment, self.how.centre)
        return align_product(left, core, right, self.how.tolerance)


def widens(layer: Tensor) -> bool:
    """Return whether a layer [out, in + 1] has more outputs than inputs."""
    return layer.shape[1] < layer.shape[0]


def _layer(weights: Weights, name: str) -> Tensor:
    """Return [W | b] [out, in + 1] float64 of a linear layer."""
    weight = weights[f"{name}.weight"].double()
    bias = weights.get(f"{name}.bias", weight.new_zeros(len(weight)))
    return torch.cat([weight, bias.to(weight).unsqueeze(1)], dim=1)


def _core(moment: CrossMoment, centre: bool) -> Tensor:
    """Return [[C, sum A], [sum B^T, n]] [a + 1, b + 1] of a layer's inputs; centred rows leave the border at zero."""
    rows = moment.rows
    if centre:
        moment, rows = moment.centred(), 0
    corner = moment.cross.new_tensor([rows])
    last_row = torch.cat([moment.target, corner])
    upper = torch.cat([moment.cross, moment.source.unsqueeze(1)], dim=1)
    return torch.cat([upper, last_row.unsqueeze(0)])


def alignment_error(found: Tensor, moment: CrossMoment) -> float:
    """Return 1 - tr(T^T C) / (|A| |B|): 0 for rows that match up to scale, about 1 for a random map.

    It is half of || A T / |A| - B / |B| ||^2 for a T with orthonormal rows. The moment knows its squares.
    """
    overlap = (found.to(moment.cross) * moment.cross).sum()
    squares = moment.squares[0] * moment.squares[1]
    return 1 - float(overlap / squares.sqrt())


def random_spread(moment: CrossMoment) -> float:
    """Return the standard deviation |C|_F / (sqrt(max(a, b)) |A| |B|) of a random map's error around its mean, 1.

    Of a semi-orthogonal T drawn uniformly, E <T, C> = 0 and E <T, C>^2 = |C|_F^2 / max(a, b).
    """
    size = math.sqrt(max(moment.cross.shape))
    squares = moment.squares[0] * moment.squares[1]
    return float(moment.cross.norm() / (size * squares.sqrt()))


def described(found: Alignment, held_out: CrossMoment | None) -> dict[str, Any]:
    """Return what a result reports of a map, as JSON values.

    ``determined`` is false where rounding errors of the activations may decide a part of the map.
    """
    rows, columns = found.map.shape
    report = {
        "shape": [rows, columns],
        "rank": found.rank,
        "gap": found.gap,
        "energy": found.energy,
        "determined": found.gap > DETERMINED,
    }
    if held_out is not None:
        error = alignment_error(found.map, held_out)
        report["held_out_error"] = error if math.isfinite(error) else None
        report["random_spread"] = random_spread(held_out)
    return report
