"""The data set of a task, as something that the hub has to give."""

from __future__ import annotations

import os

from taskvec.data.hub import forget, hub_builder, prepared
from taskvec.data.hub_card import card_file, read_hub_card, write_hub_card
from taskvec.data.remote import Remote, reachable
from taskvec.data.rows import TaskData
from taskvec.data.tasks import Task
from taskvec.errors import UserError

GIGA = 1e9


class RemoteData(Remote):
    """The data set of a task."""

    def __init__(self, name: str, task: Task):
        self.name, self.task = name, task

    @property
    def title(self) -> str:
        """The data set and its configuration."""
        named = "/".join(filter(None, (self.task.path, self.task.config)))
        return f"data {named}"

    def known(self) -> bool:
        """Return whether there is a card, or the library has the data in its own cache."""
        return read_hub_card(self.task) is not None or self._cached()

    def here(self) -> bool:
        """Return whether the data is in the library's cache."""
        card = read_hub_card(self.task)
        return card.is_cached() if card else self._cached()

    def _cached(self) -> bool:
        """Return whether the library finds the data without the network, once it is known to be away."""
        if reachable():
            return False
        try:
            return os.path.isdir(hub_builder(self.name, self.task).cache_dir)
        except UserError:
            return False

    def size(self) -> float | None:
        """Return the bytes to download by the data set's card, else by the task's file."""
        card = read_hub_card(self.task)
        if card and card.download_bytes:
            return card.download_bytes
        gigabytes = self.task.facts.gigabytes
        return None if gigabytes is None else gigabytes * GIGA

    def fetch(self) -> None:
        """Fetch and prepare the data at its branch's present commit, and write its card.

        Raises:
            UserError: if the hub does not give it.
        """
        card_file(self.task).unlink(missing_ok=True)
        forget()
        prepared(self.name, self.task)
        card = read_hub_card(self.task)
        unnamed = card and self.task.label not in card.classes
        if unnamed and not self.task.classes and not self.task.regression:
            # Labels that are words: finding them reads all of train
            words = TaskData(self.name, self.task).classes.names
            classes = {**card.classes, self.task.label: words}
            write_hub_card(self.task, card.model_copy(update={"classes": classes}))
