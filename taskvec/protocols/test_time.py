"""Test-time adaptation: a merge of the other tasks' vectors, learned on the target's test examples without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.needs import Examples, Grant
from taskvec.protocols.base import REPORT, Answer, Ask, Cell
from taskvec.protocols.questions.pseudo_labels import QUANTITIES, PseudoLabels
from taskvec.protocols.rows import Metric, Report, metric
from taskvec.protocols.summing import Rows
from taskvec.protocols.targets import Targeted
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite


@register(
    "protocol", "test_time", paper="Zhang et al., NeurIPS 2024, arXiv 2407.02880, section 6.2"
)
class TestTime(Targeted):
    """Adapts the run's merge of the other tasks' vectors to each target's unlabelled test examples, and reports.

    The objective is unsupervised FixMatch unless ``merge.objective`` says otherwise. ``select`` "validation" looks at
    labels of the target, as the released code does; the default looks at none.
    """

    __test__: ClassVar[bool] = False  # no test case, whatever pytest makes of the name

    kind: Literal["test_time"] = "test_time"

    unseen_targets: ClassVar[bool] = True
    peers: ClassVar[str] = "merge=norms"

    @property
    def objective(self) -> str:
        """Unsupervised FixMatch."""
        return "ufm"

    def learned_on(self, task: str) -> Examples:
        """Return the target's test examples without labels."""
        return Examples(task, REPORT, "learning")

    def grants(self, suite: Suite) -> Sequence[Grant]:
        """Return the usual grants, and unlabelled test examples to learn on."""
        return (*super().grants(suite), Grant("learning", REPORT, labels=False))

    def cells(self, ask: Ask) -> list[Cell]:
        """Return zero-shot, and per target the adapted model and what it took for true."""
        suite = ask.suite
        cells = [self.zero_shot(suite, self.aims(suite))]
        for task in self.aims(suite):
            composed = self.composed(ask, task)
            cells.append(Cell(f"merged/{task}", composed, self.question(suite, (task,))))
            cells.append(Cell(f"pseudo_labels/{task}", composed, PseudoLabels(target=task)))
        return cells

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot and merged; merged with what is known of pseudo-labels."""
        make = Rows(suite)
        merged = self.joined(make, "merged", answers, suite)
        metrics = merged.metrics | self._pseudo_labels(suite, answers)
        zero_shot = make.row("zero_shot", answers["zero_shot"], 0.0, self.aims(suite))
        rows = (zero_shot, merged.model_copy(update={"metrics": metrics}))
        return Report(rows=rows, criterion=self.criterion(merged))

    def _pseudo_labels(self, suite: Suite, answers: Mapping[str, Answer]) -> dict[str, Metric]:
        found = {}
        for name in QUANTITIES:
            values = {}
            for task in self.aims(suite):
                told = answers[f"pseudo_labels/{task}"].values
                if name in told:
                    values[task] = told[name]
            if values:
                found[name] = metric(values, better="neither")
        return found
