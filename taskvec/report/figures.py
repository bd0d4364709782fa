"""Pictures of one result: heat maps over two coefficients, T x T matrices, curves over one coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.registry import did_you_mean
from taskvec.runner.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, SIDE = 4, 3.6
FORMS = {"labels": "error in labels", "features": "error in features (KL)"}
FORMATS = (".svg", ".pdf", ".png")
Panel = tuple[str, Callable[["Axes"], None]]


def draw(result: Result, target: Path, only: Sequence[str] | None = None) -> None:
    """Write a picture of a result's maps, matrices and curves to ``target``, in the format that its name says.

    Raises:
        UserError: if matplotlib is missing, the run has nothing to draw or not what ``only`` names, or the format is
            not known.
    """
    if target.suffix not in FORMATS:
        raise UserError(f"figure: {target} must end in {', '.join(FORMATS)}")
    groups = panels(result)
    if not groups:
        raise UserError(f"figure: {result.run_id} has no map, matrix or curve to draw")
    for name in only or ():
        if name not in groups:
            raise UserError(f"figure: {result.run_id} has no {name!r}{did_you_mean(name, list(groups))}")
    chosen = [panel for name in only or groups for panel in groups[name]]
    figure = _figure(chosen)
    figure.suptitle(f"{result.run_id}", fontsize=9, color="0.35")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150, metadata={"Date": None} if target.suffix == ".svg" else None)


def panels(result: Result) -> dict[str, list[Panel]]:
    """Return the panels of a result by name: one per form of a map, one per matrix, one per curve."""
    groups: dict[str, list[Panel]] = {}
    shared = {form: max((_highest(m[form]) for m in result.maps.values() if form in m), default=0.0) for form in FORMS}
    for name, values in result.maps.items():
        if "grid" in values:
            parts = [(FORMS[form], heat_map(name, values["grid"], values[form], shared[form])) for form in FORMS]
            groups[name] = [(f"{name}: {title}", paint) for title, paint in parts]
        elif "matrix" in values:
            groups[name] = [(name.replace("_", " "), matrix(values["rows"], values["columns"], values["matrix"]))]
    for name, points in result.curves.items():
        reported = next((row.alpha for row in result.rows if row.row == name), None)
        if len(points) > 1:
            groups[name] = [(name, coefficient_curve(points, reported))]
    return groups


def _highest(values: Sequence[Sequence[float]]) -> float:
    return max(max(line) for line in values)


def heat_map(pair: str, grid: Sequence[float], values: Sequence[Sequence[float]], top: float) -> Callable:
    """Paint xi over the coefficients: the first task's from left to right, the second's upwards, the search box dashed.

    ``top`` is the end of the colour scale, the same for all maps of a kind.
    """

    def paint(axes: Axes) -> None:
        import numpy as np
        from matplotlib.patches import Rectangle

        order = np.argsort(grid)
        centres = np.asarray(grid, dtype=float)[order]
        table = np.asarray(values)[np.ix_(order, order)].T  # a row of the picture is one coefficient of the second
        image = axes.pcolormesh(centres, centres, table, cmap="viridis", vmin=0, vmax=top or 1, shading="nearest")
        axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
        axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, linestyle="--", linewidth=1.4, edgecolor="white"))
        first, second = pair.split("+", 1)
        axes.tick_params(labelsize=7)
        axes.set(xlabel=rf"$\alpha$ {first}", ylabel=rf"$\alpha$ {second}", aspect="equal")

    return paint


def matrix(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> Callable:
    """Paint a matrix with its numbers: a row per data set, a column per added vector."""

    def paint(axes: Axes) -> None:
        import numpy as np

        table = np.asarray(values, dtype=float)
        off = table[~np.eye(*table.shape, dtype=bool)] if table.shape[0] == table.shape[1] else table
        low, high = (min(0.0, off.min()), off.max()) if off.size else (0.0, 1.0)
        high = high if high > low else low + 1
        axes.imshow(table, cmap="Blues", vmin=low, vmax=high)
        size = min(6.5, 52 / len(columns))
        for (i, j), value in np.ndenumerate(table):
            dark = (min(value, high) - low) / (high - low) > 0.6
            axes.text(j, i, number(value), ha="center", va="center", fontsize=size, color="white" if dark else "black")
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=size + 0.5)
        axes.set_yticks(range(len(rows)), rows, fontsize=size + 0.5)
        axes.set(xlabel="vector of", ylabel="images of")

    return paint


def number(value: float) -> str:
    """Return a number in about five characters."""
    if value and (abs(value) < 1e-2 or abs(value) >= 1e3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.3g}"


def coefficient_curve(points: Sequence[Mapping[str, Any]], chosen: float | None) -> Callable:
    """Draw validation accuracy over the coefficient: each target thin, their mean and the control thick."""

    def paint(axes: Axes) -> None:
        alphas = [point["alpha"] for point in points]
        for task in points[0]["accuracy"]:
            values = [100 * point["accuracy"][task] for point in points]
            axes.plot(alphas, values, linewidth=0.9, alpha=0.7, label=task)
        if len(points[0]["accuracy"]) > 1:
            axes.plot(alphas, [100 * point["mean"] for point in points], color="black", linewidth=2, label="mean")
        if "control" in points[0]:
            values = [100 * point["control"] for point in points]
            axes.plot(alphas, values, color="black", linewidth=2, linestyle=":", label="control")
        if chosen is not None:
            axes.axvline(chosen, color="0.5", linewidth=0.8, linestyle="--")
        axes.tick_params(labelsize=7)
        axes.set(xlabel=r"$\alpha$", ylabel="accuracy on validation, %", ylim=(0, 100))
        axes.legend(fontsize=6, frameon=False, ncols=2)

    return paint


def _figure(chosen: Sequence[Panel]) -> Any:
    """Return a figure with one panel each, at most four beside each other.

    Raises:
        UserError: if matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figure: matplotlib is missing; pip install 'taskvec[figures]'") from error
    columns = min(COLUMNS, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(SIDE * columns * 1.1, SIDE * lines + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (title, paint) in zip(grid, chosen, strict=False):
        paint(axes)
        axes.set_title(title, fontsize=8)
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
    for axes in grid[len(chosen) :]:
        axes.set_axis_off()
    return figure
