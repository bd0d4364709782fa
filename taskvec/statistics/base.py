"""What a statistic is: numbers that a model's passes over examples, or other statistics, determine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.config import Component
from taskvec.needs import Given, Needs, Scope, Statistics
from taskvec.statistics.passes.accumulator import Accumulator, Forward, Root

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.passes.survey import Survey

__all__ = ["Accumulator", "Forward", "Root", "Statistic"]


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
