"""What there is to draw of a result: its maps and curves, and the pictures in its stages' reports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from pydantic import ValidationError

from taskvec.graph.result import Json, Result, first_problem
from taskvec.panel import LARGEST, Heat, Lines, Picture, Surface, panel
from taskvec.protocols.rows import Row
from taskvec.report.units import scaled
from taskvec.text import printable

log = logging.getLogger(__name__)

FORMS = {"labels": "error in labels", "features": "error in features (KL)"}
ACCURACY, MEAN, CONTROL, ALPHA, EXCLUDED = "accuracy", "mean", "control", "alpha", "excluded"

Points: TypeAlias = list[tuple[float, float]]
Pictures: TypeAlias = list[Picture]
Make: TypeAlias = Callable[[], Pictures]


def panels(result: Result) -> dict[str, Pictures]:
    """Return the pictures of a result by name: of maps and matrices, of curves, of stages' reports.

    What does not fit its schema is left out with a word.
    """
    found = {}
    for name, make in sources(result):
        pictures = made(name, make)
        if pictures:
            found[name] = pictures
    return found


def sources(result: Result) -> Iterator[tuple[str, Make]]:
    """Yield the name of everything that may hold pictures, and the function that returns them."""
    for name in result.maps:
        yield name, partial(of_map, result, name)
    for name in result.curves:
        yield name, partial(of_curve, result, name)
    for stage, report in result.reports.items():
        for name, data in figures_in(report).items():
            title = f"{stage}: {name}"
            yield f"{stage}/{name}", partial(of_report, data, title)


def made(name: str, make: Make) -> Pictures:
    """Return the pictures that a function makes, none where the data are not as expected."""
    try:
        return make()
    except ValidationError as error:
        reason = first_problem(error)
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = f"not as expected ({error})"
    log.warning("figure: %s is left out: %s", printable(name), printable(reason))
    return []


# Stages' reports


def figures_in(report: Json) -> dict[str, Any]:
    """Return the pictures of a stage's report by name, those of a list numbered."""
    found = report.get("figures")
    if isinstance(found, list):
        return {str(number): data for number, data in enumerate(found, 1)}
    return found if isinstance(found, dict) else {}


def of_report(data: Any, title: str) -> Pictures:
    """Return a picture as a stage describes it, under its own title or the given one."""
    picture = panel(data)
    return [picture if picture.title else picture.model_copy(update={"title": title})]


# Maps


def of_map(result: Result, name: str) -> Pictures:
    """Return the pictures of a map: over two coefficients in each of its forms, or a matrix; none of other values."""
    values = result.maps[name]
    title = name.replace("_", " ")
    if "figure" in values:
        return of_report(values, title)
    if "grid" in values:
        return [surface(result, name, form) for form in values if form != "grid"]
    if "matrix" not in values:
        return []
    rows, columns = values["rows"], values["columns"]
    picture = Heat(
        title=title,
        rows=rows,
        columns=columns,
        values=values["matrix"],
        diagonal=rows == columns,
        x="vector of",
        y="data of",
    )
    return [picture]


def surface(result: Result, name: str, form: str) -> Surface:
    """Return one form of a map over two coefficients; maps of the same form share the end of their colours."""
    values = result.maps[name]
    first, _, second = name.partition("+")
    title = FORMS.get(form, form)
    return Surface(
        title=f"{name}: {title}",
        grid=values["grid"],
        values=values[form],
        high=highest(result, form),
        x=f"α {first}",
        y=f"α {second}",
    )


def highest(result: Result, form: str) -> float | None:
    """Return the largest number of all maps of a form that can be drawn."""
    numbers: list[float] = []
    for values in result.maps.values():
        for line in values.get(form, ()):
            numbers += [number for number in line if abs(number) <= LARGEST]
    return max(numbers, default=None)


# Curves


@dataclass
class Curves:
    """The curves of one unit by label, as they are shown."""

    unit: str
    series: dict[str, Points] = field(default_factory=dict)

    @property
    def axis(self) -> str:
        """The name of the axis."""
        return "accuracy, %" if self.unit == "fraction" else self.unit

    def add(self, label: str, alpha: float, value: float) -> None:
        """Add a point."""
        points = self.series.setdefault(label, [])
        points.append((alpha, scaled(value, self.unit)))


def of_curve(result: Result, name: str) -> Pictures:
    """Return the picture of a curve over the coefficient: each task thin, the mean thick, the control dotted.

    A quantity in another unit than accuracy, such as the control's perplexity, has an axis of its own.
    """
    points = result.curves[name]
    if len(points) < 2:
        return []
    curves = curves_of(points, units_in(result))
    row, chosen = chosen_on(result, name)
    split = " on validation" if row is not None and row.selected_on else ""
    pictures: Pictures = []
    for position in range(0, len(curves), 2):
        left, *right = curves[position : position + 2]
        picture = Lines(
            title=name,
            x="α",
            y=left.axis + split,
            unit=left.unit,
            series=left.series,
            chosen=chosen,
            excluded=[point[ALPHA] for point in points if EXCLUDED in point],
            strong=(MEAN, CONTROL),
            dotted=(CONTROL,),
        )
        for other in right:
            picture = with_beside(picture, other, split)
        pictures.append(picture)
    return pictures


def with_beside(picture: Lines, curves: Curves, split: str) -> Lines:
    """Return a picture with curves of another unit at its right."""
    fields = dict(picture)
    fields["beside"] = curves.series
    fields["beside_y"] = curves.axis + split
    fields["beside_unit"] = curves.unit
    fields["dotted"] = (*picture.dotted, *curves.series)
    return Lines(**fields)


def units_in(result: Result) -> dict[str, str]:
    """Return the unit that the rows of a result give each metric."""
    units = {}
    for row in result.rows:
        for name, metric in row.metrics.items():
            units[name] = metric.unit
    return units


def curves_of(points: Sequence[Json], units: dict[str, str]) -> list[Curves]:
    """Return the curves that points hold, by unit, accuracies first.

    A point holds ``alpha``, numbers by metric, and numbers by task under a metric; ``mean`` is that of ``accuracy``.
    """
    found: dict[str, Curves] = {}
    for point in points:
        hidden = {ALPHA, EXCLUDED}
        if len(point.get(ACCURACY, ())) < 2:
            hidden.add(MEAN)
        for name, value in point.items():
            if name in hidden:
                continue
            unit = units.get(name, "fraction")
            curves = found.setdefault(unit, Curves(unit))
            by_label = value if isinstance(value, dict) else {name: value}
            for label, number in by_label.items():
                curves.add(label, point[ALPHA], number)
    return sorted(found.values(), key=lambda curves: curves.unit != "fraction")


def chosen_on(result: Result, name: str) -> tuple[Row | None, float | None]:
    """Return the row that a curve belongs to, and the coefficient that was chosen on it; "row/task" has the task's."""
    rows = {row.row: row for row in result.rows}
    title, _, task = name.partition("/")
    row = rows.get(name, rows.get(title))
    if row is None:
        return None, None
    return row, row.alphas.get(task, row.alpha)
