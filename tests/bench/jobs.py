"""Two jobs side by side against one after the other: what sharing the cores between them is worth.

    python tests/bench/jobs.py

Each job is one vector of the embedded CLIP on a task of its own seed, with heads and decoded images at hand. Times the
sweep of two with `sweep.jobs=2` and with `sweep.jobs=1` in processes of their own, in turn; exits with 1 if side by
side takes more than 1.25 times one after the other.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAIRS, BAR = 3, 1.25
JOB = ["suite.tasks=[mnist]", "protocol.grid=[1]", "finetune.steps=100"]


def command(outputs: Path, *words: str) -> float:
    """Return the wall time of one command, which must succeed; the user's own thread counts are taken away."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(ROOT), "TASKVEC_LOG": "WARNING"}
    start = time.perf_counter()
    line = [sys.executable, "-m", "taskvec", *JOB, *words, f"outputs={outputs}"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


def main() -> int:
    """Print the figures and return whether the bar holds."""
    one_by_one, side_by_side = [], []
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "outputs")
        command(outputs, "seed=0")
        for turn in range(PAIRS):
            first = 10 * turn + 1
            one_by_one.append(
                command(outputs, f"seed={first}") + command(outputs, f"seed={first + 1}")
            )
            seeds = f"seed={first + 2},{first + 3}"
            side_by_side.append(command(outputs, "-m", seeds, "sweep.jobs=2"))
    ratio = statistics.median(side_by_side) / statistics.median(one_by_one)
    machine = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0))
    print(
        f"{machine}, {cores} cores, Python {platform.python_version()}, {PAIRS} pairs in turn, seconds"
    )
    for name, values in (("one after the other", one_by_one), ("side by side", side_by_side)):
        spread = (
            f"min {min(values):.2f}  median {statistics.median(values):.2f}  max {max(values):.2f}"
        )
        print(f"{name:<21}{spread}")
    print(f"ratio of medians {ratio:.2f} (bar {BAR})")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
