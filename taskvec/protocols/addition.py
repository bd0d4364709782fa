"""Task addition: one model for many tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.protocols.question import (
    REPORT,
    Answer,
    Cell,
    Protocol,
    Report,
    Row,
    VectorRef,
    curve,
    individual,
    joined,
    mean,
    row,
    zero_shot,
)
from taskvec.protocols.selection import denominators
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite


@register("protocol", "addition", paper="Ilharco et al., ICLR 2023, arXiv 2212.04089, section 4")
class Addition(Protocol):
    """Merges the vectors of all tasks and asks for absolute and normalised accuracy, at the searched alpha and at 1.

    ``subset_size`` k asks the same of every k of the tasks. ``joint`` adds the multi-task model trained on their union.
    """

    kind: Literal["addition"] = "addition"
    rule: Literal["highest_normalised"] = "highest_normalised"
    subset_size: int | None = Field(None, ge=1)
    joint: bool = False

    def check(self, suite: Suite) -> None:
        """Check the size of subsets.

        Raises:
            UserError: if it exceeds the suite's.
        """
        if (self.subset_size or 0) > len(suite.tasks):
            raise UserError(f"protocol.subset_size: {self.subset_size}, but the suite has {len(suite.tasks)} tasks")

    def subsets(self, suite: Suite) -> dict[str, tuple[str, ...]]:
        """Return the task subsets by cell name."""
        if self.subset_size is None:
            return {"merged": suite.tasks}
        return {f"merged/{'+'.join(chosen)}": chosen for chosen in combinations(suite.tasks, self.subset_size)}

    def cells(self, suite: Suite, grid: Sequence[float]) -> list[Cell]:
        """Return zero-shot, individual, (joint,) and merged cells."""
        singles = {f"individual/{task}": individual(task) for task in suite.tasks}
        cells = [zero_shot(suite.tasks), *singles.values()]
        if self.joint:
            vector = ((1.0, VectorRef(suite.tasks, transformed=False)),)
            cells.append(Cell("joint", vector, suite.tasks, fixed=(1.0,), merge=False))
        for name, chosen in self.subsets(suite).items():
            vectors = tuple((1.0, VectorRef((task,))) for task in chosen)
            needs = {f"individual/{task}": singles[f"individual/{task}"] for task in chosen}
            cells.append(Cell(name, vectors, chosen, grid=tuple(grid), rule=self.rule, needs=needs, fixed=(1.0,)))
        return cells

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, individual, (joint,) merged and merged_alpha_1."""
        own = denominators(suite.tasks, answers, REPORT)
        singles = {t: row("individual", answers[f"individual/{t}"], 1.0, [t], denominators=own) for t in suite.tasks}
        rows = [
            row("zero_shot", answers["zero_shot"], 0.0, suite.tasks, denominators=own),
            joined("individual", singles),
        ]
        if self.joint:
            rows.append(row("joint", answers["joint"], 1.0, suite.tasks, denominators=own))
        merged: list[Row] = []
        curves = {}
        for name, chosen in self.subsets(suite).items():
            answer, at_one = answers[name], name.replace("merged", "merged_alpha_1", 1)
            merged.append(row(name, answer, answer.alpha, chosen, denominators=own))
            rows += [merged[-1], row(at_one, answer, 1.0, chosen, denominators=own, searched=False)]
            curves[name] = curve(answer, chosen)
        return Report(rows=tuple(rows), curves=curves, primary=mean(r.normalised_mean for r in merged))
