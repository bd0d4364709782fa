"""What a sweep is going to run, on disk, so that others can follow it: ``<outputs>/sweeps/<time>.json``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from taskvec.config import Config
from taskvec.errors import UserError
from taskvec.graph.encoding import read_json
from taskvec.graph.status import folders
from taskvec.runner.folder import RunFolder, write_atomically

FOLDER = "sweeps"
NAME = "%Y-%m-%d_%H-%M-%S"


class Sweep(Config):
    """The names of a sweep's runs in their order, how many run at once, and when it began (seconds since 1970)."""

    runs: tuple[str, ...]
    jobs: int
    started: float


def record(runs: Iterable[RunFolder], jobs: int) -> None:
    """Write down what a sweep is going to run, in each outputs folder that its runs go to and where one is not done.

    Raises:
        UserError: if it cannot be written.
    """
    started = time.time()
    by_root: dict[Path, list[RunFolder]] = {}
    for run in runs:
        of_root = by_root.setdefault(run.path.parent.parent, [])
        of_root.append(run)
    moment = time.strftime(NAME, time.localtime(started))
    for root, of_root in by_root.items():
        if all(run.intact() for run in of_root):
            continue
        names = tuple(run.name for run in of_root)
        sweep = Sweep(runs=names, jobs=jobs, started=started)
        path = root / FOLDER / f"{moment}-{os.getpid()}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be made: {error.strerror}") from error
        write_atomically(path, json.dumps(sweep.model_dump(mode="json"), indent=1) + "\n")


def latest(root: Path) -> Sweep | None:
    """Return the sweep of an outputs folder that began last, None if there is none that can be read."""
    for path in reversed(folders(root / FOLDER)):
        if path.suffix != ".json":
            continue
        try:
            return Sweep.model_validate(read_json(path))
        except (ValidationError, UserError):
            continue
    return None
