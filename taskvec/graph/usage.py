"""Wall time and peak memory of one computation."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def measured(compute: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    """Return the result and its cost: wall seconds, peak resident bytes, and peak device bytes if a GPU was used."""
    _reset_peaks()
    start = time.perf_counter()
    result = compute()
    usage = {
        "wall_s": round(time.perf_counter() - start, 3),
        "peak_memory_bytes": peak_memory(),
        "ended": time.time(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        usage["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return result, usage


def peak_memory() -> int:
    """Return the peak resident memory in bytes since the last reset (of the process where it cannot be reset)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _reset_peaks() -> None:
    with contextlib.suppress(OSError):
        # Linux: resets VmHWM to the current resident size
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
