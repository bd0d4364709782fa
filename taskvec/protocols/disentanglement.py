"""Weight disentanglement: how much adding another task's vector changes what a model says of its own task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.protocols.analysis import fractions
from taskvec.protocols.question import Answer, Cell, Protocol, Report, VectorRef, mean, only_classes
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite

GRID = tuple(round(-2 + 4 * i / 14, 4) for i in range(15))


@register("protocol", "disentanglement", paper="Ortiz-Jimenez et al., NeurIPS 2023, arXiv 2305.12827, section 4")
class Disentanglement(Protocol):
    """The error xi as a map over coefficients (``pairs``), in label and in representation form, and as a T x T matrix.

    ``pairs`` lists pairs of tasks, None means all; ``grid`` is the maps' axis. The matrix (aTLAS) is taken at
    ``alpha`` for every vector; None leaves it out. On the test split.
    """

    kind: Literal["disentanglement"] = "disentanglement"
    grid: tuple[float, ...] = Field(GRID, min_length=1)
    pairs: tuple[tuple[str, str], ...] | None = None
    alpha: float | None = 1.0

    def check(self, suite: Suite) -> None:
        """Check that the pairs are of the suite, and that its tasks are classifications.

        Raises:
            UserError: naming a task that is not, or that is paired with itself.
        """
        only_classes(suite, "protocol=disentanglement")
        unknown = sorted({task for pair in self.pairs or () for task in pair} - set(suite.tasks))
        if unknown:
            raise UserError(f"protocol.pairs: {', '.join(unknown)} not in the suite ({', '.join(suite.tasks)})")
        twice = [first for first, second in self.pairs or () if first == second]
        if twice:
            raise UserError(f"protocol.pairs: {twice[0]} is paired with itself")
        if len(suite.tasks) < 2:
            raise UserError("protocol=disentanglement: the suite needs two tasks or more")

    def cells(self, suite: Suite, grid: Sequence[float]) -> list[Cell]:
        """Return the cell of the maps and that of the matrix."""
        vectors = tuple((1.0, VectorRef((task,))) for task in suite.tasks)
        cells = []
        pairs = list(combinations(suite.tasks, 2)) if self.pairs is None else list(self.pairs)
        if pairs:
            settings = {"grid": list(self.grid), "pairs": [list(pair) for pair in pairs]}
            cells.append(self._cell("disentanglement", vectors, suite.tasks, settings))
        if self.alpha is not None:
            cells.append(self._cell("disentanglement_matrix", vectors, suite.tasks, {"alpha": self.alpha}))
        return cells

    @staticmethod
    def _cell(name: str, vectors: tuple, tasks: tuple[str, ...], settings: Mapping) -> Cell:
        return Cell(name, vectors, tasks, measure=name, measure_settings=settings, merge=False)

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return xi per pair, averaged over the box [0, 1]^2 of the search, and per task over the added vectors."""
        rows, maps = [], {}
        if "disentanglement" in answers:
            found = answers["disentanglement"].values
            maps |= found
            for form in ("labels", "features"):
                rows.append(fractions(f"xi_{form}", {pair: in_the_box(at, form) for pair, at in found.items()}))
        if "disentanglement_matrix" in answers:
            values = answers["disentanglement_matrix"].values
            maps["matrix"] = values
            others = max(1, len(suite.tasks) - 1)
            means = {task: sum(line) / others for task, line in zip(values["rows"], values["matrix"], strict=True)}
            rows.append(fractions("xi_matrix", means))
        return Report(rows=tuple(rows), maps=maps, primary=-mean(r.mean for r in rows))


def in_the_box(values: Mapping, form: str) -> float:
    """Return a map's mean over the coefficients in [0, 1]."""
    inside = [i for i, a in enumerate(values["grid"]) if 0 <= a <= 1] or list(range(len(values["grid"])))
    return mean(values[form][i][j] for i in inside for j in inside)
