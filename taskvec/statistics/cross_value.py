"""Cross-moments of two models' activations: one space's, their algebra, and those of all spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Affine = tuple[Tensor, Tensor | None]  # weight [out, in], bias [out]
Weights = Mapping[str, Tensor]
FIELDS = ("cross", "source", "target", "squares")


@dataclass(frozen=True, eq=False)
class CrossMoment:
    """Paired rows of one space, A [n, a] of the source and B [n, b] of the target, summed in float64.

    ``cross`` A^T B [a, b]; ``source`` and ``target`` the sums of the rows [a], [b]; ``squares`` [2] holds |A|^2 and
    |B|^2; ``grams`` A^T A [a, a] and B^T B [b, b], where they were asked for.
    """

    cross: Tensor
    source: Tensor
    target: Tensor
    squares: Tensor
    rows: int
    grams: tuple[Tensor, Tensor] | None = None

    def centred(self) -> CrossMoment:
        """Return the moments of the rows less their means: C - n mu_A mu_B^T, and so on."""
        source, target = self.source / self.rows, self.target / self.rows
        means = torch.stack([source.square().sum(), target.square().sum()])
        grams = None
        if self.grams:
            own = _centred(self.grams[0], source, source, self.rows)
            other = _centred(self.grams[1], target, target, self.rows)
            grams = (own, other)
        return CrossMoment(
            cross=_centred(self.cross, source, target, self.rows),
            source=torch.zeros_like(source),
            target=torch.zeros_like(target),
            squares=self.squares - self.rows * means,
            rows=self.rows,
            grams=grams,
        )

    def residual(self, aligned: Tensor) -> Tensor:
        """Return |A T - B|^2 of a map T [a, b]: tr(T^T A^T A T) - 2 <T, C> + |B|^2.

        Raises:
            ValueError: if T has no orthonormal rows (it narrows, or drops directions) and the Grams were not kept.
        """
        aligned = aligned.to(self.cross)
        overlap = (aligned * self.cross).sum()
        return self._moved(aligned) - 2 * overlap + self.squares[1]

    def _moved(self, aligned: Tensor) -> Tensor:
        """Return |A T|^2; T T^T = I leaves |A|^2.

        Raises:
            ValueError: if neither the Grams nor T say.
        """
        if self.grams:
            return (aligned * (self.grams[0] @ aligned)).sum()
        identity = torch.eye(len(aligned), dtype=aligned.dtype, device=aligned.device)
        if not torch.allclose(aligned @ aligned.T, identity, atol=1e-6):
            raise ValueError("the residual of a map without orthonormal rows needs grams=true")
        return self.squares[0]


def _centred(product: Tensor, left: Tensor, right: Tensor, rows: int) -> Tensor:
    return product - rows * torch.outer(left, right)


def through(moment: CrossMoment, source: Affine, target: Affine) -> CrossMoment:
    """Return the moments of the outputs of two linear layers from those of their inputs: C_out = W_A C_in W_B^T.

    Biases act as one more column: W = [W | b] on [[C, sum A], [sum B^T, n]]. Interpolation and means over tokens
    commute with the layers, because their weights sum to one. Without Grams ``squares`` are not known and come as NaN.
    """
    left, right = _joined(source, moment.cross), _joined(target, moment.cross)
    inner = _bordered(moment.cross, moment.source, moment.target, moment.rows)
    carried = left @ inner  # [out_A, in_B + 1]
    grams, squares = None, torch.full_like(moment.squares, torch.nan)
    if moment.grams:
        own = _bordered(moment.grams[0], moment.source, moment.source, moment.rows)
        other = _bordered(moment.grams[1], moment.target, moment.target, moment.rows)
        grams = (left @ own @ left.T, right @ other @ right.T)
        squares = torch.stack([gram.trace() for gram in grams])
    return CrossMoment(
        cross=carried @ right.T,
        source=carried[:, -1],
        target=right @ inner[-1],
        squares=squares,
        rows=moment.rows,
        grams=grams,
    )


def _joined(layer: Affine, like: Tensor) -> Tensor:
    weight, bias = layer
    if bias is None:
        bias = weight.new_zeros(len(weight))
    return torch.cat([weight, bias.unsqueeze(1)], dim=1).to(like)


def _bordered(product: Tensor, left: Tensor, right: Tensor, rows: int) -> Tensor:
    """Return [[product, left], [right^T, rows]]."""
    corner = product.new_tensor([rows])
    last_row = torch.cat([right, corner]).unsqueeze(0)
    return torch.cat([torch.cat([product, left.unsqueeze(1)], dim=1), last_row])


class SpaceMoments:
    """The cross-moments of every space that both models observe.

    ``aliases`` names the space that each space shares its moments with (itself otherwise). ``derived`` holds spaces at
    the outputs of linear layers: (space of the input, source's layer, target's layer); their moments are computed from
    those of the input when they are asked for. ``left_out`` says of each other space why it has none.
    """

    def __init__(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]):
        self.tensors, self.meta = tensors, meta
        self.aliases: Mapping[str, str] = meta["aliases"]
        self.derived: Mapping[str, Sequence[str]] = meta["derived"]
        self.left_out: Mapping[str, str] = meta["left_out"]

    @classmethod
    def of(
        cls, moments: Mapping[str, CrossMoment], squares: Mapping[str, Tensor], layout: Mapping[str, Any]
    ) -> SpaceMoments:
        """Return summed moments and the squares of derived spaces as they are stored; ``layout`` are the attributes."""
        tensors = {f"{space}/squares": values for space, values in squares.items()}
        for space, moment in moments.items():
            for name in FIELDS:
                tensors[f"{space}/{name}"] = getattr(moment, name)
            if moment.grams:
                tensors[f"{space}/source_gram"], tensors[f"{space}/target_gram"] = moment.grams
        rows = {space: moment.rows for space, moment in moments.items()}
        grams = any(moment.grams for moment in moments.values())
        return cls(tensors, {**layout, "rows": rows, "grams": grams})

    @property
    def spaces(self) -> list[str]:
        """The names of all spaces that have moments."""
        return [*self.aliases, *self.derived]

    def moment(self, space: str, source: Weights, target: Weights) -> CrossMoment:
        """Return a space's moments; ``source`` and ``target`` are the weights that the statistic was taken at."""
        if space not in self.derived:
            return self._stored(self.aliases[space])
        inputs, own, other = self.derived[space]
        moment = through(self._stored(self.aliases[inputs]), _affine(source, own), _affine(target, other))
        return replace(moment, squares=self.tensors[f"{space}/squares"])

    def _stored(self, space: str) -> CrossMoment:
        grams = None
        if self.meta["grams"]:
            grams = (self.tensors[f"{space}/source_gram"], self.tensors[f"{space}/target_gram"])
        sums = {name: self.tensors[f"{space}/{name}"] for name in FIELDS}
        return CrossMoment(**sums, rows=self.meta["rows"][space], grams=grams)


def _affine(weights: Weights, layer: str) -> Affine:
    return weights[f"{layer}.weight"], weights.get(f"{layer}.bias")
