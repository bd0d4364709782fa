"""What is written down about a data set of the hub once it has been fetched, so that planning need not ask again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, ValidationError

from taskvec.config import Config
from taskvec.data.files import derived, write_whole
from taskvec.data.tasks import Task


class HubCard(Config):
    """A data set at one commit: rows by split, class names by label column, files and bytes to download.

    A branch means the commit that it had when the card was written; ``taskvec prefetch`` writes it anew.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    path: str
    config: str | None
    revision: str | None
    commit: str
    rows: dict[str, int | None]
    classes: dict[str, tuple[str, ...]]
    files: tuple[str, ...] = ()
    download_bytes: int | None = None
    folder: str | None = None

    def is_cached(self) -> bool:
        """Return whether the data itself is still where it was put."""
        return self.folder is not None and os.path.isdir(self.folder)


def card_file(task: Task) -> Path:
    """Return where the card of a task's data set is kept."""
    named = "\n".join((task.path, task.config or "", task.revision or ""))
    digest = hashlib.sha256(named.encode()).hexdigest()[:12]
    readable = task.path.replace("/", "--")
    return derived("cards") / f"{readable}-{digest}.json"


def read_hub_card(task: Task) -> HubCard | None:
    """Return the card of a task's data set, None if there is none or it is damaged."""
    try:
        content = card_file(task).read_bytes()
        return HubCard.model_validate_json(content)
    except (OSError, ValidationError):
        return None


def write_hub_card(task: Task, card: HubCard) -> None:
    """Keep a card, whole or not at all."""
    write_whole(card_file(task), card.model_dump_json(indent=1))
