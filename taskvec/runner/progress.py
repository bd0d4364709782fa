"""What a person sees of a run: bars in a terminal, plain lines in a log; and the tracker's live curves."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskvec.graph.artefact import Node
from taskvec.text import printable_lines

if TYPE_CHECKING:
    from taskvec.runner.track.base import Session

log = logging.getLogger(__name__)
_title: ContextVar[str] = ContextVar("title", default="")


def titled(text: str) -> str:
    """Return a line of a job of a sweep, which says first which job it is: ``[3/6 seed=1] ...``."""
    title = _title.get()
    return f"[{title}] {text}" if title else text


@contextlib.contextmanager
def job(title: str) -> Iterator[None]:
    """Give all lines of a block, those of a log and those of bars, the title of a job."""
    before = _title.set(title)
    try:
        yield
    finally:
        _title.reset(before)


def titles(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return each job's number, and the overrides that not all jobs of the sweep have."""
    shared = set(jobs[0]).intersection(*jobs) if jobs else set()
    found = []
    for number, words in enumerate(jobs, start=1):
        own = [word for word in words if word not in shared]
        found.append(" ".join([f"{number}/{len(jobs)}", *own]))
    return found


class _Printable(logging.Formatter):
    """Formats messages as lines that cannot steer a terminal; tracebacks stay in log files."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message alone."""
        return titled(printable_lines(record.getMessage()))


class _Errors(logging.StreamHandler):
    """Writes to whatever standard error is now: bars put their own stream there, so that lines stand above them."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """The stream at this moment."""
        return sys.stderr


def to_standard_error() -> None:
    """Show this package's log, at the level of ``TASKVEC_LOG`` (INFO)."""
    # A full disk is told once, not with a traceback for each line of the log
    logging.raiseExceptions = False
    handler = _Errors()
    handler.setFormatter(_Printable())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    level = os.environ.get("TASKVEC_LOG", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        level = "INFO"
    logging.getLogger("taskvec").setLevel(level)


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
            self._show(titled(node.label), step, total, said)
            return
        quarter = 4 * step // total
        if quarter > self._lines.get(node.fingerprint, 0):
            self._lines[node.fingerprint] = quarter
            more = f", {said}" if said else ""
            log.info("%s %d/%d%s", node.label, step, total, more)

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
            self._bar = bars()
            self._task = self._bar.add_task(label, total=total, said=said)
            self._bar.start()
        self._bar.update(self._task, completed=step, total=total, said=said)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def bars() -> Any:
    """Return bars for a terminal: what, how much of how many, the time left, and a word on it (the field ``said``)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )  # fmt: skip
    return Bars(*columns, console=Console(stderr=True), transient=True)
