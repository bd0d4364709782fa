"""Cross-moments of two models' activations: those of one space, their algebra, and those of all spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

Weights: TypeAlias = Mapping[str, Tensor]
Affine: TypeAlias = tuple[Tensor, Tensor | None]  # weight [out, in], bias [out]
SUMS = ("cross", "source", "target", "squares")


@dataclass(frozen=True, eq=False)
class CrossMoment:
    """Paired rows of one space, A [n, a] of the source and B [n, b] of the target, summed in float64.

    ``cross`` A^T B [a, b]; ``source`` and ``target`` the sums of the rows [a], [b]; ``squares`` [2] |A|^2 and |B|^2,
    None where nobody measured them; ``grams`` A^T A [a, a] and B^T B [b, b], where they were asked for.
    """

    cross: Tensor
    source: Tensor
    target: Tensor
    squares: Tensor | None
    rows: int
    grams: tuple[Tensor, Tensor] | None = None

    def centred(self) -> CrossMoment:
        """Return the moments of the rows less their means: C - n mu_A mu_B^T, and so on."""
        source = self.source / self.rows
        target = self.target / self.rows

        def less(product: Tensor, left: Tensor, right: Tensor) -> Tensor:
            return product - self.rows * torch.outer(left, right)

        squares, grams = None, None
        if self.squares is not None:
            means = torch.stack([source.dot(source), target.dot(target)])
            squares = self.squares - self.rows * means
        if self.grams is not None:
            own, other = self.grams
            grams = less(own, source, source), less(other, target, target)
        return CrossMoment(
            cross=less(self.cross, source, target),
            source=torch.zeros_like(source),
            target=torch.zeros_like(target),
            squares=squares,
            rows=self.rows,
            grams=grams,
        )

    def residual(self, aligned: Tensor) -> Tensor:
        """Return |A T - B|^2 of a map T [a, b]: |A T|^2 - 2 <T, C> + |B|^2.

        Raises:
            ValueError: if the squares are not known, or the Grams were not kept and T has no orthonormal rows (it
                narrows, or drops directions).
        """
        if self.squares is None:
            raise ValueError("the residual needs the squares of the rows, or grams=true")
        aligned = aligned.to(self.cross)
        overlap = (aligned * self.cross).sum()
        return self._moved(aligned) - 2 * overlap + self.squares[1]

    def _moved(self, aligned: Tensor) -> Tensor:
        """Return |A T|^2, which is |A|^2 where T T^T = I.

        Raises:
            ValueError: if neither the Grams nor T say.
        """
        if self.grams is not None:
            own, _ = self.grams
            return (aligned * (own @ aligned)).sum()
        identity = torch.eye(len(aligned), dtype=aligned.dtype, device=aligned.device)
        if not torch.allclose(aligned @ aligned.T, identity, atol=1e-6):
            raise ValueError("the residual of a map without orthonormal rows needs grams=true")
        return self.squares[0]


def through(moment: CrossMoment, source: Affine, target: Affine) -> CrossMoment:
    """Return the moments of the outputs of two linear layers from those of their inputs: C_out = W_A C_in W_B^T.

    Biases act as one more column: W = [W | b] on [[C, sum A], [sum B^T, n]]. Interpolation and means over tokens
    commute with the layers, because their weights sum to one. The squares follow from Grams alone.
    """
    left, right = _joined(source), _joined(target)
    bordered = _bordered(moment.cross, moment.source, moment.target, moment.rows)
    carried = left @ bordered  # [out_A, in_B + 1]
    squares, grams = None, None
    if moment.grams is not None:
        own = _bordered(moment.grams[0], moment.source, moment.source, moment.rows)
        other = _bordered(moment.grams[1], moment.target, moment.target, moment.rows)
        grams = left @ own @ left.T, right @ other @ right.T
        squares = torch.stack([gram.trace() for gram in grams])
    return CrossMoment(
        cross=carried @ right.T,
        source=carried[:, -1],
        target=right @ bordered[-1],
        squares=squares,
        rows=moment.rows,
        grams=grams,
    )


def _device(weights: Weights) -> torch.device | None:
    return next((weight.device for weight in weights.values()), None)


def _joined(layer: Affine) -> Tensor:
    """Return [W | b] [out, in + 1] in float64."""
    weight, bias = layer
    if bias is None:
        bias = weight.new_zeros(len(weight))
    joined = torch.cat([weight, bias.unsqueeze(1)], dim=1)
    return joined.to(torch.float64)


def _bordered(product: Tensor, left: Tensor, right: Tensor, rows: int) -> Tensor:
    """Return [[product, left], [right^T, rows]]."""
    corner = product.new_tensor([rows])
    above = torch.cat([product, left.unsqueeze(1)], dim=1)
    below = torch.cat([right, corner])
    return torch.cat([above, below.unsqueeze(0)])


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
        cls,
        moments: Mapping[str, CrossMoment],
        squares: Mapping[str, Tensor],
        layout: Mapping[str, Any],
    ) -> SpaceMoments:
        """Return summed moments and derived spaces' squares as they are stored; ``layout`` holds the attributes."""
        tensors = {f"{space}/squares": values for space, values in squares.items()}
        for space, moment in moments.items():
            for name in SUMS:
                tensors[f"{space}/{name}"] = getattr(moment, name)
            if moment.grams is not None:
                own, other = moment.grams
                tensors[f"{space}/source_gram"] = own
                tensors[f"{space}/target_gram"] = other
        rows = {space: moment.rows for space, moment in moments.items()}
        return cls(tensors, {**layout, "rows": rows})

    @property
    def spaces(self) -> list[str]:
        """The names of all spaces that have moments."""
        return [*self.aliases, *self.derived]

    def moment(self, space: str, source: Weights, target: Weights) -> CrossMoment:
        """Return a space's moments; ``source`` and ``target`` are the weights that the statistic was taken at.

        They are on the weights' device.
        """
        device = _device(target)
        if space not in self.derived:
            return self._stored(self.aliases[space], device)
        inputs, own, other = self.derived[space]
        moment = through(
            self._stored(inputs, device),
            (source[f"{own}.weight"], source.get(f"{own}.bias")),
            (target[f"{other}.weight"], target.get(f"{other}.bias")),
        )
        squares = self.tensors[f"{space}/squares"].to(device)
        return replace(moment, squares=squares)

    def _stored(self, space: str, device: torch.device | None) -> CrossMoment:
        def stored(name: str) -> Tensor:
            return self.tensors[f"{space}/{name}"].to(device)

        sums = {name: stored(name) for name in SUMS}
        grams = None
        if f"{space}/source_gram" in self.tensors:
            grams = stored("source_gram"), stored("target_gram")
        return CrossMoment(**sums, rows=self.meta["rows"][space], grams=grams)
