"""Drawing pictures with matplotlib: curves, bars, matrices, maps over two coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.graph.result import Result
from taskvec.panel import LARGEST, Bars, Heat, Lines, Picture, Surface
from taskvec.registry import did_you_mean
from taskvec.report.panels import panels
from taskvec.text import printable

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

COLUMNS, SIDE = 4, 3.6
FORMATS = (".svg", ".pdf", ".png")
NUMBERED = 400  # entries of a matrix that are written into it
LABELLED = 60  # lines or columns of a matrix that are named
# Names are not formulas, whatever dollar signs they hold; the same picture is the same file.
SETTINGS = {"text.parse_math": False, "svg.hashsalt": "taskvec"}


def draw(result: Result, target: Path, only: Sequence[str] | None = None) -> None:
    """Write a picture of what a result has to show to ``target``, in the format that its name says.

    Raises:
        UserError: if matplotlib is missing, the run has nothing to draw or not what ``only`` names, or the format is
            not known or the file cannot be written.
    """
    if target.suffix not in FORMATS:
        raise UserError(f"figure: {target} must end in {', '.join(FORMATS)}")
    groups = panels(result)
    if not groups:
        raise UserError(f"figure: {result.run_id} has no map, matrix or curve to draw")
    for name in only or ():
        if name not in groups:
            raise UserError(f"figure: {result.run_id} has no {name!r}{did_you_mean(name, list(groups))}")
    chosen = [picture for name in only or groups for picture in groups[name]]
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("figure: matplotlib is missing; pip install 'taskvec[figures]'") from error
    with matplotlib.rc_context(SETTINGS):
        figure = laid_out(chosen, result.run_id)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target, dpi=150, metadata={"Date": None} if target.suffix == ".svg" else None)
        except OSError as error:
            raise UserError(f"figure: {target}: cannot be written: {error.strerror}") from error


def laid_out(chosen: Sequence[Picture], title: str) -> Any:
    """Return a matplotlib figure with one panel for each picture, at most four beside each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(SIDE * columns * 1.1, SIDE * lines + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(printable(title), fontsize=9, color="0.35")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, picture in zip(grid, chosen, strict=False):
        PAINTERS[type(picture)](axes, picture)
        axes.set_title(printable(picture.title), fontsize=8)
        axes.set_xlabel(printable(picture.x), fontsize=8)
        axes.set_ylabel(printable(picture.y), fontsize=8)
    for axes in grid[len(chosen) :]:
        axes.set_axis_off()
    return figure


def lines(axes: Axes, picture: Lines) -> None:
    """Draw curves, those in another unit on an axis of their own at the right."""
    curves(axes, picture, picture.series)
    if picture.scale == "log":
        logarithmic(axes)
    elif picture.unit == "fraction":
        axes.set_ylim(0, max(100, axes.get_ylim()[1]))
    if picture.chosen is not None:
        axes.axvline(picture.chosen, color="0.5", linewidth=0.8, linestyle="--")
    if picture.excluded:
        places = list(picture.excluded)
        marks = {"color": "0.3", "marker": "x", "linestyle": "none", "clip_on": False, "label": "not finite"}
        axes.plot(places, [0] * len(places), transform=axes.get_xaxis_transform(), **marks)
    drawn = list(axes.get_lines())
    if picture.beside:
        right = axes.twinx()
        curves(right, picture, picture.beside)
        values = [y for points in picture.beside.values() for _, y in points if abs(y) <= LARGEST]
        if values and min(values) > 0 and max(values) > 100 * min(values):
            logarithmic(right)
        right.set_ylabel(printable(picture.beside_y), fontsize=8)
        right.tick_params(labelsize=7)
        drawn += right.get_lines()
    axes.tick_params(labelsize=7)
    named = [line for line in drawn if not line.get_label().startswith("_")]
    axes.legend(named, [line.get_label() for line in named], fontsize=6, frameon=False, ncols=2)


def curves(axes: Axes, picture: Lines, series: dict[str, Any]) -> None:
    """Draw curves by name; where a value is infinite, a curve has a gap."""
    for name, points in series.items():
        xs = [x for x, _ in points]
        ys = finite([y for _, y in points])
        style: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.7}
        if name in picture.strong:
            style = {"linewidth": 2, "color": "black"}
        if name in picture.dotted:
            style |= {"linestyle": ":", "color": "black"}
        axes.plot(xs, ys, label=shown_name(name), **style)


