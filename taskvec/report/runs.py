"""Finding results on disk: which runs there are, which of them still hold, and why some cannot be read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskvec.errors import UserError
from taskvec.graph.encoding import read_bytes
from taskvec.graph.result import Result, read_result
from taskvec.graph.status import exists, folders, read_status
from taskvec.text import printable

log = logging.getLogger(__name__)

RESULT, CONFIG = "result.json", "config.yaml"
SHOWN = 5  # problems that are told one by one
SHARED = ", "  # between the experiments that share a run
DONE, STALE, OLDER, UNCHECKED = "done", "stale", "older", "unchecked"

Standing = Callable[[Path], str]


@dataclass(frozen=True)
class Run:
    """A finished run's result, the folder that it lies in, and how it stands.

    ``state`` is "done" (what it was made from is as it was), "stale" (its inputs changed), "older" (of older code or
    schema) or "unchecked" (what it was made from is not here).
    """

    result: Result
    state: str = DONE
    folder: Path | None = None

    @property
    def store(self) -> Path | None:
        """The store beside the run, None where the folder is not known."""
        if self.folder is None:
            return None
        outputs = self.folder.parent.parent
        return outputs / "store"


def find_results(
    places: Iterable[Path], standing: Standing | None = None, *, stale: bool = False
) -> list[Run]:
    """Return the finished runs in outputs folders, run folders and ``result.json`` files, each run once.

    ``standing`` returns the state of a run by its folder; without it a result counts as it was recorded. Stale runs are
    left out unless asked for. What is left out, and what cannot be read, is said in the log.

    Raises:
        UserError: if no place holds a finished run.
    """
    places, problems = list(places), Problems()
    paths: list[Path] = []
    for place in places:
        with problems.noted():
            paths += _results_in(place)
    found: list[Run] = []
    for path in paths:
        with problems.noted():
            found += read_run(path)
    if not found:
        named = ", ".join(map(str, places))
        raise UserError(
            f"no finished run in {named}{problems.first()}; `taskvec status` lists all runs"
        )
    problems.tell()
    runs = [_judged(run, standing) for run in _once(found)]
    return runs if stale else _fresh(runs)


class Problems:
    """What could not be read, so that one broken run does not hide the others."""

    def __init__(self):
        self.reasons: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the user errors of a block instead of raising them."""
        try:
            yield
        except UserError as error:
            self.reasons.append(printable(str(error)))

    def first(self) -> str:
        """Return the first reason in brackets, or nothing."""
        return f" ({self.reasons[0]})" if self.reasons else ""

    def tell(self) -> None:
        """Say what was left out, one by one while they are few."""
        for reason in self.reasons[:SHOWN]:
            log.warning("left out: %s", reason)
        if len(self.reasons) > SHOWN:
            log.warning("left out: %d more that cannot be read", len(self.reasons) - SHOWN)


def read_run(path: Path) -> list[Run]:
    """Return the run of a ``result.json``, under the names of all experiments that share it; none if it is not done.

    Raises:
        UserError: if the result or the status beside it cannot be read, or is not as it was written.
    """
    folder = path.parent
    if not exists(path):
        return []
    status = read_status(folder)
    if status is None:
        return [Run(read_result(path), folder=folder)]
    if status.state != DONE:
        return []
    _check(path, status.result_sha256)
    _check(folder / CONFIG, status.config_sha256)
    result = read_result(path)
    experiments = dict.fromkeys([result.config.get("experiment"), *status.experiments])
    names = [str(name) for name in experiments if name]
    config = result.config | {"experiment": SHARED.join(names) or None}
    renamed = result.model_copy(update={"config": config})
    return [Run(renamed, folder=folder)]


def _results_in(place: Path) -> Iterator[Path]:
    """Yield the result files of a place.

    Raises:
        UserError: if there is no such place, or it cannot be read.
    """
    if not exists(place):
        raise UserError(f"{place}: no such run, outputs folder or result.json")
    if not place.is_dir():
        yield place
    elif exists(place / RESULT):
        yield place / RESULT
    else:
        yield from (folder / RESULT for folder in folders(place / "runs"))


def _check(path: Path, expected: str | None) -> None:
    """Check that a file has the checksum that was recorded with it.

    Raises:
        UserError: if not.
    """
    if expected is None:
        return
    found = hashlib.sha256(read_bytes(path))
    if found.hexdigest() != expected:
        raise UserError(f"{path}: not as it was written")


def _once(runs: Sequence[Run]) -> list[Run]:
    """Return the runs without copies of the same result, which count once."""
    kept: dict[tuple[str, str], Run] = {}
    for run in runs:
        same = (run.result.run_id, run.result.fingerprint)
        kept.setdefault(same, run)
    copies = len(runs) - len(kept)
    if copies:
        log.warning("copies of runs that are counted once: %d", copies)
    return list(kept.values())


def _judged(run: Run, standing: Standing | None) -> Run:
    state = run.state
    if run.result.migrated_from is not None:
        # What an earlier program stored cannot be compared with what this one would make
        state = OLDER
    elif standing is not None and run.folder is not None:
        try:
            state = standing(run.folder)
        except (UserError, RecursionError):
            state = UNCHECKED
    return Run(run.result, state, run.folder)


def _fresh(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that are not stale.

    Raises:
        UserError: if all are.
    """
    fresh = [run for run in runs if run.state != STALE]
    left = len(runs) - len(fresh)
    if left and not fresh:
        raise UserError(
            f"no run that still holds: {left} are stale, their inputs changed; --stale shows them"
        )
    if left:
        log.warning("stale runs left out: %d; their inputs changed, --stale shows them", left)
    return fresh
