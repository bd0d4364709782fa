"""Tables of text as Markdown, LaTeX (booktabs), CSV or HTML, the best numbers in bold and the second underlined."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

from tabulate import tabulate

from taskvec.text import printable

# Characters of no script, which every style leaves as they are and then makes its own markup of
FENCES = (("\ue000", "\ue001"), ("\ue002", "\ue003"))
UNFENCED = {ord(fence): None for fence in chain(*FENCES)}
MARKUP = {
    "md": (("**", "**"), ("<u>", "</u>")),
    "latex": (("\\textbf{", "}"), ("\\underline{", "}")),
    "html": (("<b>", "</b>"), ("<u>", "</u>")),
}
NO_MARKUP = (("", ""), ("", ""))


@dataclass
class Grid:
    """A table of text: heads and lines.

    ``notes`` say of a cell (line, column) that its number is the best (0) or the second best (1) of its column.
    """

    heads: list[str]
    lines: list[list[str]] = field(default_factory=list)
    notes: dict[tuple[int, int], int] = field(default_factory=dict)

    def mapped(self, change: Callable[[str], str]) -> Grid:
        """Return the table with every text changed by a function."""
        heads = [change(head) for head in self.heads]
        grid = Grid(heads, notes=self.notes)
        for line in self.lines:
            grid.lines.append([change(cell) for cell in line])
        return grid

    def fenced(self) -> Grid:
        """Return the table with each noted text between the two characters of :data:`FENCES` that stand for it."""
        grid = self.mapped(lambda text: text.translate(UNFENCED))
        for (line, column), note in grid.notes.items():
            opening, closing = FENCES[note]
            cells = grid.lines[line]
            cells[column] = f"{opening}{cells[column]}{closing}"
        return grid


def render(grid: Grid, style: str, *, align: str = "left") -> str:
    """Return a table in one of the :data:`STYLES`; control characters are spelt out, markup of the style is escaped."""
    safe = grid.mapped(printable).fenced()
    text = STYLES[style](safe, align)
    markup = MARKUP.get(style, NO_MARKUP)
    for pair, words in zip(FENCES, markup, strict=True):
        for fence, word in zip(pair, words, strict=True):
            text = text.replace(fence, word)
    return text


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
