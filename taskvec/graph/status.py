"""``status.json``: how a run stands, as it was last written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, ValidationError

from taskvec.config import Config
from taskvec.errors import UserError
from taskvec.graph.encoding import read_json
from taskvec.graph.ground import Ground
from taskvec.graph.result import first_problem

STATUS = "status.json"

State = Literal[
    "done",
    "running",
    "failed",
    "interrupted",
    "stale",
    "older",
    "unchecked",
    "missing",
    "unreadable",
]


class Status(Config):
    """A run's state, why, and the checksums of the files that belong to it; what else is in the file is not read.

    ``artefacts`` are the fingerprints of all that the run stands on or was to make, whether it got there or not.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    state: Literal["done", "running", "failed", "interrupted"]
    reason: str | None = None
    command: str = ""
    overrides: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    started: float | None = None
    pid: int | None = None
    host: str | None = None
    experiments: tuple[str, ...] = ()
    artefacts: tuple[str, ...] = ()
    mirrored_to: str | None = None
    config_sha256: str | None = None
    result_sha256: str | None = None
    ground: Ground | None = None


def read_status(folder: Path) -> Status | None:
    """Return the status of a run, None if the folder holds none.

    Raises:
        UserError: if it cannot be read or does not fit its schema.
    """
    path = folder / STATUS
    if not exists(path):
        return None
    data = read_json(path)
    try:
        return Status.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: not a status: {first_problem(error)}") from error


def folders(place: Path) -> list[Path]:
    """Return what lies in a folder, nothing where there is no such folder.

    Raises:
        UserError: if it cannot be read: another user's folder is not an empty one.
    """
    try:
        return sorted(place / name for name in os.listdir(place))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error.strerror}") from error


def exists(path: Path) -> bool:
    """Return whether there is a file or folder.

    Raises:
        UserError: if that cannot be known.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(f"{path}: cannot be read: {reason}") from error
    return True
