"""What few-shot and test-time protocols share: models of one target each, made of the other tasks' vectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.needs import Examples
from taskvec.protocols.base import (
    REPORT,
    SELECTION,
    Answer,
    Ask,
    Cell,
    Composed,
    Learning,
    Protocol,
)
from taskvec.protocols.questions.scores import Scores, scores
from taskvec.protocols.rows import Criterion, Row
from taskvec.protocols.selection import Rule
from taskvec.protocols.summing import Rows

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite


class Targeted(Protocol):
    """Learns the run's merge of the other tasks' vectors for each target.

    The target's own vector, and what looks at its data, is kept out. ``targets`` None are all tasks. ``select``
    "validation" keeps the epoch of highest validation accuracy, as the authors do; "last" looks at no validation
    example.
    """

    targets: tuple[str, ...] | None = Field(None, min_length=1)
    select: Literal["last", "validation"] = "last"

    # What the message about a merge that learns nothing names besides aTLAS
    peers: ClassVar[str] = "merge=none"

    @abstractmethod
    def learned_on(self, task: str) -> Examples:
        """Return the target's examples that a merge learns on."""

    @property
    @abstractmethod
    def objective(self) -> str:
        """The objective by which a merge learns unless it has one of its own."""

    def check(self, suite: Suite) -> None:
        """Check targets, and that there is a vector to merge.

        Raises:
            UserError: for a target outside the suite, or a suite of one task.
        """
        unknown = [task for task in self.aims(suite) if task not in suite.tasks]
        if unknown:
            raise UserError(f"protocol.targets: {', '.join(unknown)} not among suite.tasks")
        if len(suite.tasks) < 2:
            raise UserError(
                f"protocol={self.kind}: the vectors are those of other tasks; give the suite two or more"
            )

    def aims(self, suite: Suite) -> tuple[str, ...]:
        """Return the targets."""
        return suite.tasks if self.targets is None else self.targets

    def learning(self, task: str) -> Learning:
        """Return what a learned merge learns on."""
        examples = (self.learned_on(task),)
        if self.select == "last":
            return Learning(self.objective, examples)
        selection = (Examples(task, SELECTION, "selection", labels=True),)
        return Learning(self.objective, examples, Rule(kind="highest_accuracy"), selection)

    def composed(self, ask: Ask, task: str) -> Composed:
        """Return a target's model.

        Raises:
            UserError: if the run's merge learns nothing.
        """
        if not ask.learns:
            raise UserError(
                f"protocol={self.kind} needs a merge that learns; set method=atlas, or {self.peers}"
            )
        others = tuple(other for other in ask.suite.tasks if other != task)
        vectors = tuple((1.0, ask.vector(other, among=others, without=(task,))) for other in others)
        return Composed(vectors, merge=True, forward=self.forward, learning=self.learning(task))

    def question(self, suite: Suite, tasks: Sequence[str], alpha: float = 1.0) -> Scores:
        """Return what models are asked: test scores, and those on validation where an epoch was chosen by them."""
        return scores(suite, tasks, fixed=(alpha,), on_selection=self.select == "validation")

    def zero_shot(self, suite: Suite, tasks: Sequence[str]) -> Cell:
        """Return the cell of the pre-trained model."""
        return Cell("zero_shot", Composed(forward=self.forward), self.question(suite, tasks, 0.0))

    def joined(self, make: Rows, name: str, answers: Mapping[str, Answer], suite: Suite) -> Row:
        """Return the row of the cells NAME/TARGET."""
        parts = {}
        for task in self.aims(suite):
            cell = f"{name}/{task}"
            parts[task] = make.row(name, answers[cell], 1.0, [task], cell=cell)
        return make.joined(name, parts)

    def criterion(self, merged: Row) -> Criterion:
        """Return what sums the run up: validation where it was looked at, else the report, which ranks nothing."""
        if self.select == "validation":
            return Criterion(name="merged/validation", value=merged.mean("validation"))
        return Criterion(name="merged/accuracy", value=merged.mean("accuracy"), split=REPORT)
