"""How much anonymous memory a piece of work takes: what the system cannot drop, unlike pages that mirror a file."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import TracebackType

STATUS = "/proc/self/status"
SECONDS = 0.02
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES, LARGE_BYTES = 2**27, 2**24


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


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed: pieces are made and freed all the time, and every fresh page costs a fault.

    Only glibc has the setting.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(MMAP_THRESHOLD, LARGE_BYTES)


def anonymous() -> int | None:
    """Return the anonymous memory of this process in bytes; None where the system does not say it."""
    try:
        with open(STATUS, encoding="ascii") as status:
            lines = [line for line in status if line.startswith("RssAnon")]
    except OSError:
        return None
    return int(lines[0].split()[1]) * 1024 if lines else None
