"""What happens in an outputs folder: how the runs of its latest sweep stand, when they end, what is new."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskvec.errors import UserError
from taskvec.graph.status import STATUS, folders
from taskvec.report.page.content import EMPTY, Content, content
from taskvec.report.records import Where
from taskvec.report.runs import RESULT, Run, read_run
from taskvec.runner import sweeps
from taskvec.runner.folder import RunFolder, run_folders
from taskvec.text import printable

WAITING = "waiting"
ENDED = ("done", "failed", "interrupted", "stale", "older", "unreadable")
BAD = ("failed", "interrupted", "unreadable")
MINUTE, HOUR = 60, 3600


@dataclass(frozen=True)
class Standing:
    """How a run stands: its name, state, why, and the seconds that it worked if it ended."""

    name: str
    state: str
    reason: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Progress:
    """How the runs of a sweep stand, the seconds it has taken, and how many runs it works on at once."""

    runs: Sequence[Standing]
    since: float | None
    jobs: int

    @property
    def total(self) -> int:
        """The number of runs."""
        return len(self.runs)

    @property
    def ended(self) -> int:
        """The number of runs that ended, well or not."""
        return sum(run.state in ENDED for run in self.runs)

    @property
    def left(self) -> float | None:
        """The seconds until the last run ends, if the others take as long as those that ended; None if unknown."""
        waiting = self.total - self.ended
        taken = [run.seconds for run in self.runs if run.seconds is not None]
        if not waiting:
            return 0.0
        if not taken:
            return None
        each = sum(taken) / len(taken)
        return each * waiting / min(self.jobs, waiting)

    @property
    def said(self) -> str:
        """How far it is, in words."""
        if not self.runs:
            return "no run yet"
        counts = Counter(run.state for run in self.runs)
        parts = [f"{self.ended} of {self.total} runs ended"]
        parts += [f"{count} {state}" for state, count in sorted(counts.items())]
        if self.left is None:
            parts.append("time left unknown until a run ended")
        elif self.left > 0:
            parts.append(f"about {duration(self.left)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h"


def progress(root: Path) -> Progress:
    """Return how the latest sweep of an outputs folder stands; all its runs where there was none.

    Raises:
        UserError: if the folder cannot be read.
    """
    sweep = sweeps.latest(root)
    if sweep is None:
        found = [standing(folder, None) for folder in run_folders(root)]
        return Progress(found, None, 1)
    named = [RunFolder(root / "runs" / name) for name in sweep.runs]
    found = [standing(folder, sweep.started) for folder in named]
    return Progress(found, sweep.started, sweep.jobs)


def standing(folder: RunFolder, since: float | None) -> Standing:
    """Return how a run stands; what was recorded before its sweep began took no time of it."""
    status = folder.status()
    state = str(status.get("state", WAITING))
    name = printable(folder.name)
    begun, updated = status.get("started"), status.get("updated")
    seconds = None
    if state in ENDED:
        seconds = 0.0
        known = isinstance(begun, float) and isinstance(updated, float)
        if known and (since is None or begun >= since):
            seconds = updated - begun
    return Standing(name, state, printable(str(status.get("reason") or "")), seconds)


class Follower:
    """The runs of some outputs folders, each read again when its files have changed."""

    def __init__(self, roots: Sequence[Path], where: Where):
        self.roots, self.where = roots, where
        self._kept: dict[Path, tuple[int, list[Run]]] = {}

    def version(self) -> str:
        """Return a word that changes when there is something new to show."""
        marks = [f"{folder} {moment}" for folder, moment in self._moments()]
        found = hashlib.sha256("\n".join(marks).encode(errors="surrogateescape"))
        return found.hexdigest()

    def content(self) -> Content:
        """Return the page's content; nothing while there is no run, or none that fulfils the conditions."""
        runs: list[Run] = []
        for folder, moment in self._moments():
            kept = self._kept.get(folder)
            if kept is None or kept[0] != moment:
                kept = moment, self._read(folder)
                self._kept[folder] = kept
            runs += kept[1]
        try:
            return content(runs, self.where)
        except UserError:
            return EMPTY

    def progress(self) -> list[Progress]:
        """Return how the latest sweep of each folder stands."""
        return [progress(root) for root in self.roots]

    def _moments(self) -> Iterator[tuple[Path, int]]:
        for root in self.roots:
            for folder in folders(root / "runs"):
                try:
                    yield folder, (folder / STATUS).stat().st_mtime_ns
                except OSError:
                    continue

    def _read(self, folder: Path) -> list[Run]:
        try:
            return read_run(folder / RESULT)
        except UserError:
            return []  # it says so among the runs' states
