"""Sizes, letters and marks of figures that stand in a paper as they are, without being scaled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from taskvec.errors import UserError

WIDTHS = {"column": 3.25, "text": 6.75}  # inches of two-column pages; a number says another
LETTER, MARK, LEGEND_LINE = 0.05, 0.45, 0.13  # inches of a legend at its size of letters
RATIO = 0.72  # height of a panel by its width
# Plotly's names of markers and dashes, in matplotlib's
SYMBOLS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "cross": "P",
    "triangle-up": "^",
    "x": "X",
    "star": "*",
    "hexagon": "h",
}
STROKES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def legend_columns(names: Sequence[str], width: float) -> int:
    """Return how many names fit beside each other into some inches."""
    longest = max((len(name) for name in names), default=1)
    fitting = int(width / (LETTER * longest + MARK))
    return max(1, min(len(names), fitting))


class Paper(NamedTuple):
    """The width of a figure in inches, and whether its letters have serifs, as LaTeX's do."""

    width: float
    serif: bool = False

    @classmethod
    def of(cls, width: str, *, serif: bool = False) -> Paper:
        """Return the paper of a named width or one in inches.

        Raises:
            UserError: for a width that is neither.
        """
        try:
            inches = WIDTHS[width] if width in WIDTHS else float(width)
        except ValueError as error:
            names = ", ".join(WIDTHS)
            raise UserError(f"figure: --width {width} is neither {names} nor inches") from error
        if not 1 <= inches <= 40:
            raise UserError(f"figure: --width {width} is not between 1 and 40 inches")
        return cls(inches, serif)

    def size(self, columns: int, lines: int, names: Sequence[str]) -> tuple[float, float]:
        """Return the inches of a figure of some panels and of the names that its legend explains."""
        legend = LEGEND_LINE * math.ceil(len(names) / legend_columns(names, self.width))
        return self.width, RATIO * self.width * lines / columns + legend

    def settings(self) -> dict[str, Any]:
        """Return matplotlib's settings: letters that a PDF embeds as letters, and STIX's with serifs."""
        found: dict[str, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none", "font.size": 8}
        if self.serif:
            found |= {"font.family": "STIXGeneral", "mathtext.fontset": "stix"}
        return found
