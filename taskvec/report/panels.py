"""What there is to draw of a result: its maps and curves, and the pictures in its stages' reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from taskvec.graph.result import Result, first_problem
from taskvec.panel import LARGEST, Heat, Lines, Picture, Points, Surface, panel
from taskvec.protocols.rows import Row
from taskvec.report.units import scaled
from taskvec.text import printable

log = logging.getLogger(__name__)

FORMS = {"labels": "error in labels", "features": "error in features (KL)"}


def panels(result: Result) -> dict[str, list[Picture]]:
    """Return the pictures of a result by name: of maps and matrices, of curves, of stages' reports.

    What does not fit its schema is left out with a word.
    """
    found: dict[str, list[Picture]] = {}
    sources = [(name, of_map, (result, name)) for name in result.maps]
    sources += [(name, of_curve, (result, name)) for name in result.curves]
    for stage, report in result.reports.items():
        for name, data in figures_in(report).items():
            sources.append((f"{stage}/{name}", of_report, (f"{stage}: {name}", data)))
    for name, made, arguments in sources:
        try:
            pictures = made(*arguments)
        except ValidationError as error:
            log.warning("figure: %s is left out: %s", printable(name), printable(first_problem(error)))
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            log.warning("figure: %s is left out: not as expected (%s)", printable(name), printable(str(error)))
        else:
            if pictures:
                found[name] = pictures
    return found


def figures_in(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pictures of a stage's report by name, those of a list numbered."""
    found = report.get("figures") or {}
    if isinstance(found, list):
        return {str(number): data for number, data in enumerate(found, 1)}
    return found if isinstance(found, dict) else {}


def of_report(name: str, data: Any) -> list[Picture]:
    """Return a picture as a stage describes it, under its own title or its name."""
    picture = panel(data)
    return [picture if picture.title else picture.model_copy(update={"title": name})]


def of_map(result: Result, name: str) -> list[Picture]:
    """Return the pictures of a map: over two coefficients in each of its forms, or a matrix; none of other values."""
    values = result.maps[name]
    if "figure" in values:
        return of_report(name, values)
    if "grid" in values:
        return [of_form(result, name, form) for form in values if form != "grid"]
    if "matrix" in values:
        rows, columns = values["rows"], values["columns"]
        title, square = name.replace("_", " "), rows == columns
        own = {"x": "vector of", "y": "data of"}
        return [Heat(title=title, rows=rows, columns=columns, values=values["matrix"], diagonal=square, **own)]
    return []


def of_form(result: Result, name: str, form: str) -> Surface:
    """Return one form of a map over two coefficients; maps of the same form share the end of their colours."""
    values = result.maps[name]
    numbers = [x for other in result.maps.values() for line in other.get(form, ()) for x in line]
    high = max((x for x in numbers if abs(x) <= LARGEST), default=None)
    first, _, second = name.partition("+")
    title = f"{name}: {FORMS.get(form, form)}"
    axes = {"x": f"α {first}", "y": f"α {second}"}
    return Surface(title=title, grid=values["grid"], values=values[form], high=high, **axes)


def of_curve(result: Result, name: str) -> list[Picture]:
    """Return the picture of a curve over the coefficient: each task thin, the mean thick, the control dotted.

    A quantity in another unit than accuracy, such as the control's perplexity, has an axis of its own.
    """
    points = result.curves[name]
    if len(points) < 2:
        return []
    row, chosen = chosen_of(result, name)
    split = " on validation" if row is not None and row.selected_on else ""
    excluded = [point["alpha"] for point in points if "excluded" in point]
    shared = {"title": name, "x": "α", "chosen": chosen, "excluded": excluded, "strong": ("mean", "control")}
    sides = by_unit(result, series_of(points))
    units = sorted(sides, key=lambda unit: unit != "fraction")  # accuracies are at the left
    pictures = []
    for left, right in zip(units[::2], [*units[1::2], None], strict=False):
        picture = Lines(**shared, series=sides[left], y=axis_name(left) + split, unit=left, dotted=("control",))
        if right is not None:
            beside = {"beside": sides[right], "beside_y": axis_name(right) + split, "beside_unit": right}
            picture = picture.model_copy(update=beside | {"dotted": ("control", *sides[right])})
        pictures.append(picture)
    return pictures


def by_unit(result: Result, named: Mapping[tuple[str, str], Points]) -> dict[str, dict[str, Points]]:
    """Return the points of curves by unit and label, as they are shown, with the units that the rows give metrics."""
    units = {}
    for row in result.rows:
        for name, metric in row.metrics.items():
            units[name] = metric.unit
    found: dict[str, dict[str, Points]] = {}
    for (metric, label), points in named.items():
        unit = units.get(metric, "fraction")
        found.setdefault(unit, {})[label] = tuple((x, scaled(y, unit)) for x, y in points)
    return found


def series_of(points: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Points]:
    """Return the points of a curve by (metric, label): each task's, those of the mean, and of other metrics."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def add(metric: str, label: str, alpha: float, value: Any) -> None:
        found.setdefault((metric, label), []).append((alpha, value))

    for point in points:
        tasks = [name for name, value in point.items() if isinstance(value, dict)]
        several = len(point.get("accuracy", ())) > 1
        for name in tasks:
            for task, value in point[name].items():
                add(name, task, point["alpha"], value)
        if several:
            add("accuracy", "mean", point["alpha"], point["mean"])
        for name, value in point.items():
            if name not in ("alpha", "mean", "excluded", *tasks):
                add(name, name, point["alpha"], value)
    return found


def chosen_of(result: Result, name: str) -> tuple[Row | None, float | None]:
    """Return the row that a curve belongs to, and the coefficient that was chosen on it; "row/task" has the task's."""
    rows = {row.row: row for row in result.rows}
    if name in rows:
        return rows[name], rows[name].alpha
    title, _, task = name.partition("/")
    row = rows.get(title)
    return row, row.alphas.get(task) if row else None


def axis_name(unit: str) -> str:
    """Return the name of a quantity by its unit."""
    return "accuracy, %" if unit == "fraction" else unit
