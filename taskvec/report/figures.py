"""Drawing pictures with matplotlib: curves, bars, matrices, maps over two coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.graph.result import Result
from taskvec.panel import Bars, Heat, Lines, Picture, Points, Radar, Surface
from taskvec.registry import did_you_mean
from taskvec.report.drawing import (
    SMALL,
    SMALLER,
    finite,
    logarithmic,
    marked,
    number,
    shown_name,
    ticks,
    whiskers,
)
from taskvec.report.panels import panels
from taskvec.report.paper import Paper, legend_columns
from taskvec.text import printable

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

COLUMNS, SIDE = 4, 3.6
FORMATS = (".svg", ".pdf", ".png")
NUMBERED = 400  # entries of a matrix that are written into it
SLENDER = 3  # how many times as long as wide a matrix may be to have square entries
MARKED = 12  # points of a curve that are marked
BAR = {"fraction": 0.046, "pad": 0.03}  # a colour bar as high as its square panel
# Names are not formulas, whatever dollar signs they hold; the same picture is the same file.
DATELESS = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
SCREEN, PRINT = 150, 300  # dots per inch
SETTINGS = {"text.parse_math": False, "svg.hashsalt": "taskvec"}


def draw(result: Result, target: Path, only: Sequence[str] | None = None) -> None:
    """Write a picture of what a result has to show to ``target``, in the format that its name says.

    Raises:
        UserError: if matplotlib is missing, the run has nothing to draw or not what ``only`` names, or the format is
            not known or the file cannot be written.
    """
    paint(chosen_of(result, only), result.run_id, target)


def paint(chosen: Sequence[Picture], title: str, target: Path, paper: Paper | None = None) -> None:
    """Write pictures beside each other to ``target``, in the format that its name says; for a paper in its size.

    Raises:
        UserError: if matplotlib is missing, the format is not known or the file cannot be written.
    """
    if target.suffix not in FORMATS:
        raise UserError(f"figure: {target} must end in {', '.join(FORMATS)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(chosen, title, target, target.suffix.removeprefix("."), paper)
    except OSError as error:
        raise UserError(f"figure: {target}: cannot be written: {error.strerror}") from error


def write(
    chosen: Sequence[Picture], title: str, target: Any, form: str, paper: Paper | None = None
) -> None:
    """Write pictures to a path or an open file in a format of matplotlib's.

    Raises:
        UserError: if matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("figure: matplotlib is missing; pip install 'taskvec[figures]'") from error
    settings = SETTINGS | ({} if paper is None else paper.settings())
    dots = SCREEN if paper is None else PRINT
    with matplotlib.rc_context(settings):
        figure = laid_out(chosen, title, paper)
        figure.savefig(target, format=form, dpi=dots, metadata=DATELESS.get(form))


def chosen_of(result: Result, only: Sequence[str] | None) -> list[Picture]:
    """Return the pictures of some names, of all without any.

    Raises:
        UserError: if the result has none, or none of a name.
    """
    groups = panels(result)
    if not groups:
        raise UserError(f"figure: {result.run_id} has no map, matrix or curve to draw")
    chosen: list[Picture] = []
    for name in only or groups:
        if name not in groups:
            hint = did_you_mean(name, list(groups))
            raise UserError(f"figure: {result.run_id} has no {name!r}{hint}")
        chosen += groups[name]
    return chosen


