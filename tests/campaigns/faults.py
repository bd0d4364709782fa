"""A fault campaign: signals at random times, damaged files, full disks; every run must end as the undisturbed one.

    python tests/campaigns/faults.py --signals 200 --report tests/campaigns/faults.md

A command that meets a fault must end with the signal's status or with one line, leave no process behind, and the same
command must then give the result of an undisturbed run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import forked
import world

from taskvec.errors import UserError
from taskvec.graph.result import Result, read_result

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGSTOP")
WORDS = [
    *world.FAST,
    "suite.tasks=[stripes,corners]",
    "protocol.grid=[0,1]",
    "finetune.checkpoint_every=0",
]
SHAPES = {
    "run": 0.7,
    "sweep": 0.08,
    "race": 0.22,
}  # the share of signals; a sweep starts whole processes
REPORTED = 20
COUNTED = ("small", "full", "damage", "seed")


class Campaign:
    """A folder for everything, the undisturbed results, and what went wrong."""

    def __init__(self, folder: Path, seed: int, tell: Callable[[Campaign], None]):
        self.folder, self.drawn, self.tell = folder, random.Random(seed), tell
        self.tiny = world.build(folder / "world")
        self.counts: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.number = 0
        started = time.perf_counter()
        self.reference = self.results(self.finish(WORDS, self.fresh(), "reference"))
        # The second run is faster; signals fall a little late too
        self.seconds = time.perf_counter() - started

    def fresh(self) -> Path:
        """Return a new outputs folder."""
        self.number += 1
        return self.folder / f"{self.number}" / "outputs"

    def start(self, words: list[str], outputs: Path, **accident) -> forked.Child:
        """Start a command on an outputs folder."""
        self.number += 1
        folder = outputs.parent / f"said-{self.number}"
        return forked.start(self.tiny, *words, f"outputs={outputs}", folder=folder, **accident)

    def finish(self, words: list[str], outputs: Path, what: str) -> Path:
        """Run a command to its end without disturbing it."""
        ended = self.start(words, outputs).wait()
        self.check(
            ended.returncode == 0,
            what,
            f"the same command ends with {ended.returncode}: {ended.stderr[-300:]}",
        )
        return outputs

    def check(self, good: bool, what: str, problem: str) -> None:
        """Count a check, and note what is wrong."""
        if not good:
            self.problems.append(f"{what}: {' '.join(problem.split())}")

    def results(self, outputs: Path) -> dict[int, Result]:
        """Return the results of an outputs folder that can be read, by seed."""
        found = {}
        for path in outputs.glob("runs/*/result.json"):
            with contextlib.suppress(UserError):
                result = read_result(path)
                found[result.config["seed"]] = result
        return found

    def said(self, ended: forked.Finished, what: str) -> None:
        """Check that a command told its end in words for people."""
        self.check("Traceback" not in ended.stderr, what, f"a traceback: {ended.stderr[-300:]}")

    def whole(self, outputs: Path, what: str) -> None:
        """Check an outputs folder that a command has finished: results, leftovers, processes."""
        result = self.results(outputs).get(0)
        same = result is not None and result.same_as(self.reference[0])
        self.check(same, what, "the result is not the undisturbed one")
        left = [path for path in outputs.rglob("*") if ".tmp" in path.name]
        self.check(not left, what, f"left behind: {left[:1]}")
        self.check(not list(processes(outputs)), what, "a process is left")
        self.tell(self)  # now, so that an interrupted campaign has its report
        shutil.rmtree(outputs.parent, ignore_errors=True)


def processes(outputs: Path) -> Iterator[int]:
    """Yield the living processes whose command line names an outputs folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"outputs={outputs}".encode() in path.read_bytes():
                yield int(path.parent.name)


