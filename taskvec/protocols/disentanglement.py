"""Weight disentanglement: how much adding another task's vector changes what a model says of its own task."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.protocols.base import Answer, Ask, Cell, Composed, Protocol
from taskvec.protocols.questions.disentanglement import DisentanglementMaps, DisentanglementMatrix
from taskvec.protocols.rows import Criterion, Report, Row, mean, metric
from taskvec.protocols.summing import only_classes
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite

GRID = tuple(round(-2 + 4 * step / 14, 4) for step in range(15))


@register(
    "protocol",
    "disentanglement",
    paper="Ortiz-Jimenez et al., NeurIPS 2023, arXiv 2305.12827, section 4",
)
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
        named = {task for pair in self.pairs or () for task in pair}
        unknown = sorted(named - set(suite.tasks))
        if unknown:
            raise UserError(
                f"protocol.pairs: {', '.join(unknown)} not in the suite ({', '.join(suite.tasks)})"
            )
        twice = [first for first, second in self.pairs or () if first == second]
        if twice:
            raise UserError(f"protocol.pairs: {twice[0]} is paired with itself")
        if len(suite.tasks) < 2:
            raise UserError("protocol=disentanglement: the suite needs two tasks or more")

    def cells(self, ask: Ask) -> list[Cell]:
        """Return the cell of the maps and that of the matrix."""
        suite = ask.suite
        composed = Composed(
            tuple((1.0, ask.vector(task)) for task in suite.tasks), forward=self.forward
        )
        pairs = tuple(combinations(suite.tasks, 2)) if self.pairs is None else self.pairs
        cells = []
        if pairs:
            cells.append(
                Cell("disentanglement", composed, DisentanglementMaps(grid=self.grid, pairs=pairs))
            )
        if self.alpha is not None:
            cells.append(
                Cell("disentanglement_matrix", composed, DisentanglementMatrix(alpha=self.alpha))
            )
        return cells

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return xi per pair, averaged over the box [0, 1]^2 of the search, and per task over the added vectors."""
        rows: list[Row] = []
        maps: dict[str, Any] = {}
        if "disentanglement" in answers:
            found = answers["disentanglement"].values
            maps |= found
            for form in ("labels", "features"):
                boxes = {pair: in_the_box(values, form) for pair, values in found.items()}
                rows.append(self._row(f"xi_{form}", boxes, "disentanglement"))
        if "disentanglement_matrix" in answers:
            values = answers["disentanglement_matrix"].values
            maps["matrix"] = values
            others = max(1, len(suite.tasks) - 1)
            means = {
                task: sum(line) / others
                for task, line in zip(values["rows"], values["matrix"], strict=True)
            }
            rows.append(self._row("xi_matrix", means, "disentanglement_matrix"))
        value = mean(row.mean("xi") for row in rows)
        criterion = Criterion(name="xi", value=value, better="lower", split="test")
        return Report(rows=tuple(rows), maps=maps, criterion=criterion)

    @staticmethod
    def _row(name: str, values: Mapping[str, float], cell: str) -> Row:
        return Row(row=name, metrics={"xi": metric(values, better="lower")}, cells={"all": cell})


def in_the_box(values: Mapping[str, Any], form: str) -> float:
    """Return a map's mean over the coefficients in [0, 1]."""
    inside = [index for index, alpha in enumerate(values["grid"]) if 0 <= alpha <= 1]
    inside = inside or list(range(len(values["grid"])))
    return mean(values[form][i][j] for i in inside for j in inside)
