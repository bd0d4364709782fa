"""What a statistic is: numbers that a model's passes over examples, or other statistics, determine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.config import Component
from taskvec.needs import Examples, Given, Needs, Scope, Vector

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.taps import OnInput


class Accumulator(ABC):
    """The running sums of one statistic in one pass.

    A pass shows every batch to the visitors of all accumulators that it serves: module inputs, and what a visitor
    returns sees the gradient of the module's output (see :class:`taskvec.statistics.taps.Taps`).
    """

    @abstractmethod
    def visitors(self) -> Sequence[Mapping[str, OnInput]]:
        """Return groups of taps by module name."""

    @abstractmethod
    def finish(self, examples: int) -> Accumulator | Any:
        """Return the statistic's value, or the accumulator of a further pass over the same examples."""


class Statistic(Component):
    """A registered statistic. Collected ones have :meth:`accumulator`, derived ones have :meth:`made` and needs.

    ``gradient``: a pass must run backwards; ``labels``: it takes the loss of the labels, which must be granted;
    ``head``: features depend on the task's head.
    """

    gradient: ClassVar[bool] = False
    labels: ClassVar[bool] = False
    head: ClassVar[bool] = True
    derived: ClassVar[bool] = False

    def needs(self, on: Examples, at: Vector | None, scope: Scope) -> Needs:
        """Return the statistics that a derived one is made from."""
        return ()

    def accumulator(self, model: Any, inputs: Any, head: Any) -> Accumulator:
        """Return the accumulator of the first pass, given the model and a few examples of it to look at.

        A pair's statistic gets a pair of models and of inputs.

        Raises:
            NotImplementedError: for a derived statistic.
        """
        raise NotImplementedError(f"{type(self).__name__} is not collected")

    def made(self, given: Given) -> Any:
        """Return the value of a derived statistic.

        Raises:
            NotImplementedError: for a collected statistic.
        """
        raise NotImplementedError(f"{type(self).__name__} is not derived")

    @abstractmethod
    def pack(self, value: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and JSON values to store."""

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Any:
        """Invert :meth:`pack`; tensors are memory-mapped."""
