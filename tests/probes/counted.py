"""A statistic of its own: how many examples it saw."""

from __future__ import annotations

from typing import Literal

from taskvec.registry import register
from taskvec.statistics.base import Accumulator, Statistic


class Counter(Accumulator):
    """Counts the examples of a pass."""

    def finish(self, examples):
        """Return the count."""
        return examples


@register("statistic", "counted")
class Counted(Statistic):
    """The number of examples."""

    kind: Literal["counted"] = "counted"

    def accumulator(self, *surveys):
        """Return the counter."""
        return Counter()

    def pack(self, value):
        """Return a number."""
        return {}, {"examples": value}

    def unpack(self, tensors, meta):
        """Return the number."""
        return meta["examples"]
