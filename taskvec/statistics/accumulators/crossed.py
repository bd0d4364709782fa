"""The running sums of two models' cross-moments, and which spaces need sums of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from taskvec.errors import UserError
from taskvec.statistics.accumulators.gradients import loss
from taskvec.statistics.cross_value import CrossMoment, SpaceMoments
from taskvec.statistics.passes.accumulator import Accumulator, Forward, Root
from taskvec.statistics.passes.pairing import Align, paired
from taskvec.statistics.passes.survey import Survey
from taskvec.statistics.passes.taps import OnGradient, OnTokens, Place
from taskvec.statistics.passes.tokens import Tokens

Pair = tuple[int | None, int | None]  # the numbers of a space's tensors in the two surveys


@dataclass
class Plan:
    """What is done for each space that both models observe: it is summed, shares another's sums, or follows from its
    layer's input (see :class:`taskvec.statistics.cross_value.SpaceMoments`).
    """

    places: dict[str, tuple[Place, Place]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    derived: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def tapped(self) -> list[str]:
        """The spaces that are looked at: those with sums, and derived ones for their squares."""
        summed = [space for space, source in self.aliases.items() if space == source]
        return [*summed, *self.derived]


def plan(source: Survey, target: Survey, *, gradients: bool) -> Plan:
    """Return what is done for each space; gradients are seen at outputs only and do not follow from others.

    Raises:
        UserError: if the models share no space.
    """
    found = Plan()
    shared = [space for space in source.model.observed if space in target.model.observed]
    for space in shared:
        places = Place(*source.model.observed[space]), Place(*target.model.observed[space])
        reason = _unseen(source, places[0], gradients) or _unseen(target, places[1], gradients)
        if reason:
            found.left_out[space] = reason
        else:
            found.places[space] = places
    if not found.places:
        raise UserError("the two models have no space in common; transport needs backbones of one family")
    tensors = {space: _tensors(source, target, places) for space, places in found.places.items()}
    first: dict[Pair, str] = {}
    outputs: dict[str, Pair] = {}
    for space, pair in tensors.items():
        inputs = None if gradients else _inputs_of_linear(source, target, found.places[space])
        if inputs is not None:
            outputs[space] = inputs
        else:
            found.aliases[space] = first.setdefault(pair, space)
    for space, pair in outputs.items():
        if pair in first:
            own, other = found.places[space]
            found.derived[space] = (first[pair], own.module, other.module)
        else:
            found.aliases[space] = space
    return found


def _unseen(survey: Survey, place: Place, gradients: bool) -> str | None:
    """Return why a place shows no rows that could be paired, None if it does."""
    calls = survey.calls.get(place.module, [])
    if len(calls) != 1:
        return f"{place.module} is called {len(calls)} times per pass"
    seen = getattr(calls[0], place.side)
    if seen is None or seen.ndim > 3:
        return f"the {place.side} of {place.module} has no one dimension of tokens"
    if gradients and place.side == "input":
        return f"{place.module}: gradients are taken at outputs"
    return seen.misfit


def _tensors(source: Survey, target: Survey, places: tuple[Place, Place]) -> Pair:
    return source.tensor(places[0]), target.tensor(places[1])


def _inputs_of_linear(source: Survey, target: Survey, places: tuple[Place, Place]) -> Pair | None:
    """Return the tensors that a space's linear layers are given; None if it is no output of two such layers."""
    for survey, place in zip((source, target), places, strict=True):
        module = survey.model.module.get_submodule(place.module)
        own = [f"{place.module}.{name}" for name, _ in module.named_parameters()]
        known = all(name in survey.model.parameters for name in own)
        if place.side == "input" or not isinstance(module, nn.Linear) or not known:
            return None
    inputs = [Place(place.module, "input") for place in places]
    return _tensors(source, target, (inputs[0], inputs[1]))


class _Sums:
    """One space's sums in float64."""

    def __init__(self, own: Tensor, other: Tensor, grams: bool):
        a, b = own.shape[1], other.shape[1]
        zeros = partial(own.new_zeros, dtype=torch.float64)
        self.cross = zeros((a, b))
        self.source, self.target = zeros(a), zeros(b)
        self.squares = zeros(2)
        self.grams = (zeros((a, a)), zeros((b, b))) if grams else None
        self.rows = 0

    def add(self, own: Tensor, other: Tensor, squares: Tensor) -> None:
        """Add paired rows [n, a] and [n, b]."""
        self.cross += own.T @ other
        self.source += own.sum(0, dtype=torch.float64)
        self.target += other.sum(0, dtype=torch.float64)
        self.squares += squares
        self.rows += len(own)
        if self.grams:
            self.grams[0].add_(own.T @ own)
            self.grams[1].add_(other.T @ other)

    def moment(self) -> CrossMoment:
        """Return the sums."""
        return CrossMoment(self.cross, self.source, self.target, self.squares, self.rows, self.grams)


class CrossSums(Accumulator):
    """The cross-moments of a pair of models; products in ``precision``, sums in float64.

    The source runs first; what it shows of a batch is kept until the target shows the same space.
    """

    def __init__(
        self,
        source: Survey,
        target: Survey,
        *,
        align: Align,
        gradients: bool,
        grams: bool,
        precision: str,
    ):
        self.align, self.gradients, self.grams, self.precision = align, gradients, grams, precision
        self.plan = plan(source, target, gradients=gradients)
        self.sums: dict[str, _Sums] = {}
        self.squares: dict[str, Tensor] = {}
        self._held: dict[str, Tokens] = {}

    def visitors(self, side: int) -> Sequence[Mapping[Place, OnTokens]]:
        """Return a tap for each space that is looked at, and again for a second space at the same place."""
        places = {space: self.plan.places[space][side] for space in self.plan.tapped}
        return [{place: partial(self._visit, space, side)} for space, place in places.items()]

    def roots(self, forward: Forward) -> list[Root]:
        """Return the summed loss of the labels, where gradients are wanted."""
        return [Root(loss(forward))] if self.gradients else []

    def _visit(self, space: str, side: int, tokens: Tokens) -> OnGradient | None:
        if self.gradients:
            return partial(self._show, space, side)
        self._show(space, side, tokens)
        return None

    def _show(self, space: str, side: int, tokens: Tokens) -> None:
        if side == 0:
            self._held[space] = tokens
            return
        own, other = paired(self._held.pop(space), tokens, self.align)
        squares = torch.stack([_square(own), _square(other)])
        if space in self.plan.derived:
            self.squares[space] = self.squares[space] + squares if space in self.squares else squares
            return
        if space not in self.sums:
            self.sums[space] = _Sums(own, other, self.grams)
        self.sums[space].add(own, other, squares)

    def finish(self, examples: int) -> SpaceMoments:
        """Return the moments by space."""
        moments = {space: sums.moment() for space, sums in self.sums.items()}
        layout = {name: getattr(self.plan, name) for name in ("aliases", "derived", "left_out")}
        return SpaceMoments.of(moments, self.squares, layout)


def _square(rows: Tensor) -> Tensor:
    """Return the sum of squares in float64."""
    return rows.to(torch.float64).square().sum()
