"""Where a run is mirrored while it works: nowhere, or Weights & Biases. ``result.json`` stays the truth."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from taskvec.config import Component
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.graph.result import Result
    from taskvec.graph.run import RunConfig


class Session:
    """An open mirror of one run; the base class mirrors nothing."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the mirror; an exception marks the run as failed."""

    def curve(self, label: str, step: int, metrics: Mapping[str, float]) -> None:
        """Mirror one point of a training curve."""

    def finish(self, result: Result) -> None:
        """Mirror the result."""


class Tracker(Component):
    """A place to mirror runs to."""

    def open(self, config: RunConfig, run_id: str) -> Session:
        """Return the session of one run."""
        return Session()


@register("tracker", "none")
class NoTracker(Tracker):
    """Mirrors nothing."""

    kind: Literal["none"] = "none"