def disturb(campaign: Campaign, child: forked.Child, name: str, seconds: float) -> forked.Finished:
    """Send a signal to a command at a random time within ``seconds``, and wait for its end."""
    time.sleep(campaign.drawn.uniform(0, seconds))
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, getattr(signal, name))
    if name == "SIGSTOP":
        time.sleep(campaign.drawn.uniform(0, 1))
        os.kill(child.pid, signal.SIGCONT)
    return child.wait()


def expected(name: str) -> set[int]:
    """Return the exit statuses that a signal may lead to: it may come too late."""
    number = getattr(signal, name)
    return {0} if name == "SIGSTOP" else {0, -number, 128 + number}


def signals(campaign: Campaign, count: int) -> None:
    """Send ``count`` signals to single runs, to sweeps with two jobs at once, and to four processes that race."""
    while count > 0:
        shape = campaign.drawn.choices(list(SHAPES), list(SHAPES.values()))[0]
        outputs, sweep = campaign.fresh(), ["-m", *WORDS, "seed=0,1"]
        words = {"run": WORDS, "sweep": [*sweep, "sweep.jobs=2"], "race": sweep}[shape]
        names = campaign.drawn.choices(SIGNALS, k=4 if shape == "race" else 1)
        seconds = campaign.seconds * (3 if shape == "sweep" else 1.2)
        children = [campaign.start(words, outputs) for _ in names]
        for child, name in zip(children, names, strict=True):
            what = f"{name} to a {shape}"
            ended = disturb(campaign, child, name, seconds / len(names))
            campaign.check(
                ended.returncode in expected(name),
                what,
                f"ends with {ended.returncode}: {ended.stderr[-300:]}",
            )
            campaign.said(ended, what)
            campaign.counts[what] += 1
            count -= 1
        deadline = time.monotonic() + 30
        while list(processes(outputs)) and time.monotonic() < deadline:
            time.sleep(0.1)
        what = f"{'+'.join(names)} to a {shape}"
        campaign.check(not list(processes(outputs)), what, "jobs outlive it by 30 s")
        campaign.finish(WORDS, outputs, what)
        campaign.whole(outputs, what)


def damages(content: bytes) -> dict[str, bytes | None]:
    """Return what can become of a file: cut, one bit flipped, gone."""
    found = dict(forked.damaged(content, seed=len(content))) if content else {}
    return {"cut": found.get("half", b"x"), "flipped": found.get("bit", b"y"), "deleted": None}


def damage(campaign: Campaign, limit: int) -> None:
    """Damage every file below a finished outputs folder, one at a time, and run the same command again."""
    whole = campaign.finish(WORDS, campaign.fresh(), "before damage")
    files = [
        path.relative_to(whole)
        for path in sorted(whole.rglob("*"))
        if path.is_file() and ".lock" not in path.name
    ]
    cases = [(file, kind) for file in files for kind in ("cut", "flipped", "deleted")]
    for file, kind in campaign.drawn.sample(cases, min(limit, len(cases))):
        what = f"{kind} {'/'.join(part for part in file.parts if len(part) < 32)}"
        outputs = campaign.fresh()
        shutil.copytree(whole, outputs)
        changed = damages((whole / file).read_bytes())[kind]
        if changed is None:
            (outputs / file).unlink()
        else:
            (outputs / file).write_bytes(changed)
        if file.parts[0] == "store":
            # Else the result stands and nothing of the store is looked at
            shutil.rmtree(outputs / "runs")
        campaign.finish(WORDS, outputs, what)
        campaign.whole(outputs, what)
        campaign.counts[f"a file {kind}"] += 1
    shutil.rmtree(whole.parent)


