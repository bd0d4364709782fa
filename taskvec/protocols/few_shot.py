"""Few-shot learning: a merge of the other tasks' vectors, learned on a few labelled examples of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from taskvec.errors import UserError
from taskvec.needs import Budget, Examples, Grant, Tuned
from taskvec.protocols.base import REPORT, SELECTION, Answer, Ask, Cell, Composed, Learning, Protocol
from taskvec.protocols.questions.scores import scores
from taskvec.protocols.rows import Criterion, Report
from taskvec.protocols.selection import Rule, denominators
from taskvec.protocols.summing import Rows, individual, zero_shot
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite

PAPER = "Zhang et al., NeurIPS 2024, arXiv 2407.02880, sections 5 and 6"


@register("protocol", "few_shot", paper=PAPER)
class FewShot(Protocol):
    """Learns the run's merge of the other tasks' vectors on ``shots`` examples per class of each target, and reports.

    ``fraction`` takes that share of the training examples instead (PEFT study). Draws of one seed are nested: k shots
    are among 2k. The target's own vector, and what looks at its data, is kept out. ``select`` "validation" keeps the
    epoch of highest validation accuracy, as the authors do; the default is a fixed number of epochs. ``targets`` None
    are all tasks. ``tuned`` adds the run's fine-tuning method on the same examples as a row, ``individual`` its
    denominators, fine-tuned on all of a target's training examples.
    """

    kind: Literal["few_shot"] = "few_shot"
    shots: int | None = Field(None, ge=1)
    fraction: float | None = Field(None, gt=0, le=1)
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    select: Literal["last", "validation"] = "last"
    tuned: bool = False
    individual: bool = True

    draws: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.shots is None) == (self.fraction is None):
            raise ValueError("set one of shots (per class) and fraction (of the training examples)")
        return self

    @property
    def budget(self) -> Budget:
        """The rows of a target that are learned on."""
        return Budget(fraction=self.fraction, shots=self.shots, seed=self.seed or 0)

    def check(self, suite: Suite) -> None:
        """Check targets, and that there is a vector to merge.

        Raises:
            UserError: for a target outside the suite, or a suite of one task.
        """
        unknown = [task for task in self.aims(suite) if task not in suite.tasks]
        if unknown:
            raise UserError(f"protocol.targets: {', '.join(unknown)} not among suite.tasks")
        if len(suite.tasks) < 2:
            raise UserError(f"protocol={self.kind}: the vectors are those of other tasks; give the suite two or more")

    def aims(self, suite: Suite) -> tuple[str, ...]:
        """Return the targets."""
        return suite.tasks if self.targets is None else self.targets

    def learned_on(self, task: str) -> Examples:
        """Return the target's examples that a merge learns on."""
        return Examples(task, "train", "learning", labels=True, budget=self.budget)

    def learning(self, task: str) -> Learning:
        """Return what a learned merge learns on."""
        examples = (self.learned_on(task),)
        if self.select == "last":
            return Learning("cross_entropy", examples)
        selection = (Examples(task, SELECTION, "selection", labels=True),)
        return Learning("cross_entropy", examples, Rule(kind="highest_accuracy"), selection)

    def cells(self, ask: Ask) -> list[Cell]:
        """Return zero-shot, and per target the merged, the individual and the tuned model.

        Raises:
            UserError: if the run's merge learns nothing.
        """
        if not ask.learns:
            raise UserError(f"protocol={self.kind} needs a merge that learns; set method=atlas, or merge=none")
        suite, aims = ask.suite, self.aims(ask.suite)
        asked = self.asked(suite, aims)
        # Held-out tasks are only reported on; their validation examples are nobody's.
        cells = [zero_shot(self, suite, asked, on_selection=asked == aims)]
        for task in aims:
            cells.append(self.merged(ask, task))
            if self.individual:
                cells.append(individual(self, suite, task, ask.tuned(task)))
            if self.tuned:
                composed = Composed(((1.0, Tuned((self.learned_on(task),))),), forward=self.forward)
                cells.append(Cell(f"tuned/{task}", composed, self.question(suite, task)))
        return cells

    def merged(self, ask: Ask, task: str) -> Cell:
        """Return the cell of one target."""
        others = tuple(other for other in ask.suite.tasks if other != task)
        vectors = tuple((1.0, ask.vector(other, among=others, without=(task,))) for other in others)
        composed = Composed(vectors, merge=True, forward=self.forward, learning=self.learning(task))
        return Cell(f"merged/{task}", composed, self.question(ask.suite, task))

    def asked(self, suite: Suite, aims: Sequence[str]) -> tuple[str, ...]:
        """Return the tasks that zero-shot is asked about."""
        return tuple(aims)

    def question(self, suite: Suite, task: str):
        """Return what a target's models are asked."""
        return scores(suite, (task,), fixed=(1.0,), on_selection=self.select == "validation")

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, (individual, tuned,) merged."""
        aims = self.aims(suite)
        own = denominators(aims, answers, REPORT) if self.individual else {}
        make = Rows(suite, own) if own else Rows(suite)
        rows = [make.row("zero_shot", answers["zero_shot"], 0.0, aims)]
        named = {"individual": self.individual, "tuned": self.tuned, "merged": True}
        for name in [name for name, asked in named.items() if asked]:
            parts = {}
            for task in aims:
                cell = f"{name}/{task}"
                parts[task] = make.row(name, answers[cell], 1.0, [task], cell=cell)
            rows.append(make.joined(name, parts))
        merged = rows[-1]
        if self.select == "validation":
            criterion = Criterion(name="merged/validation", value=merged.mean("validation"))
        else:  # nothing but the few examples and the test split was looked at
            criterion = Criterion(name="merged/accuracy", value=merged.mean("accuracy"), split=REPORT)
        return Report(rows=tuple(rows), criterion=criterion)


@register("protocol", "out_of_distribution", paper=PAPER)
class OutOfDistribution(FewShot):
    """Few-shot learning on one target, reported on the suite's ``held_out`` tasks of the same classes too.

    ``targets`` names the task that is learned on; the held-out ones are never learned from.
    """

    kind: Literal["out_of_distribution"] = "out_of_distribution"
    targets: tuple[str, ...] | None = Field(min_length=1, max_length=1)

    def check(self, suite: Suite) -> None:
        """Check that there are held-out tasks.

        Raises:
            UserError: if the suite names none.
        """
        super().check(suite)
        if not suite.held_out:
            raise UserError(f"protocol={self.kind}: set suite.held_out to tasks of the target's classes")

    def grants(self, suite: Suite) -> Sequence[Grant]:
        """Return the usual grants; of held-out tasks only test, to report."""
        usual = super().grants(suite)
        known = tuple(task for task in (*suite.tasks, suite.control) if task)
        restricted = [Grant(grant.use, grant.split, grant.labels, known) for grant in usual]
        return (*restricted, Grant("report", REPORT, labels=True))

    def asked(self, suite: Suite, aims: Sequence[str]) -> tuple[str, ...]:
        """Return the target and the held-out tasks."""
        return (*aims, *suite.held_out)

    def question(self, suite: Suite, task: str):
        """Return the question about the target and the held-out tasks."""
        return scores(suite, self.asked(suite, (task,)), fixed=(1.0,))

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, (individual, tuned,) merged: the target, then the held-out tasks."""
        (target,) = self.aims(suite)
        tasks, make = self.asked(suite, (target,)), Rows(suite)
        rows = [make.row("zero_shot", answers["zero_shot"], 0.0, tasks)]
        if self.individual:
            rows.append(
                make.row("individual", answers[f"individual/{target}"], 1.0, [target], cell=f"individual/{target}")
            )
        for name in ("tuned", "merged"):
            cell = f"{name}/{target}"
            if cell in answers:
                rows.append(make.row(name, answers[cell], 1.0, tasks, cell=cell))
        criterion = Criterion(name="merged/accuracy", value=rows[-1].values("accuracy")[target], split=REPORT)
        return Report(rows=tuple(rows), criterion=criterion)
