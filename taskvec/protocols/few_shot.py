"""Few-shot learning: a merge of the other tasks' vectors, learned on a few labelled examples of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from taskvec.errors import UserError
from taskvec.needs import Budget, Examples, Grant, Tuned
from taskvec.protocols.base import REPORT, Answer, Ask, Cell, Composed
from taskvec.protocols.rows import Report
from taskvec.protocols.selection import denominators
from taskvec.protocols.summing import Rows
from taskvec.protocols.targets import Targeted
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite

PAPER = "Zhang et al., NeurIPS 2024, arXiv 2407.02880, sections 5 and 6"


@register("protocol", "few_shot", paper=PAPER)
class FewShot(Targeted):
    """Learns the run's merge of the other tasks' vectors on ``shots`` examples per class of each target, and reports.

    ``fraction`` takes that share of the training examples instead (PEFT study). Draws of one seed are nested: k shots
    are among 2k. ``tuned`` adds the run's fine-tuning method on the same examples as a row, ``individual`` that on all
    training examples, whose accuracy is the denominator of ``normalised``.
    """

    kind: Literal["few_shot"] = "few_shot"
    shots: int | None = Field(None, ge=1)
    fraction: float | None = Field(None, gt=0, le=1)
    tuned: bool = False
    individual: bool = True

    draws: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.shots is None) == (self.fraction is None):
            raise ValueError("set one of shots (per class) and fraction (of the training examples)")
        return self

    @property
    def objective(self) -> str:
        """Cross-entropy."""
        return "cross_entropy"

    def learned_on(self, task: str) -> Examples:
        """Return the target's few training examples."""
        budget = Budget(fraction=self.fraction, shots=self.shots, seed=self.seed or 0)
        return Examples(task, "train", "learning", labels=True, budget=budget)

    def asked(self, suite: Suite, aims: Sequence[str]) -> tuple[str, ...]:
        """Return the tasks that the models of some targets are asked about."""
        return tuple(aims)

    def cells(self, ask: Ask) -> list[Cell]:
        """Return zero-shot, and per target the merged, the individual and the tuned model."""
        suite, aims = ask.suite, self.aims(ask.suite)
        cells = [self.zero_shot(suite, self.asked(suite, aims))]
        for task in aims:
            about = self.asked(suite, (task,))
            cells.append(
                Cell(f"merged/{task}", self.composed(ask, task), self.question(suite, about))
            )
            references = {"individual": ask.tuned(task), "tuned": Tuned((self.learned_on(task),))}
            for name in self.references():
                composed = Composed(((1.0, references[name]),), forward=self.forward)
                cells.append(Cell(f"{name}/{task}", composed, self.question(suite, about)))
        return cells

    def references(self) -> list[str]:
        """Return the names of the rows that are compared with."""
        wanted = {"individual": self.individual, "tuned": self.tuned}
        return [name for name, asked in wanted.items() if asked]

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, (individual, tuned,) merged."""
        aims = self.aims(suite)
        make = Rows(suite, denominators(aims, answers, REPORT)) if self.individual else Rows(suite)
        rows = [make.row("zero_shot", answers["zero_shot"], 0.0, aims)]
        rows += [self.joined(make, name, answers, suite) for name in (*self.references(), "merged")]
        return Report(rows=tuple(rows), criterion=self.criterion(rows[-1]))


@register("protocol", "out_of_distribution", paper=PAPER)
class OutOfDistribution(FewShot):
    """Few-shot learning on one target, reported on the suite's ``held_out`` tasks of the same classes too.

    ``targets`` names the task that is learned on; the held-out ones are never learned from.
    """

    kind: Literal["out_of_distribution"] = "out_of_distribution"
    targets: tuple[str, ...] | None = Field(None, min_length=1, max_length=1)
    select: Literal["last"] = "last"

    unseen_targets: ClassVar[bool] = True

    def check(self, suite: Suite) -> None:
        """Check that there are a target and held-out tasks.

        Raises:
            UserError: if one of them is missing.
        """
        if self.targets is None:
            raise UserError(
                f"protocol={self.kind}: set protocol.targets=[TASK], the task that is learned on"
            )
        super().check(suite)
        if not suite.held_out:
            raise UserError(
                f"protocol={self.kind}: set suite.held_out to tasks of the target's classes"
            )

    def grants(self, suite: Suite) -> Sequence[Grant]:
        """Return the usual grants of the suite's own tasks; of held-out tasks only test, to report."""
        known = tuple(task for task in (*suite.tasks, suite.control) if task)
        usual = [
            Grant(grant.use, grant.split, grant.labels, known) for grant in super().grants(suite)
        ]
        return (*usual, Grant("report", REPORT, labels=True))

    def asked(self, suite: Suite, aims: Sequence[str]) -> tuple[str, ...]:
        """Return the target and the held-out tasks."""
        return (*aims, *suite.held_out)

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, (individual, tuned,) merged: the target, then the held-out tasks."""
        (target,) = self.aims(suite)
        tasks = self.asked(suite, (target,))
        make = Rows(suite)
        zero = make.row("zero_shot", answers["zero_shot"], 0.0, tasks)
        rows = [zero]
        for name in (*self.references(), "merged"):
            cell = f"{name}/{target}"
            row = make.row(name, answers[cell], 1.0, tasks, cell=cell)
            rows.append(row)
        criterion = self.criterion(rows[-1])
        return Report(rows=tuple(rows), criterion=criterion)
