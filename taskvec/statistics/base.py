"""What a statistic is: numbers that a model's passes over examples, or other statistics, determine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from taskvec.config import Component
from taskvec.needs import Given, Needs, Scope, Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.passes.forward import Forward
    from taskvec.statistics.passes.survey import Survey
    from taskvec.statistics.passes.taps import OnTokens, Place


class Root(NamedTuple):
    """Where a backward pass starts.

    ``tensor`` comes from the forward pass, ``gradient`` makes that of the objective with respect to it (None: the
    tensor is a scalar). ``receive`` gets the gradients of all editable parameters by name; an accumulator that only
    looks at taps leaves it out.
    """

    tensor: Tensor
    gradient: Callable[[], Tensor] | None = None
    receive: Callable[[Mapping[str, Tensor]], None] | None = None


class Accumulator(ABC):
    """The running sums of one statistic in one pass over the examples.

    A pass runs the model (of a pair both, side 0 the source and side 1 the target, on the same examples) and shows each
    batch to the visitors of all accumulators that it serves; then it runs backwards from their roots, one accumulator
    after the other, and only the taps of the root's owner listen. ``precision`` is the dtype that taps show tokens in.
    ``group`` cuts the examples into groups of that size, counted from the first one, for gradients that are needed
    group by group; None takes them as they come. ``weights``: roots receive the gradients of the parameters.
    """

    precision: str = "float32"
    group: int | None = None
    weights: bool = False

    def visitors(self, side: int) -> Sequence[Mapping[Place, OnTokens]]:
        """Return what looks at the tokens of which place; several mappings where one place has several visitors."""
        return ()

    def copies(self) -> Mapping[str, Callable[[Tensor], None]]:
        """Return, by the name of a parameter [d], what sees its gradient on each example [N, d].

        The pass gives every example a copy [1, d] of it.
        """
        return {}

    def roots(self, forward: Forward) -> Sequence[Root]:
        """Return the backward passes that the accumulator wants; none where its statistic takes no gradient."""
        return ()

    @abstractmethod
    def finish(self, examples: int) -> Accumulator | Any:
        """Return the statistic's value, or the accumulator of a further pass over the same examples."""


class Statistic(Component):
    """A registered statistic. Collected ones have :meth:`accumulator`, derived ones have :meth:`made` and needs.

    ``gradient``: a pass must run backwards; ``labels``: it takes the loss of the labels, which must be granted;
    ``head``: the task's head shapes it; ``pair``: it is one of two models. Subclasses whose fields decide make
    properties of them.
    """

    gradient: ClassVar[bool] = False
    labels: ClassVar[bool] = False
    head: ClassVar[bool] = True
    pair: ClassVar[bool] = False
    derived: ClassVar[bool] = False

    def needs(self, asked: Statistics, scope: Scope | None = None) -> Needs:
        """Return what a derived statistic is made from; ``asked`` is the need for it."""
        return ()

    def accumulator(self, *surveys: Survey) -> Accumulator:
        """Return the accumulator of the first pass, given what a look at the model (at both models of a pair) showed.

        Raises:
            NotImplementedError: for a derived statistic.
        """
        raise NotImplementedError(f"{type(self).__name__} is not collected")

    def made(self, asked: Statistics, given: Given) -> Any:
        """Return the value of a derived statistic from what its needs give.

        Raises:
            NotImplementedError: for a collected statistic.
        """
        raise NotImplementedError(f"{type(self).__name__} is not derived")

    @abstractmethod
    def pack(self, value: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and JSON values to store."""

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Any:
        """Invert :meth:`pack`; tensors are memory-mapped and must not be copied."""
