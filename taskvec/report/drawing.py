"""What all painters of matplotlib share: axes, marks, intervals, numbers and names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskvec.panel import LARGEST, Bars, Lines, Picture, Points
from taskvec.report.paper import STROKES, SYMBOLS
from taskvec.text import printable

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

LABELLED = 60  # lines or columns of a matrix that are named
SMALL, SMALLER = 7, 6  # sizes of letters


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

    table = np.array(values, dtype=float)
    table[~(np.abs(table) <= LARGEST)] = np.nan
    return table


def number(value: float) -> str:
    """Return a number in about five characters."""
    size = abs(value)
    if size == math.inf:
        return str(value)
    if 0 < size < 1e-2 or size >= 1e3:
        text = f"{value:.0e}"
        return text.replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.2g}" if size < 0.1 else f"{value:.3g}"


def shown_name(name: str) -> str:
    """Return a name for a legend, which would leave out one that begins with an underscore."""
    text = printable(name)
    return f" {text}" if text.startswith("_") else text


def logarithmic(axes: Axes, which: str = "y") -> None:
    """Make an axis logarithmic, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    if high < 10 * low:  # there may be no power of ten
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    plain = FuncFormatter(lambda value, place: number(value))
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(NullFormatter())


def marked(picture: Picture, name: str) -> dict[str, Any]:
    """Return how a name is drawn in every picture, nothing for one without a mark."""
    if name not in picture.marks:
        return {}
    colour, marker, dash = picture.marks[name]
    return {"color": colour, "marker": SYMBOLS[marker], "linestyle": STROKES[dash], "markersize": 4}


def whiskers(axes: Axes, xs: Any, picture: Lines | Bars | Points, name: str) -> None:
    """Draw the intervals of a name at places of the x axis; one without width is none."""
    import numpy as np

    if name not in picture.low:
        return
    sides = (picture.series, picture.low, picture.high)
    middle, low, high = (heights(side[name]) for side in sides)
    ends = np.stack([middle - low, high - middle])
    ends[:, (ends == 0).all(0)] = np.nan
    style = {"fmt": "none", "ecolor": "0.15", "elinewidth": 0.8, "capsize": 2}
    axes.errorbar(xs, middle, ends, **style)


def heights(values: Any) -> np.ndarray:
    """Return the y of points, or numbers as they are."""
    table = finite(values)
    return table[:, 1] if table.ndim > 1 else table