def laid_out(chosen: Sequence[Picture], title: str, paper: Paper | None = None) -> Any:
    """Return a matplotlib figure with one panel for each picture, at most four beside each other.

    One for a paper is as wide as it says and has no title: the caption says it. Names with a mark stand in one legend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    names = list(dict.fromkeys(name for picture in chosen for name in picture.marks))
    size = (SIDE * columns * 1.1, SIDE * lines + 0.3)
    if paper is not None:
        size = paper.size(columns, lines, names)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    if paper is None:
        figure.suptitle(printable(title), fontsize=9, color="0.35")
    for place, picture in enumerate(chosen, 1):
        projection = "polar" if isinstance(picture, Radar) else None
        axes = figure.add_subplot(lines, columns, place, projection=projection)
        painter = PAINTERS[type(picture)]
        painter(axes, picture)
        axes.set_title(printable(picture.title), fontsize=8)
        axes.set_xlabel(printable(picture.x), fontsize=8)
        axes.set_ylabel(printable(picture.y), fontsize=8)
    if names:
        explain(figure, legend_columns(names, size[0]))
    return figure


def explain(figure: Any, columns: int) -> None:
    """Explain the marked names of all panels once, below them."""
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    style = {"loc": "outside lower center", "frameon": False, "fontsize": SMALLER}
    figure.legend(list(found.values()), list(found), ncols=columns, **style)


# Curves


def lines(axes: Axes, picture: Lines) -> None:
    """Draw curves, those in another unit on an axis of their own at the right."""
    curves(axes, picture, picture.series)
    intervals(axes, picture)
    if picture.scale == "log":
        logarithmic(axes)
    elif picture.unit == "fraction":
        _, high = axes.get_ylim()
        axes.set_ylim(0, max(100, high))
    if picture.chosen is not None:
        axes.axvline(picture.chosen, color="0.5", linewidth=0.8, linestyle="--")
    if picture.excluded:
        crosses(axes, picture.excluded)
    drawn = [*axes.get_lines()]
    if picture.beside:
        drawn += beside(axes, picture)
    axes.tick_params(labelsize=SMALL)
    named = [line for line in drawn if not hidden(line)]
    if not picture.marks:
        axes.legend(handles=named, fontsize=SMALLER, frameon=False, ncols=2)


def hidden(line: Any) -> bool:
    """Return whether a line has no name: matplotlib calls it _child0."""
    return line.get_label().startswith("_")


def curves(axes: Axes, picture: Lines, series: dict[str, Any]) -> None:
    """Draw curves by name; where a value is infinite, a curve has a gap."""
    for name, points in series.items():
        xs = [x for x, _ in points]
        ys = [y for _, y in points]
        style: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.7}
        if len(points) <= MARKED:
            style |= {"marker": "o", "markersize": 2.5}
        if name in picture.strong:
            style |= {"linewidth": 2, "color": "black", "alpha": 1}
        if name in picture.dotted:
            style |= {"linestyle": ":", "color": "black"}
        style |= marked(picture, name)
        axes.plot(xs, finite(ys), label=shown_name(name), **style)


def intervals(axes: Axes, picture: Lines) -> None:
    """Draw the interval of each point that has one, in its curve's colour."""
    drawn = {line.get_label(): line for line in axes.get_lines()}
    for name, ends in picture.low.items():
        line = drawn.get(shown_name(name))
        if line is None:
            continue
        highest_at = dict(picture.high.get(name, ()))
        for x, low in ends:
            if x in highest_at:
                heights = [low, highest_at[x]]
                axes.plot([x, x], heights, color=line.get_color(), linewidth=0.8, label="_interval")


def beside(axes: Axes, picture: Lines) -> Sequence[Any]:
    """Draw the curves of another unit on an axis at the right, which is logarithmic over more than two decades."""
    right = axes.twinx()
    curves(right, picture, picture.beside)
    low, high = right.dataLim.intervaly
    if 0 < 100 * low < high:
        logarithmic(right)
    right.set_ylabel(printable(picture.beside_y), fontsize=8)
    right.tick_params(labelsize=SMALL)
    return right.get_lines()


def crosses(axes: Axes, places: Sequence[float]) -> None:
    """Mark places of the x axis where nothing finite came out."""
    bottom = [0] * len(places)
    ground = axes.get_xaxis_transform()
    style = {"color": "0.3", "marker": "x", "linestyle": "none", "clip_on": False}
    axes.plot(places, bottom, transform=ground, label="not finite", **style)


# Bars


def bars(axes: Axes, picture: Bars) -> None:
    """Draw bars in groups, a group per label; an infinite one is left out."""
    import numpy as np

    places = np.arange(len(picture.labels))
    count = len(picture.series)
    width = 0.8 / max(1, count)
    left = places - width * (count - 1) / 2
    for name, values in picture.series.items():
        colour = picture.marks[name][0] if name in picture.marks else None
        axes.bar(left, finite(values), width, label=shown_name(name), color=colour)
        whiskers(axes, left, picture, name)
        left = left + width
    ticks(axes, "x", picture.labels)
    axes.tick_params(labelsize=SMALLER)
    if count > 1 and not picture.marks:
        axes.legend(fontsize=SMALLER, frameon=False)


