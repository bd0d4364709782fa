"""Task negation: forget one task, keep the control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.merge.base import UNIT_GRID
from taskvec.needs import Examples
from taskvec.protocols.base import SELECTION, Answer, Ask, Cell, Composed, Learning, Protocol
from taskvec.protocols.questions.scores import scores
from taskvec.protocols.rows import Criterion, Report
from taskvec.protocols.selection import Rule
from taskvec.protocols.summing import Rows, curve, individual, zero_shot
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

    draws: ClassVar[bool] = True
    uses_control: ClassVar[bool] = True

    def check(self, suite: Suite) -> None:
        """Check that there is a control.

        Raises:
            UserError: if the suite names none.
        """
        if suite.control is None:
            raise UserError(
                "protocol=negation: the suite has no control task; set suite.control=NAME"
            )

    def cells(self, ask: Ask) -> list[Cell]:
        """Return zero-shot, individual, and per task the negated, random and gradient-ascent models."""
        suite, base = ask.suite, zero_shot(self, ask.suite, ask.suite.tasks, ask.suite.control)
        cells = [base]
        for task in suite.tasks:
            tuned = ask.tuned(task)
            cells.append(individual(self, suite, task, tuned, suite.control))
            negated = self._negated(ask, task, base)
            cells.append(self._searched(ask, "negated", task, negated, base, ask.grid))
            if self.random:
                drawn = Composed(((1.0, ask.drawn(tuned)),), forward=self.forward)
                # The vector is not learned, so a learned merge's grid of one coefficient says nothing about it.
                grid = UNIT_GRID if ask.learns else ask.grid
                cells.append(self._searched(ask, "random", task, drawn, base, grid))
            if self.ascent:
                ascended = Composed(((1.0, ask.tuned(task, ascend=True)),), forward=self.forward)
                question = scores(suite, (task,), suite.control, fixed=(1.0,))
                cells.append(Cell(f"ascent/{task}", ascended, question))
        return cells

    def _negated(self, ask: Ask, task: str, base: Cell) -> Composed:
        named = (task, ask.suite.control)
        examples = tuple(Examples(name, SELECTION, "learning", labels=True) for name in named)
        learning = self._learning(ask, examples, base) if ask.learns else None
        vectors = ((-1.0, ask.vector(task)),)
        return Composed(vectors, merge=True, forward=self.forward, learning=learning)

    def _learning(self, ask: Ask, examples: tuple[Examples, ...], base: Cell) -> Learning:
        """Return what a learned merge forgets and keeps; its epoch is chosen by the rule on the same split.

        Raises:
            UserError: if the control is a corpus, which has no labels.
        """
        if ask.suite.control_metric == "perplexity":
            raise UserError(
                "protocol=negation: a learned merge keeps a labelled control; name a task as suite.control"
            )
        selection = tuple(
            Examples(need.task, SELECTION, "selection", labels=True) for need in examples
        )
        rule = Rule(kind="lowest_target", control_threshold=self.control_threshold)
        return Learning("negation", examples, rule, selection, (("zero_shot", base),))

    def _searched(  # noqa: PLR0913, PLR0917 (what a cell is made of)
        self,
        ask: Ask,
        name: str,
        task: str,
        composed: Composed,
        base: Cell,
        grid: tuple[float, ...],
    ) -> Cell:
        keeps: dict[str, Any] = {"control_threshold": self.control_threshold}
        if ask.suite.control_metric == "perplexity":
            keeps = {"perplexity_tolerance": self.perplexity_tolerance}
        rule = Rule(kind=self.rule, **keeps)
        question = scores(ask.suite, (task,), ask.suite.control, grid=grid, rule=rule)
        return Cell(f"{name}/{task}", composed, question, (("zero_shot", base),))

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, individual, negated, (random, ascent): mean target and mean control accuracy."""
        make = Rows(suite)
        rows = {
            "zero_shot": make.row(
                "zero_shot", answers["zero_shot"], 0.0, suite.tasks, control=suite.control
            )
        }
        named = {"individual": True, "negated": True, "random": self.random, "ascent": self.ascent}
        for name in [name for name, asked in named.items() if asked]:
            parts = {}
            for task in suite.tasks:
                cell = f"{name}/{task}"
                answer = answers[cell]
                alpha = answer.alpha if answer.rule else 1.0
                parts[task] = make.row(
                    name, answer, alpha, [task], control=suite.control, cell=cell
                )
            rows[name] = make.joined(name, parts)
        curves = {
            f"negated/{t}": curve(answers[f"negated/{t}"], [t], suite.control) for t in suite.tasks
        }
        value = rows["negated"].mean("validation")
        criterion = Criterion(name="negated/validation", value=value, better="lower")
        return Report(rows=tuple(rows.values()), curves=curves, criterion=criterion)
