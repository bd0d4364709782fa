"""Start-up time of the command beside that of Hydra: ``python tests/bench/startup.py [PAIRS]``.

Each command runs in turn with ``python -c "import hydra"`` (A B A B ...), so that load on the machine meets both alike.
The bar: no median more than five times that of Hydra's import. Exit status 1 if one is.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from tabulate import tabulate

BAR = 5.0
COMMANDS = {
    "taskvec --help": ["--help"],
    "taskvec list": ["list"],
    "taskvec show": ["show"],
    "taskvec table --help": ["table", "--help"],
    "taskvec finetune.lrr=1 (error)": ["finetune.lrr=1"],
    "taskvec finetune.lr=-1 (error)": ["finetune.lr=-1"],
}
HYDRA = [sys.executable, "-c", "import hydra"]


def seconds(words: list[str], folder: str, expected: int) -> float:
    """Return the wall time of a process, which must end with the expected status."""
    start = time.perf_counter()
    done = subprocess.run(words, cwd=folder, capture_output=True)
    elapsed = time.perf_counter() - start
    if done.returncode != expected:
        raise SystemExit(f"{' '.join(words)}: status {done.returncode}\n{done.stderr.decode()}")
    return elapsed


def main() -> int:
    """Measure, print one table, and return 1 if a ratio of medians is above the bar."""
    pairs = max(7, int(sys.argv[1])) if len(sys.argv) > 1 else 7
    lines, slow = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in COMMANDS.items():
            words, expected = (
                [sys.executable, "-m", "taskvec", *arguments],
                2 if "error" in name else 0,
            )
            seconds(words, folder, expected), seconds(HYDRA, folder, 0)  # byte code and file cache
            timed = [
                (seconds(words, folder, expected), seconds(HYDRA, folder, 0)) for _ in range(pairs)
            ]
            ours, hydra = zip(*timed, strict=True)
            ratio = statistics.median(ours) / statistics.median(hydra)
            slow += [name] if ratio > BAR else []
            lines.append(
                [
                    name,
                    *measures(ours),
                    *measures(hydra),
                    f"{ratio:.2f}",
                    "no" if ratio > BAR else "yes",
                ]
            )
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {pairs} pairs, seconds"
    )
    spread = ["min", "median", "max"]
    heads = [
        "command",
        *spread,
        *(f"hydra {word}" for word in spread),
        "ratio of medians",
        f"at most {BAR:g}",
    ]
    print(tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True))
    return 1 if slow else 0


def measures(values: tuple[float, ...]) -> list[str]:
    """Return minimum, median and maximum as text."""
    return [f"{value:.3f}" for value in (min(values), statistics.median(values), max(values))]


if __name__ == "__main__":
    sys.exit(main())
