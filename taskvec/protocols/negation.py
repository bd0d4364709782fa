"""Task negation: forget one task, keep the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.protocols.question import (
    Answer,
    Cell,
    Protocol,
    Report,
    VectorRef,
    curve,
    individual,
    joined,
    mean,
    row,
    zero_shot,
)
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite


@register("protocol", "negation", paper="Ilharco et al., ICLR 2023, arXiv 2212.04089, section 3")
class Negation(Protocol):
    """Subtracts each task's vector and reports target and control accuracy, one model per task.

    ``rule`` is ``lowest_target`` (tangent-space paper and aTLAS: the lowest target accuracy on validation among
    coefficients whose control accuracy is at least ``control_threshold`` of zero-shot) or ``largest_feasible``
    (Ilharco et al.: the largest such coefficient). Where the control is a corpus, its perplexity may rise by
    ``perplexity_tolerance`` instead.
    """

    kind: Literal["negation"] = "negation"
    rule: Literal["lowest_target", "largest_feasible"] = "lowest_target"
    control_threshold: float = Field(0.95, ge=0, le=1)
    perplexity_tolerance: float = Field(0.5, ge=0)
    random: bool = True
    ascent: bool = False

    uses_control: ClassVar[bool] = True

    def check(self, suite: Suite) -> None:
        """Check that there is a control.

        Raises:
            UserError: if the suite names none.
        """
        if suite.control is None:
            raise UserError("protocol=negation: the suite has no control task; set suite.control=NAME")

    def cells(self, suite: Suite, grid: Sequence[float]) -> list[Cell]:
        """Return zero-shot, individual, and per task the negated, random and gradient-ascent models."""
        base = zero_shot(suite.tasks, suite.control)
        cells = [base]
        settings = {"control_threshold": self.control_threshold}
        if suite.control_metric == "perplexity":
            settings = {"perplexity_tolerance": self.perplexity_tolerance}
        for task in suite.tasks:
            cells.append(individual(task, suite.control))
            for name, sign, source in self._searched():
                cells.append(
                    Cell(f"{name}/{task}", ((sign, VectorRef((task,), source, source == "finetune")),), (task,),
                         suite.control, tuple(grid), self.rule, settings, {"zero_shot": base}, merge=name == "negated")
                )  # fmt: skip
            if self.ascent:
                vector = ((1.0, VectorRef((task,), "ascent", transformed=False)),)
                cells.append(Cell(f"ascent/{task}", vector, (task,), suite.control, fixed=(1.0,), merge=False))
        return cells

    def _searched(self) -> list[tuple[str, float, str]]:
        return [("negated", -1.0, "finetune"), *([("random", 1.0, "random")] if self.random else [])]

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, individual, negated, (random, ascent): mean target and mean control accuracy."""
        perplexity = suite.control_metric == "perplexity"
        rows = [row("zero_shot", answers["zero_shot"], 0.0, suite.tasks, control=suite.control)]
        names = ["individual", *(name for name, _, _ in self._searched()), *(["ascent"] if self.ascent else [])]
        for name in names:
            parts = {}
            for task in suite.tasks:
                answer = answers[f"{name}/{task}"]
                alpha = answer.alpha if answer.rule else 1.0
                parts[task] = row(name, answer, alpha, [task], control=suite.control)
            rows.append(joined(name, parts))
        if perplexity:
            rows = [r.model_copy(update={"control": None, "perplexity": r.control}) for r in rows]
        curves = {f"negated/{t}": curve(answers[f"negated/{t}"], [t], suite.control) for t in suite.tasks}
        return Report(rows=tuple(rows), curves=curves, primary=-mean(rows[2].accuracy.values()))
