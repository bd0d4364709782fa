"""What the same command costs when its result stands: start-up, checking every input, reading the result.

    python tests/bench/rerun.py

Times a finished run of the tiny world against `taskvec show` (start-up and composition) and against the same run with
an empty store, in turn; exits with 1 if the finished run takes more than 3 times `taskvec show`.
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import world  # noqa: E402
from conftest import command  # noqa: E402

PAIRS, BAR = 7, 3.0


def seconds(include: Path, *words: str) -> float:
    """Return the wall time of one command, which must succeed."""
    start = time.perf_counter()
    done = command(include, *words)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


def main() -> int:
    """Print the figures and return whether the bar holds."""
    with tempfile.TemporaryDirectory() as folder:
        include = world.build(Path(folder, "world"))
        run = [*world.FAST, f"outputs={folder}/outputs"]
        first = seconds(include, *run)
        shown, again = [], []
        for _ in range(PAIRS):
            shown.append(seconds(include, "show", *run))
            again.append(seconds(include, *run))
    ratio = statistics.median(again) / statistics.median(shown)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, Python {platform.python_version()}, {PAIRS} pairs in turn, seconds")
    for name, values in (("taskvec show", shown), ("the run again", again)):
        print(
            f"{name:<16}min {min(values):.2f}  median {statistics.median(values):.2f}  max {max(values):.2f}"
        )
    print(f"the first time  {first:.2f}\nratio of medians {ratio:.2f} (bar {BAR})")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
