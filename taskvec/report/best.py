"""Which numbers of a table are the best and the second best of their column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from taskvec.report.render import Grid


def emphasised(grid: Grid, goodness: Mapping[int, Sequence[float]]) -> Grid:
    """Return a table's text with the best and second best number of each column noted; equal texts share a place.

    ``goodness`` holds by column how good each line is, the larger the better, NaN where that cannot be said. A column
    of one number only has no best.
    """
    for column, values in goodness.items():
        known = [line for line, value in enumerate(values) if not math.isnan(value)]
        ordered = sorted(known, key=values.__getitem__, reverse=True)
        places = list(dict.fromkeys(grid.lines[line][column] for line in ordered))
        if len(places) < 2:
            continue
        for line in known:
            text = grid.lines[line][column]
            if text in places[:2]:
                grid.notes[line, column] = places.index(text)
    return grid
