"""PCB-Merging: entries compete within a vector and between vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.merge.base import Convention, Piece, TensorWise
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


Range = tuple[float, float]


@dataclass(frozen=True)
class Ranges:
    """Of each vector: the range that its magnitudes are clamped to, and the range of its balances."""

    magnitudes: list[Range]
    balances: list[Range]


@register("merge", "pcb", paper="Du et al., NeurIPS 2024, arXiv 2410.02396, section 3")
class Pcb(TensorWise):
    """theta_0 + alpha * sum_t s_t sign(tau_t) A_t / sum_t s_t, s_t the competition score of each entry, in [0, 1].

    Over all d editable entries of a vector: A = |tau| clamped to its quantiles ``tails`` and 1 - ``tails``, N = A
    mapped to [0, 1], balance b = exp(T N^2) * tanh(tau * sum_t tau_t), and s = b clamped from below at its quantile
    1 - ``ratio`` and mapped to [0, 1]. ``opponents`` "normalised" puts sum_t sign(tau_t) N_t in place of sum_t tau_t.
    """

    kind: Literal["pcb"] = "pcb"
    ratio: float = Field(0.1, gt=0, le=1)
    tails: float = Field(1e-4, ge=0, lt=0.5)
    opponents: Literal["deltas", "normalised"] = "deltas"

    grid: ClassVar[tuple[float, ...]] = tuple(round(0.8 + 0.05 * step, 2) for step in range(11))  # 0.8, ..., 1.3
    conventions: ClassVar[tuple[Convention, ...]] = (
        Convention("the authors' pcb-merging.py", "", "alpha searched in 0.8 to 1.3, or 1.2; also ratio 0.05"),
        Convention(
            "the authors' pcb.py for vision, merge-and-rebase",
            "merge.tails=0.01 merge.ratio=0.05 merge.opponents=normalised",
            "alpha 1.2",
        ),
    )

    def survey(
        self, base: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]], given: Given | None
    ) -> Ranges:
        """Return the ranges over all parameters: quantiles of the magnitudes first, then those of the balances."""
        entries = sum(tensor.numel() for tensor in base.values())
        low = math.floor(entries * self.tails)
        high = max(0, math.floor(entries * (1 - self.tails) - 1))
        threshold = min(entries - 1, math.floor(entries * (1 - self.ratio)))

        def magnitudes():
            return ([delta.abs() for delta in every(piece)] for piece in all_pieces(base, deltas))

        ranges = _quantiles(magnitudes, len(deltas), low, high)

        def balances():
            return (self._balances(piece, ranges) for piece in all_pieces(base, deltas))

        return Ranges(ranges, _quantiles(balances, len(deltas), threshold, entries - 1))

    def merge(self, piece: Piece, given: Given | None, surveyed: Ranges) -> Tensor:
        """Return the mean of signed clamped magnitudes, weighted by score."""
        import torch

        deltas = every(piece)
        balances = self._balances(piece, surveyed.magnitudes)
        total = torch.zeros_like(deltas[0])
        scores = torch.zeros_like(deltas[0])
        for position, delta in enumerate(deltas):
            score = mapped(balances[position], *surveyed.balances[position])
            clamped = delta.abs().clamp_(*surveyed.magnitudes[position])
            total += delta.sign() * clamped * score
            scores += score
        return total / scores.clamp_(min=1e-12)

    def _balances(self, piece: Piece, magnitudes: Sequence[Range]) -> list[Tensor]:
        from taskvec.merge.scheme.consensus import weighted_sum

        deltas = every(piece)
        normalised = [mapped(delta.abs(), *ends) for delta, ends in zip(deltas, magnitudes, strict=True)]
        sides = deltas
        if self.opponents == "normalised":
            sides = [delta.sign() * own for delta, own in zip(deltas, normalised, strict=True)]
        opponents = weighted_sum(sides, (1.0,) * len(sides))
        found = []
        for delta, own in zip(deltas, normalised, strict=True):
            intra = own.square_().mul_(len(deltas)).exp_()
            found.append(intra * (delta * opponents).tanh_())
        return found


def every(piece: Piece) -> list[Tensor]:
    """Return the deltas of all vectors, zeros in place of None: a zero competes, too."""
    import torch

    zero = torch.zeros_like(piece.present[0][1]) if piece.present else torch.zeros(piece.base.shape)
    return [zero if delta is None else delta for delta in piece.deltas]


def all_pieces(base: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]]) -> Iterator[Piece]:
    """Yield the pieces of all parameters, those that no vector changes included."""
    from taskvec.merge.pieces import read_together

    for name in base:
        yield from read_together(base, deltas, name)


def mapped(numbers: Tensor, low: float, high: float) -> Tensor:
    """Return numbers clamped to a range and mapped to [0, 1]; positive ones from a range without width on are 1."""
    if high == low:
        top = (numbers >= high) & (numbers > 0)
        return top.to(numbers.dtype)
    return numbers.clamp(low, high).sub_(low).div_(high - low)


def _quantiles(pieces: Callable[[], Iterable[Sequence[Tensor]]], count: int, low: int, high: int) -> list[Range]:
    """Return each array's numbers of two ranks."""
    from taskvec.merge.scheme.select import Wanted, select_together

    wanted = [Wanted(array, rank) for array in range(count) for rank in (low, high)]
    values = [found.value for found in select_together(pieces, wanted)]
    return list(zip(values[::2], values[1::2], strict=True))
