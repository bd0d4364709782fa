"""How long the page of 2,000 runs takes: to write, and until a browser shows the first of it.

    python tests/bench/report.py [--runs 2000]

The runs are made up after a finished run of the tiny world, in lines of five seeds. Writing is a process of its own;
its seconds are its CPU time from the start of the command to its end, so that other work on the machine matters little
(it has one thread). The browser is headless Chromium, the time its own First Contentful Paint, the median of some
openings, each in a new context. Exits with 1 above 20 s or 3 s.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import world
from browser import chromium, opened
from conftest import command
from report_world import synthetic, template

WRITE_BAR, PAINT_BAR = 20.0, 3.0
TURNS = 5
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def written(folder: Path, runs: int) -> tuple[Path, float]:
    """The page of some made-up runs, and the seconds that the command took."""
    include = world.build(folder / "world")
    done = command(include, *world.FAST, f"outputs={folder / 'real'}", timeout=600)
    assert done.returncode == 0, done.stderr
    synthetic(folder / "made", template(folder / "real"), runs)
    target = folder / "report.html"
    start = used()
    done = command(None, "report", str(folder / "made"), "-o", str(target), timeout=600)
    assert done.returncode == 0, done.stderr
    return target, used() - start


def used() -> float:
    """The CPU seconds of the processes that this one started and saw end."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> int:
    """Print the seconds and return 1 if they are too many."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        target, seconds = written(Path(folder), runs)
        paints = []
        for _ in range(TURNS):
            page = opened(browser, target.as_uri())
            paints.append(page.page.evaluate(PAINT) / 1000)
            page.page.context.close()
        size = target.stat().st_size / 2**20
    paint = statistics.median(paints)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"python tests/bench/report.py --runs {runs}: {size:.1f} MiB")
    print(f"written in {seconds:.1f} s (at most {WRITE_BAR:.0f})")
    spread = f"{min(paints):.2f} to {max(paints):.2f} s"
    print(
        f"first content after {paint:.2f} s, {spread} over {TURNS} openings (at most {PAINT_BAR:.0f})"
    )
    return int(seconds > WRITE_BAR or paint > PAINT_BAR)


if __name__ == "__main__":
    sys.exit(main())