# Radar and points


def radar(axes: Axes, picture: Radar) -> None:
    """Draw closed lines over spokes, the first upwards, the others clockwise."""
    import numpy as np

    angles = np.linspace(0, 2 * np.pi, len(picture.labels), endpoint=False)
    closed = np.append(angles, angles[:1])
    for name, values in picture.series.items():
        numbers = finite([*values, values[0]])
        axes.plot(closed, numbers, label=shown_name(name), linewidth=1.1, **marked(picture, name))
    axes.set(theta_zero_location="N", theta_direction=-1)
    axes.set_xticks(angles, [printable(label) for label in picture.labels])
    axes.tick_params(labelsize=SMALLER)


def points(axes: Axes, picture: Points) -> None:
    """Draw places with their intervals."""
    for name, places in picture.series.items():
        xs = [x for x, _ in places]
        ys = [y for _, y in places]
        style = {"marker": "o"} | marked(picture, name) | {"linestyle": "none"}
        axes.plot(xs, finite(ys), label=shown_name(name), **style)
        whiskers(axes, xs, picture, name)
    if picture.scale == "log":
        logarithmic(axes, "x")
    axes.tick_params(labelsize=SMALL)
    if not picture.marks:
        axes.legend(fontsize=SMALLER, frameon=False)


# Matrices and maps


def heat(axes: Axes, picture: Heat) -> None:
    """Draw a matrix, a small one with its numbers."""
    table = finite(picture.values)
    low, high = colours(table, picture)
    small = table.size <= NUMBERED
    longer, shorter = max(table.shape), min(table.shape)
    square = small and longer <= SLENDER * shorter
    aspect = "equal" if square else "auto"
    image = axes.imshow(table, cmap="Blues", vmin=low, vmax=high, aspect=aspect)
    letters = min(SMALLER, 52 / len(picture.columns))
    if small:
        threshold = low + 0.6 * (high - low)
        write_numbers(axes, picture, letters, threshold)
    else:
        colour_bar(axes, image)
    ticks(axes, "x", picture.columns)
    ticks(axes, "y", picture.rows)
    axes.tick_params(labelsize=max(4, letters))


def colours(table: np.ndarray, picture: Heat) -> tuple[float, float]:
    """Return the numbers at the ends of a matrix's colours."""
    import numpy as np

    counted = np.isfinite(table)
    if picture.diagonal:
        counted &= ~np.eye(len(table), dtype=bool)
    numbers = table[counted]
    if not numbers.size:
        return 0.0, 1.0
    low, high = min(0.0, numbers.min()), numbers.max()
    return low, high if high > low else low + 1


def write_numbers(axes: Axes, picture: Heat, size: float, threshold: float) -> None:
    """Write the numbers of a matrix into it, white where it is dark."""
    style = {"ha": "center", "va": "center", "fontsize": size}
    for row, values in enumerate(picture.values):
        for column, value in enumerate(values):
            color = "white" if value > threshold else "black"
            axes.text(column, row, number(value), color=color, **style)


def surface(axes: Axes, picture: Surface) -> None:
    """Draw a map over two coefficients: the first from left to right, the second upwards, the search box dashed."""
    import numpy as np
    from matplotlib.patches import Rectangle

    order = np.argsort(picture.grid)
    centres = np.asarray(picture.grid)[order]
    table = finite(picture.values)[order][:, order]
    upwards = table.T  # a row of the picture is one coefficient of the second
    high = picture.high or 1
    image = axes.pcolormesh(
        centres, centres, upwards, cmap="viridis", vmin=0, vmax=high, shading="nearest"
    )
    colour_bar(axes, image)
    box = Rectangle((0, 0), 1, 1, fill=False, linestyle="--", linewidth=1.4, edgecolor="white")
    axes.add_patch(box)
    axes.tick_params(labelsize=SMALL)
    axes.set_aspect("equal")


def colour_bar(axes: Axes, image: Any) -> None:
    """Say what the colours stand for."""
    bar = axes.figure.colorbar(image, ax=axes, **BAR)
    bar.ax.tick_params(labelsize=SMALL)


PAINTERS: dict[type[Picture], Any] = {
    Lines: lines,
    Bars: bars,
    Radar: radar,
    Points: points,
    Heat: heat,
    Surface: surface,
}
