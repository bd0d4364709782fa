"""Sending what ran offline to Weights & Biases, each run once, by W&B's own program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from taskvec.errors import UserError
from taskvec.graph.locking import held
from taskvec.graph.status import folders

OFFLINE = "offline-run-"
SENT = "sent-by-taskvec"  # in the folder of a run that W&B has
PROGRAM = (sys.executable, "-m", "wandb", "sync", "--yes")


def waiting(root: Path) -> list[Path]:
    """Return the folders of the runs of an outputs folder that ran offline and were not sent, the oldest first.

    Raises:
        UserError: if the folder cannot be read.
    """
    found = [folder for folder in folders(root / "wandb") if folder.name.startswith(OFFLINE)]
    return [folder for folder in found if not sent(folder)]


def sent(folder: Path) -> bool:
    """Return whether W&B has a run, sent by this program or by ``wandb sync`` itself."""
    return (folder / SENT).exists() or any(folder.glob("*.synced"))


def send(root: Path, options: Sequence[str] = ()) -> list[str]:
    """Send the runs that wait, and return the names of their folders; another process that sends has them first.

    Raises:
        UserError: with W&B's last line, if it fails; what it sent before is not sent again.
    """
    names = []
    # Or it would write its logs into the current folder
    environment = os.environ | {"WANDB_DIR": str(root)}
    with held(root / "wandb" / "sync.lock", "sends runs to W&B"):
        for folder in waiting(root):
            words = [*PROGRAM, *options, str(folder)]
            done = subprocess.run(
                words, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                said = [*done.stdout.splitlines(), *done.stderr.splitlines()]
                spoken = [line for line in said if line.strip()] or ["no reason was given"]
                raise UserError(f"wandb sync of {folder.name}: {spoken[-1]}")
            (folder / SENT).touch()
            names.append(folder.name)
    return names
