"""Tables of text as Markdown, LaTeX (booktabs), CSV or HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from tabulate import tabulate

from taskvec.text import printable

Lines = Sequence[Sequence[str]]


def render(heads: Sequence[str], lines: Lines, style: str, *, align: str = "left") -> str:
    """Return a table in one of the :data:`STYLES`; control characters are spelt out, markup of the style is escaped."""
    heads = [printable(head) for head in heads]
    lines = [[printable(cell) for cell in line] for line in lines]
    return STYLES[style](heads, lines, align)


def _markdown(heads: Sequence[str], lines: Lines, align: str) -> str:
    heads = [head.replace("|", "\\|") for head in heads]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return _tabulated(heads, lines, "github", align)


def _latex(heads: Sequence[str], lines: Lines, align: str) -> str:
    return _tabulated(heads, lines, "latex_booktabs", align).replace("±", "$\\pm$")


def _html(heads: Sequence[str], lines: Lines, align: str) -> str:
    return _tabulated(heads, lines, "html", align)


def _csv(heads: Sequence[str], lines: Lines, align: str) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([heads, *lines])
    return out.getvalue().rstrip("\n")


def _tabulated(heads: Sequence[str], lines: Lines, form: str, align: str) -> str:
    return tabulate(lines, headers=heads, tablefmt=form, disable_numparse=True, stralign=align)


STYLES: dict[str, Callable[[Sequence[str], Lines, str], str]] = {
    "md": _markdown,
    "latex": _latex,
    "csv": _csv,
    "html": _html,
}
