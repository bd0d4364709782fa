"""Internal quantities of a suite's vectors: drift on other tasks, kernel regime, orthogonality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from taskvec.protocols.question import (
    Answer,
    Cell,
    Protocol,
    Report,
    Row,
    VectorRef,
    individual,
    joined,
    mean,
    only_classes,
    row,
)
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite

Name = Literal["drift", "kernel_regime", "orthogonality"]


@register(
    "protocol",
    "analysis",
    paper="Jin et al., ICLR 2025, arXiv 2407.07089; Porrello et al., ICLR 2026, arXiv 2602.17385",
)
class Analysis(Protocol):
    """Measures each task's vector on the test images of all tasks; rows are fractions, matrices are in ``maps``.

    ``drift``: mean squared derivative of the features along a vector on the other tasks. ``kernel_regime``: accuracy of
    the fine-tuned model and of its linearisation, and the relative error between their features. ``orthogonality``:
    cosines between vectors.
    """

    kind: Literal["analysis"] = "analysis"
    measures: tuple[Name, ...] = Field(("drift", "orthogonality"), min_length=1)

    def check(self, suite: Suite) -> None:
        """Check that the tasks are classifications where the kernel regime, which compares accuracies, is asked for.

        Raises:
            UserError: naming a task that is not.
        """
        if "kernel_regime" in self.measures:
            only_classes(suite, "protocol.measures: kernel_regime")

    def cells(self, suite: Suite, grid: Sequence[float]) -> list[Cell]:
        """Return the individual models' cells and one cell per measure."""
        vectors = tuple((1.0, VectorRef((task,))) for task in suite.tasks)
        measures = [Cell(name, vectors, suite.tasks, measure=name, merge=False) for name in self.measures]
        return [*(individual(task) for task in suite.tasks), *measures]

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the individual models' accuracy and each measure's mean over the other tasks."""
        singles = {task: row("individual", answers[f"individual/{task}"], 1.0, [task]) for task in suite.tasks}
        rows, maps = [joined("individual", singles)], {}
        for name in self.measures:
            values = answers[name].values
            maps[name] = values
            if name == "kernel_regime":
                for part in ("non_linear", "post_hoc", "relative_feature_error"):
                    rows.append(fractions(part, {task: values[task][part] for task in suite.tasks}))
            else:
                rows.append(fractions(name, on_others(values)))
        return Report(rows=tuple(rows), maps=maps, primary=rows[0].mean)


def fractions(name: str, values: Mapping[str, float]) -> Row:
    """Return the row of a quantity per task."""
    return Row(row=name, accuracy=dict(values), mean=mean(values.values()))


def on_others(values: Mapping[str, Any]) -> dict[str, float]:
    """Return each column's mean magnitude over the rows of the other tasks, 0 if there are none."""
    found = {}
    for s, task in enumerate(values["columns"]):
        others = [abs(values["matrix"][t][s]) for t in range(len(values["rows"])) if t != s]
        found[task] = mean(others) if others else 0.0
    return found
