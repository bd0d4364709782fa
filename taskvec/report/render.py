"""Tables of text as Markdown, LaTeX (booktabs), CSV or HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from tabulate import tabulate

from taskvec.text import printable


@dataclass
class Grid:
    """A table of text: heads and lines."""

    heads: list[str]
    lines: list[list[str]] = field(default_factory=list)

    def mapped(self, change: Callable[[str], str]) -> Grid:
        """Return the table with every text changed by a function."""
        heads = [change(head) for head in self.heads]
        grid = Grid(heads)
        for line in self.lines:
            grid.lines.append([change(cell) for cell in line])
        return grid


def render(grid: Grid, style: str, *, align: str = "left") -> str:
    """Return a table in one of the :data:`STYLES`; control characters are spelt out, markup of the style is escaped."""
    safe = grid.mapped(printable)
    return STYLES[style](safe, align)


def _markdown(grid: Grid, align: str) -> str:
    escaped = grid.mapped(lambda text: text.replace("|", "\\|"))
    return _tabulated(escaped, "github", align)


def _latex(grid: Grid, align: str) -> str:
    text = _tabulated(grid, "latex_booktabs", align)
    return text.replace("±", "$\\pm$")


def _html(grid: Grid, align: str) -> str:
    return _tabulated(grid, "html", align)


def _csv(grid: Grid, align: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(grid.heads)
    writer.writerows(grid.lines)
    return out.getvalue().rstrip("\n")


def _tabulated(grid: Grid, form: str, align: str) -> str:
    return tabulate(
        grid.lines, headers=grid.heads, tablefmt=form, disable_numparse=True, stralign=align
    )


STYLES = {"md": _markdown, "latex": _latex, "csv": _csv, "html": _html}
