"""Internal quantities of a suite's vectors: drift on other tasks, kernel regime, orthogonality, or a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from taskvec.protocols.base import Answer, Ask, Cell, Composed, Protocol, Question
from taskvec.protocols.rows import Criterion, Report
from taskvec.protocols.rows import Row as Line
from taskvec.protocols.summing import Rows, individual, only_classes
from taskvec.registry import lookup, register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite


@register(
    "protocol",
    "analysis",
    paper="Jin et al., ICLR 2025, arXiv 2407.07089; Porrello et al., ICLR 2026, arXiv 2602.17385",
)
class Analysis(Protocol):
    """Asks ``questions`` of the tasks' vectors on test examples; rows are fractions, matrices are in ``maps``.

    Shipped: ``drift``, ``kernel_regime``, ``orthogonality``; a user's own question is named like them.
    """

    kind: Literal["analysis"] = "analysis"
    questions: tuple[str, ...] = Field(("drift", "orthogonality"), min_length=1)

    @field_validator("questions")
    @classmethod
    def _askable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            fields = lookup("question", name).schema.model_fields
            required = [key for key, field in fields.items() if field.is_required()]
            if required:
                raise ValueError(
                    f"{name} takes settings ({', '.join(required)}), which a protocol of its own gives it"
                )
        return names

    def asked(self) -> dict[str, Question]:
        """Return the questions by name."""
        return {name: lookup("question", name).schema() for name in self.questions}

    def check(self, suite: Suite) -> None:
        """Check that the tasks are classifications where the kernel regime, which compares accuracies, is asked for.

        Raises:
            UserError: naming a task that is not.
        """
        if "kernel_regime" in self.questions:
            only_classes(suite, "protocol.questions: kernel_regime")

    def cells(self, ask: Ask) -> list[Cell]:
        """Return the individual models' cells and one cell per question."""
        suite = ask.suite
        cells = [individual(self, suite, task, ask.tuned(task)) for task in suite.tasks]
        vectors = tuple((1.0, ask.vector(task)) for task in suite.tasks)
        composed = Composed(vectors, forward=self.forward)
        return cells + [Cell(name, composed, question) for name, question in self.asked().items()]

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the individual models' accuracy and the rows of each question."""
        make = Rows(suite)
        singles = {}
        for task in suite.tasks:
            name = f"individual/{task}"
            singles[task] = make.row("individual", answers[name], 1.0, [task], cell=name)
        rows = [make.joined("individual", singles)]
        maps: dict[str, Any] = {}
        for name, question in self.asked().items():
            maps[name] = answers[name].values
            for part, quantity in question.summary(answers[name]).items():
                measured = (
                    "accuracy"
                    if quantity.unit == "fraction" and quantity.better == "higher"
                    else part
                )
                rows.append(Line(row=part, metrics={measured: quantity}, cells={"all": name}))
        criterion = Criterion(name="individual/validation", value=rows[0].mean("validation"))
        return Report(rows=tuple(rows), maps=maps, criterion=criterion)
