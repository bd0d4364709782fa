"""Other commands that work in the same outputs folder: noticed by the locks of their runs, and told so."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from taskvec.runner.folder import RunFolder, run_folders
from taskvec.runner.signals import IN_SWEEP

log = logging.getLogger(__name__)


def notice(root: Path) -> None:
    """Say which runs others are at in an outputs folder, and what to do about the cores that both would use.

    Both stay correct: they wait for each other's artefacts. A job of a sweep shares the cores already.
    """
    if IN_SWEEP in os.environ:
        return
    found = [folder.name for folder in at_work(root)]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        log.warning(
            "another command works on %s%s in this outputs folder: both use all cores; set OMP_NUM_THREADS for each, "
            "or start the jobs as one sweep with sweep.jobs=2",
            found[0],
            more,
        )


def at_work(root: Path) -> list[RunFolder]:
    """Return the runs that another process of this machine is at."""
    found = []
    for folder in run_folders(root):
        status = folder.status()
        here = status.get("host") == socket.gethostname() and status.get("pid") != os.getpid()
        if status.get("state") == "running" and here:
            found.append(folder)
    return found