def logarithmic(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def bars(axes: Axes, picture: Bars) -> None:
    """Draw bars in groups, a group per label; an infinite one is left out."""
    import numpy as np

    places = np.arange(len(picture.labels))
    width = 0.8 / max(1, len(picture.series))
    for index, (name, values) in enumerate(picture.series.items()):
        heights = finite(values)
        offset = (index - (len(picture.series) - 1) / 2) * width
        axes.bar(places + offset, heights, width, label=shown_name(name))
    ticks(axes, "x", picture.labels)
    axes.tick_params(labelsize=6.5)
    if len(picture.series) > 1:
        axes.legend(fontsize=6, frameon=False)


def heat(axes: Axes, picture: Heat) -> None:
    """Draw a matrix, small ones with their numbers."""
    import numpy as np

    table = finite(picture.values)
    rest = table[~np.eye(len(table), dtype=bool)] if picture.diagonal else table
    rest = rest[np.isfinite(rest)]
    low, high = (min(0.0, rest.min()), rest.max()) if rest.size else (0.0, 1.0)
    high = high if high > low else low + 1
    image = axes.imshow(table, cmap="Blues", vmin=low, vmax=high, aspect="auto" if table.size > NUMBERED else "equal")
    size = min(6.5, 52 / len(picture.columns))
    if table.size <= NUMBERED:
        for (row, column), value in np.ndenumerate(np.asarray(picture.values, dtype=float)):
            dark = (min(value, high) - low) / (high - low) > 0.6
            style = {"ha": "center", "va": "center", "fontsize": size, "color": "white" if dark else "black"}
            axes.text(column, row, number(value), **style)
    else:
        axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
    ticks(axes, "x", picture.columns)
    ticks(axes, "y", picture.rows)
    axes.tick_params(labelsize=max(size, 4) + 0.5)


def surface(axes: Axes, picture: Surface) -> None:
    """Draw a map over two coefficients: the first from left to right, the second upwards, the search box dashed."""
    import numpy as np
    from matplotlib.patches import Rectangle

    order = np.argsort(picture.grid)
    centres = np.asarray(picture.grid, dtype=float)[order]
    table = finite(picture.values)[np.ix_(order, order)].T  # a row of the picture is one coefficient of the second
    high = picture.high or 1
    image = axes.pcolormesh(centres, centres, table, cmap="viridis", vmin=0, vmax=high, shading="nearest")
    axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
    axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, linestyle="--", linewidth=1.4, edgecolor="white"))
    axes.tick_params(labelsize=7)
    axes.set_aspect("equal")


def ticks(axes: Axes, which: str, labels: Sequence[str]) -> None:
    """Name the places of an axis, of very many only every few."""
    step = math.ceil(len(labels) / LABELLED)
    places = range(0, len(labels), step)
    names = [printable(labels[place]) for place in places]
    if which == "x":
        axes.set_xticks(places, names, rotation=45, ha="right")
    else:
        axes.set_yticks(places, names)


def finite(values: Any) -> np.ndarray:
    """Return numbers as an array in which what is infinite or nearly so is NaN, which matplotlib leaves out."""
    import numpy as np

    table = np.asarray(values, dtype=float)
    return np.where(np.abs(table) <= LARGEST, table, np.nan)


def number(value: float) -> str:
    """Return a number in about five characters."""
    if math.isinf(value):
        return str(value)
    if value and (abs(value) < 1e-2 or abs(value) >= 1e3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.3g}"


def shown_name(name: str) -> str:
    """Return a name for a legend, which would leave out one that begins with an underscore."""
    text = printable(name)
    return f" {text}" if text.startswith("_") else text


PAINTERS = {Lines: lines, Bars: bars, Heat: heat, Surface: surface}
