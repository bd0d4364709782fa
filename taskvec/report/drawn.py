"""Pictures as a notebook shows them, and as files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from taskvec.panel import Picture
from taskvec.report.figures import paint, write
from taskvec.report.paper import Paper


class Drawn:
    """Pictures beside each other: the last line of a notebook's cell shows them."""

    def __init__(self, pictures: Sequence[Picture]):
        self.pictures = tuple(pictures)

    def __repr__(self) -> str:
        names = ", ".join(picture.figure for picture in self.pictures)
        return f"Drawn({names})"

    def _repr_png_(self) -> bytes:
        """Return them as a notebook asks for them.

        Raises:
            UserError: if matplotlib is missing.
        """
        file = io.BytesIO()
        write(self.pictures, "", file, "png")
        return file.getvalue()

    def save(
        self, target: str | Path, width: str | float | None = None, *, serif: bool = False
    ) -> None:
        """Write them to a PDF, SVG or PNG; with ``width`` ("column", "text" or inches) in the size of a paper.

        Raises:
            UserError: if matplotlib is missing, or the format or width is not known, or the file cannot be written.
        """
        paper = None if width is None else Paper.of(str(width), serif=serif)
        paint(self.pictures, "", Path(target), paper)
