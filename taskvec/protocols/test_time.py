"""Test-time adaptation: a merge of the other tasks' vectors, learned on the target's test examples without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.needs import Examples, Grant
from taskvec.protocols.base import REPORT, SELECTION, Answer, Ask, Cell, Composed, Learning, Protocol
from taskvec.protocols.questions.pseudo_labels import PseudoLabels
from taskvec.protocols.questions.scores import scores
from taskvec.protocols.rows import Criterion, Report, metric
from taskvec.protocols.selection import Rule
from taskvec.protocols.summing import Rows, zero_shot
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite


@register("protocol", "test_time", paper="Zhang et al., NeurIPS 2024, arXiv 2407.02880, section 6.2")
class TestTime(Protocol):
    """Adapts the run's merge of the other tasks' vectors to each target's unlabelled test examples, and reports.

    The objective is unsupervised FixMatch unless ``merge.objective`` says otherwise. ``select`` "validation" keeps the
    epoch of highest accuracy on labelled validation examples, as the released code does; "last" looks at no label.
    """

    __test__: ClassVar[bool] = False  # no test case, whatever pytest makes of the name

    kind: Literal["test_time"] = "test_time"
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    select: Literal["last", "validation"] = "last"

    unseen_targets: ClassVar[bool] = True

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

    def grants(self, suite: Suite) -> Sequence[Grant]:
        """Return the usual grants, and unlabelled test examples to learn on."""
        return (*super().grants(suite), Grant("learning", REPORT, labels=False))

    def cells(self, ask: Ask) -> list[Cell]:
        """Return zero-shot, and per target the adapted model and what it took for true.

        Raises:
            UserError: if the run's merge learns nothing.
        """
        if not ask.learns:
            raise UserError(f"protocol={self.kind} needs a merge that learns; set method=atlas, or merge=norms")
        suite = ask.suite
        cells = [zero_shot(self, suite, self.aims(suite))]
        for task in self.aims(suite):
            composed = self._composed(ask, task)
            question = scores(suite, (task,), fixed=(1.0,), on_selection=self.select == "validation")
            cells.append(Cell(f"merged/{task}", composed, question))
            cells.append(Cell(f"pseudo_labels/{task}", composed, PseudoLabels(target=task)))
        return cells

    def _composed(self, ask: Ask, task: str) -> Composed:
        others = tuple(other for other in ask.suite.tasks if other != task)
        vectors = tuple((1.0, ask.vector(other, among=others, without=(task,))) for other in others)
        examples = (Examples(task, REPORT, "learning"),)
        learning = Learning("ufm", examples)
        if self.select == "validation":
            selection = (Examples(task, SELECTION, "selection", labels=True),)
            learning = Learning("ufm", examples, Rule(kind="highest_accuracy"), selection)
        return Composed(vectors, merge=True, forward=self.forward, learning=learning)

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot and merged; merged with accepted share and trusted precision where there are any."""
        aims, make = self.aims(suite), Rows(suite)
        parts = {}
        for task in aims:
            cell = f"merged/{task}"
            parts[task] = make.row("merged", answers[cell], 1.0, [task], cell=cell)
        merged = make.joined("merged", parts)
        found = dict(merged.metrics)
        for name in ("accepted", "trusted", "precision"):
            values = {task: answers[f"pseudo_labels/{task}"].values.get(name) for task in aims}
            known = {task: value for task, value in values.items() if value is not None}
            if known:
                found[name] = metric(known, better="neither")
        rows = (make.row("zero_shot", answers["zero_shot"], 0.0, aims), merged.model_copy(update={"metrics": found}))
        if self.select == "validation":
            criterion = Criterion(name="merged/validation", value=merged.mean("validation"))
        else:  # no label but the report's was looked at
            criterion = Criterion(name="merged/accuracy", value=merged.mean("accuracy"), split=REPORT)
        return Report(rows=rows, criterion=criterion)
