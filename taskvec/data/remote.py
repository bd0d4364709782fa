"""What lies on the Hugging Face hub: whether it can be reached, and what a run wants from it."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from functools import cache

log = logging.getLogger(__name__)
SECONDS = 5.0  # for the one attempt
MEGA = 1e6


@cache
def reachable() -> bool:
    """Return whether the hub answers; the first attempt decides for the life of the process.

    Where it does not, its libraries are told so, which else try each file six times.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT):
        return True
    _go_offline()
    return False


def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=SECONDS, follow_redirects=False)
    except Exception:  # of whichever client the library has: it has changed it twice
        return False
    return True


def _go_offline() -> None:
    """Let this process's libraries, and its children's, read their caches only."""
    from huggingface_hub import constants

    # `datasets` reads the variable when it is imported, the hub's own client its constant with every request
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


class Remote(ABC):
    """Weights, a tokenizer or a data set of the hub, as one run wants them."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is and its name on the hub."""

    @abstractmethod
    def known(self) -> bool:
        """Return whether planning can do without the network."""

    @abstractmethod
    def here(self) -> bool:
        """Return whether everything that computing reads is in the cache."""

    @abstractmethod
    def size(self) -> float | None:
        """Return how many bytes are fetched, as far as this machine knows."""

    @abstractmethod
    def fetch(self) -> None:
        """Bring it into the cache, and write down what planning asks about it.

        Raises:
            UserError: if the hub does not give it.
        """

    def __str__(self) -> str:
        size = self.size()
        return self.title if size is None else f"{self.title} (about {size / MEGA:,.0f} MB)"
