"""The colour, marker and dash of each name: the same on the page, in the paper and in a notebook.

The colours are those of Okabe and Ito (Color Universal Design, 2008) without the yellow that white paper swallows;
names beyond the seventh differ in marker and dash, which also survive a black and white print.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")


class Mark(NamedTuple):
    """How a name is drawn, in Plotly's words."""

    colour: str
    marker: str
    dash: str


NO_MARK = Mark(COLOURS[0], MARKERS[0], DASHES[0])


def marks(names: Iterable[str]) -> dict[str, Mark]:
    """Return the mark of each name; no two of the first 56 names share theirs.

    The order of the names does not matter.
    """
    found = {}
    for place, name in enumerate(sorted(set(names))):
        turn, colour = divmod(place, len(COLOURS))
        marker = MARKERS[(colour + turn) % len(MARKERS)]
        dash = DASHES[turn % len(DASHES)]
        found[name] = Mark(COLOURS[colour], marker, dash)
    return found
