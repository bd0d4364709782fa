"""Pictures as data: what a stage puts into its report under "figures", and ``taskvec figure`` draws.

A stage writes ``report={"figures": {"spectrum": Lines(...).data()}}``; a run's result then holds it under
``reports[STAGE]["figures"]["spectrum"]``. Nothing here imports matplotlib.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from taskvec.config import Config

LARGEST = 1e100  # what can be drawn; values beyond it are shown as gaps
MANY, FEW = 2_000, 100  # labels and curves that a picture can hold

Place = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Point = tuple[Place, float]
Places = Annotated[tuple[Place, ...], Field(max_length=MANY)]
Labels = Annotated[tuple[str, ...], Field(max_length=MANY)]
Numbers = tuple[float, ...]
Matrix = tuple[Numbers, ...]
Curves = Annotated[dict[str, tuple[Point, ...]], Field(max_length=FEW)]
Groups = Annotated[dict[str, Numbers], Field(max_length=FEW)]
Marks = Annotated[dict[str, tuple[str, str, str]], Field(max_length=FEW)]


class Picture(Config):
    """What all pictures have: a title, the names of the axes, and the unit of the numbers (as metrics name it).

    ``marks`` hold colour, marker and dash of names that are to look the same in every picture, in Plotly's words.
    """

    title: str = ""
    x: str = ""
    y: str = ""
    unit: str = "number"
    marks: Marks = {}

    def data(self) -> dict[str, Any]:
        """Return the picture as JSON values, for a report."""
        return self.model_dump(mode="json")


class Lines(Picture):
    """Curves by name as points (x, y): ``series`` on the left axis, ``beside`` on a right axis of its own unit.

    ``strong`` names are drawn thick, ``dotted`` ones dotted. ``chosen`` marks a place of the x axis, ``excluded`` those
    where nothing finite came out. ``low`` and ``high`` hold the ends of the intervals of a name's points.
    """

    figure: Literal["lines"] = "lines"
    series: Curves
    low: Curves = {}
    high: Curves = {}
    scale: Literal["linear", "log"] = "linear"
    beside: Curves = {}
    beside_y: str = ""
    beside_unit: str = "number"
    strong: tuple[str, ...] = ()
    dotted: tuple[str, ...] = ()
    chosen: Place | None = None
    excluded: Places = ()


class Bars(Picture):
    """Numbers by label, side by side for each name of ``series``, with the ends of their intervals where given.

    A number without an interval has itself at both ends.
    """

    figure: Literal["bars"] = "bars"
    labels: Labels
    series: Groups
    low: Groups = {}
    high: Groups = {}

    @model_validator(mode="after")
    def _shapes(self) -> Bars:
        for groups in (self.series, self.low, self.high):
            _check_groups(groups, len(self.labels))
        return self


class Radar(Picture):
    """Numbers on spokes from a common centre, a spoke per label, a closed line for each name of ``series``."""

    figure: Literal["radar"] = "radar"
    labels: Labels
    series: Groups

    @model_validator(mode="after")
    def _shapes(self) -> Radar:
        _check_groups(self.series, len(self.labels))
        return self


class Points(Picture):
    """Places (x, y) by name, with the ends of the intervals of y where given."""

    figure: Literal["points"] = "points"
    series: Curves
    low: Curves = {}
    high: Curves = {}
    scale: Literal["linear", "log"] = "linear"


class Heat(Picture):
    """A matrix ``values`` [rows, columns] in colours, small ones with their numbers.

    Colours reach from 0 (or below) to the largest number beside the diagonal of a square matrix whose ``diagonal`` is
    another matter than the rest.
    """

    figure: Literal["heat"] = "heat"
    rows: Labels
    columns: Labels
    values: Matrix
    diagonal: bool = False

    @model_validator(mode="after")
    def _shapes(self) -> Heat:
        _check(self.values, len(self.rows), len(self.columns))
        return self


class Surface(Picture):
    """A quantity over two coefficients: ``values`` [first, second] on ``grid`` x ``grid``, the unit square outlined.

    ``high`` is the end of the colours, None the largest number.
    """

    figure: Literal["surface"] = "surface"
    grid: Places
    values: Matrix
    high: Place | None = None

    @model_validator(mode="after")
    def _shapes(self) -> Surface:
        _check(self.values, len(self.grid), len(self.grid))
        return self


Panel = Lines | Bars | Radar | Points | Heat | Surface
_PANELS: TypeAdapter[Any] = TypeAdapter(Annotated[Panel, Field(discriminator="figure")])


def panel(data: Any) -> Panel:
    """Return the picture that a report holds as JSON values.

    Raises:
        ValidationError: if it is none.
    """
    return _PANELS.validate_python(data)


def _check_groups(groups: Groups, wanted: int) -> None:
    for name, values in groups.items():
        if len(values) != wanted:
            raise ValueError(f"{name} has {len(values)} numbers for {wanted} labels")


def _check(values: Matrix, rows: int, columns: int) -> None:
    if not rows or not columns:
        raise ValueError("a matrix without rows or columns")
    sizes = [len(line) for line in values]
    if sizes != [columns] * rows:
        raise ValueError(f"the numbers are not {rows} x {columns}")
