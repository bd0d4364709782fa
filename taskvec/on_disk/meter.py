"""How much anonymous memory a piece of work takes: what the system cannot drop, unlike pages that mirror a file."""

from __future__ import annotations

import threading
from types import TracebackType

STATUS = "/proc/self/status"
SECONDS = 0.02


class Peak:
    """Samples the process's anonymous memory within a ``with`` block; ``bytes`` is the highest sample, None elsewhere.

    Only Linux says it.
    """

    def __init__(self) -> None:
        self.bytes: int | None = anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        if self.bytes is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SECONDS):
            self.bytes = max(self.bytes or 0, anonymous() or 0)


def anonymous() -> int | None:
    """Return the anonymous memory of this process in bytes; None where the system does not say it."""
    try:
        with open(STATUS, encoding="ascii") as status:
            lines = [line for line in status if line.startswith("RssAnon")]
    except OSError:
        return None
    return int(lines[0].split()[1]) * 1024 if lines else None
