"""The running sums of two models' cross-moments, and which spaces need sums of their own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from taskvec.errors import UserError
from taskvec.statistics.accumulators.gradients import loss
from taskvec.statistics.cross_value import CrossMoment, SpaceMoments
from taskvec.statistics.passes.accumulator import Accumulator, Forward, Root
from taskvec.statistics.passes.pairing import Align, paired
from taskvec.statistics.passes.survey import Survey
from taskvec.statistics.passes.taps import OnGradient, Place, Visitors
from taskvec.statistics.passes.tokens import Tokens

Places: TypeAlias = tuple[Place, Place]  # of one space, in the source and in the target
Pair: TypeAlias = tuple[int, int]  # the numbers of two tensors in the surveys


@dataclass
class Layout:
    """What is done for each space that both models observe: it is summed, shares another's sums, or follows from its
    layer's input (see :class:`taskvec.statistics.cross_value.SpaceMoments`).
    """

    aliases: dict[str, str] = field(default_factory=dict)
    derived: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class Planner:
    """Decides for each space, from what a look at both models showed.

    Gradients are seen at outputs only, and do not follow from each other.
    """

    def __init__(self, source: Survey, target: Survey, *, gradients: bool):
        self.surveys = source, target
        self.gradients = gradients
        self.layout = Layout()
        self.places = self._places()
        self._sort()

    def tapped(self) -> list[str]:
        """Return the spaces that are looked at: those with sums, and derived ones for the squares of their rows."""
        summed = [space for space, source in self.layout.aliases.items() if space == source]
        return [*summed, *self.layout.derived]

    def _places(self) -> dict[str, Places]:
        """Return where both models show each space.

        Raises:
            UserError: if the models share no space.
        """
        source, target = self.surveys
        found = {}
        for space, seen in source.model.observed.items():
            if space not in target.model.observed:
                continue
            other = target.model.observed[space]
            reason = self._refusal(source, *seen) or self._refusal(target, *other)
            if reason is None:
                found[space] = source.tokens_at(*seen), target.tokens_at(*other)
            else:
                self.layout.left_out[space] = reason
        if not found:
            raise UserError(
                "the two models show no space in common; choose backbones of one family"
            )
        return found

    def _refusal(self, survey: Survey, module: str, side: str) -> str | None:
        """Return why a module shows no rows that could be paired, None if it does."""
        place = survey.tokens_at(module, side)
        if place is None:
            return survey.refusal(module)
        if survey.seen(place).ndim > 3:
            return f"the {side} of {module} has no one dimension of tokens"
        if self.gradients and side == "input":
            return f"{module}: gradients are taken at outputs"
        return None

    def _sort(self) -> None:
        """Enter each space as one that is summed, shares sums, or follows from the input of its layer."""
        first = {}
        outputs = {}
        for space, places in self.places.items():
            if self._are_linear_outputs(places):
                outputs[space] = places
            else:
                pair = self._tensors(places)
                self.layout.aliases[space] = first.setdefault(pair, space)
        for space, (own, other) in outputs.items():
            pair = self._tensors((own, other))
            inputs = self._tensors((own._replace(side="input"), other._replace(side="input")))
            if inputs in first and pair not in first:
                self.layout.derived[space] = [first[inputs], own.module, other.module]
            else:
                self.layout.aliases[space] = first.setdefault(pair, space)

    def _are_linear_outputs(self, places: Places) -> bool:
        """Return whether a space's activations are linear layers' outputs whose weights the vectors know."""
        if self.gradients:
            return False
        for survey, place in zip(self.surveys, places, strict=True):
            module = survey.model.module.get_submodule(place.module)
            names = {f"{place.module}.{name}" for name, _ in module.named_parameters()}
            known = names <= survey.model.parameters.keys()
            if place.side == "input" or not isinstance(module, nn.Linear) or not known:
                return False
        return True

    def _tensors(self, places: Places) -> Pair:
        source, target = self.surveys
        return source.seen(places[0]).number, target.seen(places[1]).number


class _Sums:
    """One space's sums in float64."""

    def __init__(self, own: Tensor, other: Tensor, *, grams: bool):
        a, b = own.shape[1], other.shape[1]
        zeros = partial(own.new_zeros, dtype=torch.float64)
        self.cross = zeros((a, b))
        self.source = zeros(a)
        self.target = zeros(b)
        self.squares = zeros(2)
        self.grams = (zeros((a, a)), zeros((b, b))) if grams else None
        self.rows = 0

    def add(self, own: Tensor, other: Tensor) -> None:
        """Add paired rows [n, a] and [n, b]."""
        self.cross += own.T @ other
        self.source += own.sum(0)
        self.target += other.sum(0)
        self.squares += _squares(own, other)
        if self.grams is not None:
            for gram, rows in zip(self.grams, (own, other), strict=True):
                gram += rows.T @ rows
        self.rows += len(own)

    def moment(self) -> CrossMoment:
        """Return the sums."""
        return CrossMoment(
            cross=self.cross,
            source=self.source,
            target=self.target,
            squares=self.squares,
            rows=self.rows,
            grams=self.grams,
        )


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
        self.precision = precision
        self.align, self.gradients, self.grams = align, gradients, grams
        self.planner = Planner(source, target, gradients=gradients)
        self.sums = {}
        self.squares = {}
        self._held = {}

    def visitors(self, side: int) -> list[Visitors]:
        """Return a tap for each space that is looked at; in mappings of their own, as two may look at one place."""
        groups = []
        for space in self.planner.tapped():
            place = self.planner.places[space][side]
            groups.append({place: partial(self._visit, space, side)})
        return groups

    def roots(self, forward: Forward) -> list[Root]:
        """Return the summed loss of the labels, where gradients are wanted."""
        if not self.gradients:
            return []
        return [Root(loss(forward))]

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
        if space in self.planner.layout.derived:
            known = self.squares.get(space, 0)
            self.squares[space] = known + _squares(own, other)
            return
        if space not in self.sums:
            self.sums[space] = _Sums(own, other, grams=self.grams)
        self.sums[space].add(own, other)

    def finish(self, examples: int) -> SpaceMoments:
        """Return the moments by space."""
        moments = {space: sums.moment() for space, sums in self.sums.items()}
        return SpaceMoments.of(moments, self.squares, asdict(self.planner.layout))


def _squares(own: Tensor, other: Tensor) -> Tensor:
    """Return |A|^2 and |B|^2 of rows [n, a] and [n, b], float64 [2]."""
    squares = []
    for rows in (own, other):
        norms = torch.linalg.vector_norm(rows, dim=1).to(torch.float64)
        squares.append(norms.dot(norms))
    return torch.stack(squares)
