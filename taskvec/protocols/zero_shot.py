"""The pre-trained model alone: what loading, prompts and splits are checked by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from taskvec.protocols.base import REPORT, Answer, Ask, Cell, Protocol
from taskvec.protocols.rows import Criterion, Report
from taskvec.protocols.summing import Rows, zero_shot
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite


@register("protocol", "zero_shot", paper="Radford et al., ICML 2021, arXiv 2103.00020")
class ZeroShot(Protocol):
    """Asks the pre-trained model about every task's test examples; no vector is made, no validation example seen."""

    kind: Literal["zero_shot"] = "zero_shot"

    def check(self, suite: Suite) -> None:
        """Accept every suite."""

    def cells(self, ask: Ask) -> list[Cell]:
        """Return the zero-shot cell."""
        return [zero_shot(self, ask.suite, ask.suite.tasks, on_selection=False)]

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the row zero_shot."""
        row = Rows(suite).row("zero_shot", answers["zero_shot"], 0.0, suite.tasks)
        criterion = Criterion(name="zero_shot/accuracy", value=row.mean("accuracy"), split=REPORT)
        return Report(rows=(row,), criterion=criterion)
