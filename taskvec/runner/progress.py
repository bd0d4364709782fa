"""What a person sees of a run: bars in a terminal, plain lines in a log; and the tracker's live curves."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskvec.graph.artefact import Node

if TYPE_CHECKING:
    from taskvec.runner.track.base import Session

log = logging.getLogger(__name__)


class Progress:
    """Follows the computation of artefacts."""

    def __init__(self, tracker: Session):
        self.tracker = tracker
        self._bar: Any = None
        self._task: Any = None
        self._lines: dict[str, int] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def observe(self, node: Node, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show one point of a computation's progress, and of its curve if it has one."""
        if metrics:
            self.tracker.curve(node.label, step, metrics)
        said = f"loss {metrics['loss']:.4f}" if "loss" in metrics else ""
        if sys.stderr.isatty():
            self._show(node.label, step, total, said)
            return
        quarter = 4 * step // total
        if quarter > self._lines.get(node.fingerprint, 0):
            self._lines[node.fingerprint] = quarter
            log.info("%s: step %d of %d%s", node.label, step, total, f", {said}" if said else "")

    def done(self, node: Node, record: Mapping[str, Any], computed: bool) -> None:
        """Note that an artefact is there."""
        self._close()
        if computed:
            log.info("%s: %.1f s", node.label, record["usage"]["wall_s"])
        elif node.kind == "vector":
            # The curve of a vector that an earlier run trained
            for point in record["meta"].get("curve", []):
                self.tracker.curve(node.label, point["step"], point)

    def _show(self, label: str, step: int, total: int, said: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[said]}"),
            )  # fmt: skip
            self._bar = Bars(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(label, total=total, said=said)
            self._bar.start()
        self._bar.update(self._task, completed=step, total=total, said=said)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