def full(campaign: Campaign, limit: int) -> None:
    """Let the disk be full from every write on, then free it and run the same command again."""
    events = campaign.start(WORDS, outputs := campaign.fresh(), events=True)
    campaign.check(events.wait().returncode == 0, "full disk", "the count of writes failed")
    log = forked.events(events.folder)
    writes = [number for number, event in enumerate(log, 1) if event.startswith("write before")]
    shutil.rmtree(outputs.parent)
    for number in campaign.drawn.sample(writes, min(limit, len(writes))):
        what = f"disk full from write {writes.index(number) + 1} of {len(writes)}"
        outputs = campaign.fresh()
        ended = campaign.start(WORDS, outputs, full_at=number).wait()
        campaign.said(ended, what)
        told = [line for line in ended.stderr.splitlines() if "No space left" in line]
        campaign.check(
            ended.returncode in (0, 1, 2),
            what,
            f"ends with {ended.returncode}: {ended.stderr[-300:]}",
        )
        campaign.check(
            ended.returncode == 0 or len(told) == 1,
            what,
            f"says it {len(told)} times: {ended.stderr[-300:]}",
        )
        campaign.finish(WORDS, outputs, what)
        campaign.whole(outputs, what)
        campaign.counts["disk full from a write on"] += 1


def small(campaign: Campaign, limit: int) -> None:
    """Run on file systems of random small sizes, where this machine lets one be mounted."""
    for _ in range(limit):
        outputs = campaign.fresh()
        outputs.mkdir(parents=True)
        size = campaign.drawn.randrange(64, 2048)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", outputs], capture_output=True
        )
        if mounted.returncode:
            campaign.counts["small file systems (none can be mounted here)"] += 0
            return
        what = f"a file system of {size} kB"
        try:
            ended = campaign.start(WORDS, outputs).wait()
            campaign.said(ended, what)
            campaign.check(
                ended.returncode in (0, 1, 2),
                what,
                f"ends with {ended.returncode}: {ended.stderr[-300:]}",
            )
            lines = [
                line for line in ended.stderr.splitlines() if "error" in line or "failed" in line
            ]
            campaign.check(
                ended.returncode == 0 or len(lines) == 1, what, f"{len(lines)} lines: {lines[:3]}"
            )
        finally:
            subprocess.run(["umount", outputs], check=True)
        campaign.counts["small file systems"] += 1
        shutil.rmtree(outputs.parent)


def report(campaign: Campaign, command: str, seconds: float) -> str:
    """Return the campaign as Markdown."""
    lines = [
        "# Fault campaign",
        "",
        f"`{command}`, {platform.system()}, Python {platform.python_version()}, {seconds:.0f} s.",
        "",
    ]
    lines += [
        "Every disturbed command must end with its signal's status or one line, leave no process, and give the result"
    ]
    lines += ["of an undisturbed run when it is repeated.", "", "| fault | times |", "|---|---|"]
    lines += [f"| {what} | {count} |" for what, count in sorted(campaign.counts.items())]
    lines += ["", f"Problems: {len(campaign.problems)}.", ""]
    lines += [f"- {problem[:300]}" for problem in campaign.problems[:REPORTED]]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Run the campaign and return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signals", type=int, default=200)
    parser.add_argument("--damage", type=int, default=10_000, help="at most so many damaged files")
    parser.add_argument(
        "--full", type=int, default=10_000, help="at most so many writes at which the disk fills"
    )
    parser.add_argument("--small", type=int, default=10, help="so many small file systems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    parts: tuple[tuple[Callable[[Campaign, int], None], int], ...] = (
        (signals, options.signals),
        (small, options.small),
        (full, options.full),
        (damage, options.damage),
    )
    named = [f"--{name} {getattr(options, name)}" for name in ("signals", *COUNTED)]
    command = f"python tests/campaigns/faults.py {' '.join(named)}"

    def tell(campaign: Campaign) -> None:
        if options.report:
            text = report(campaign, command, time.perf_counter() - started)
            options.report.write_text(text)

    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        campaign = Campaign(Path(folder), options.seed, tell)
        for part, count in parts:
            if count:
                part(campaign, count)
                print(
                    f"{part.__name__}: {len(campaign.problems)} problems",
                    file=sys.stderr,
                    flush=True,
                )
    tell(campaign)
    print(report(campaign, command, time.perf_counter() - started))
    return 1 if campaign.problems else 0


if __name__ == "__main__":
    sys.exit(main())
