"""A sweep of four on a real SLURM and a real Ray cluster of one node, killed midway and resumed, against a local one.

    apt-get install slurmctld slurmd slurm-client munge     # the real thing, from Debian
    pip install '.[slurm,ray]'
    python tests/campaigns/cluster.py --report tests/campaigns/cluster.md

The SLURM of this script has a configuration of its own, keeps all it writes in a temporary folder, and wants root, as
its daemons do. The sweep is killed with its jobs as soon as the first of them is done; the same command must then give
the results of the local sweep, number for number.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import world

from taskvec.graph.result import Result, read_result

JOBS = ["-m", *world.FAST, "finetune.steps=60", "finetune.checkpoint_every=0", "seed=0,1,2,3"]
PATIENCE = 900.0  # seconds for a sweep
BIN = Path(sys.executable).parent
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=30"]
RAY = ["sweep.launcher=ray", "sweep.address=auto"]
PORTS = {"SlurmctldPort": 16817, "SlurmdPort": 16818}
CONFIG = """\
ClusterName=one
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
{ports}
NodeName={host} CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[tuple[Mapping[str, str], Callable[[], object]]]:
    """Run a SLURM of one node; yield the environment of its programs, and what cancels every job."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname()
    ports = "\n".join(f"{name}={port}" for name, port in PORTS.items())
    cores = len(os.sched_getaffinity(0))
    text = CONFIG.format(host=host, folder=folder, ports=ports, cores=cores)
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    own = {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munge += [
        f"--{name}={folder}/munge.{name}"
        for name in ("socket", "pid-file", "log-file", "seed-file")
    ]
    daemons = []
    try:
        for words in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            daemons.append(started(words, own, folder / f"{words[0]}.out"))
            time.sleep(2)
        until(lambda: "idle" in said(["sinfo", "-h", "-o", "%T"], own), 60, "an idle node")
        yield own, lambda: said(["scancel", "--user=root"], own)
    finally:
        said(["scancel", "--user=root"], own)
        until(lambda: not said(["squeue", "-h"], own).strip(), 120, "an empty queue")
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


@contextlib.contextmanager
def ray(folder: Path) -> Iterator[tuple[Mapping[str, str], Callable[[], object]]]:
    """Run a Ray cluster of one node; yield the environment, and what kills every process of it and starts it anew."""
    cores = len(os.sched_getaffinity(0))
    start = [
        f"{BIN}/ray",
        "start",
        "--head",
        f"--num-cpus={cores}",
        "--include-dashboard=false",
        f"--temp-dir={folder}",
    ]

    def lost() -> None:
        said([f"{BIN}/ray", "stop", "--force"], {})
        said(start, {})

    said(start, {})
    try:
        yield {}, lost
    finally:
        said([f"{BIN}/ray", "stop", "--force"], {})


def started(words: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen:
    """Start a program in a session of its own, with what it says in a file."""
    with log.open("ab") as file:
        return subprocess.Popen(
            words,
            env=os.environ | dict(environment),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def said(words: list[str], environment: Mapping[str, str]) -> str:
    """Return what a program says."""
    done = subprocess.run(
        words,
        env=os.environ | dict(environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something.

    Raises:
        TimeoutError: naming it.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


def results(outputs: Path) -> dict[str, Result]:
    """Return the results of a sweep by run."""
    found = map(read_result, sorted(outputs.glob("runs/*/result.json")))
    return {result.run_id: result for result in found}


class Sweep:
    """The command of four jobs on a launcher."""

    def __init__(self, tiny: Path, outputs: Path, more: list[str], environment: Mapping[str, str]):
        self.words = [sys.executable, "-m", "taskvec", "--include", str(tiny), *JOBS, *more]
        self.words.append(f"outputs={outputs}")
        self.outputs, self.environment = outputs, environment
        self.log = outputs.parent / f"{outputs.name}.log"

    def start(self) -> subprocess.Popen:
        """Start it."""
        self.outputs.parent.mkdir(parents=True, exist_ok=True)
        return started(self.words, self.environment, self.log)

    def finish(self) -> int:
        """Run it to its end and return its exit status."""
        return self.start().wait(PATIENCE)

    def kill_midway(self, lose: Callable[[], object]) -> int:
        """Start it, and kill it with all its jobs once the first is done; return how many are."""
        process = self.start()
        until(
            lambda: len(results(self.outputs)) > 0 or process.poll() is not None,
            PATIENCE,
            "a result",
        )
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        lose()
        time.sleep(2)
        return len(results(self.outputs))


def compared(
    name: str, sweep: Sweep, lose: Callable[[], object], local: Mapping[str, Result]
) -> str:
    """Kill and resume a sweep; return the line of the report."""
    begun = time.perf_counter()
    before = sweep.kill_midway(lose)
    status = sweep.finish()
    found = results(sweep.outputs)
    equal = sum(run in found and found[run].same_as(result) for run, result in local.items())
    print(sweep.log.read_text(errors="replace")[-3000:], flush=True)
    seconds = time.perf_counter() - begun
    good = status == 0 and equal == len(local) == len(found)
    verdict = "equal" if good else "NOT EQUAL"
    return (
        f"| {name} | {before} | {status} | {equal} of {len(local)} | {verdict} | {seconds:.0f} s |"
    )


def main() -> int:
    """Run both clusters and print the report; 1 if one differs from the local sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--only", choices=("slurm", "ray"))
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory(prefix="cluster-") as place:
        folder = Path(place)
        tiny = world.build(folder / "world")
        alone = Sweep(tiny, folder / "local" / "outputs", [], {})
        assert alone.finish() == 0, alone.log.read_text()
        local = results(alone.outputs)
        for name, cluster, more in (("slurm", slurm, SLURM), ("ray", ray, RAY)):
            if options.only in (None, name):
                with cluster(folder / name) as (environment, lose):
                    outputs = folder / f"on-{name}" / "outputs"
                    # heads and decoded images are those of the local sweep: neither is what is asked about
                    for kind in ("head", "decoded"):
                        shutil.copytree(alone.outputs / "store" / kind, outputs / "store" / kind)
                    lines.append(
                        compared(name, Sweep(tiny, outputs, more, environment), lose, local)
                    )
    text = report(lines)
    print(text)
    if options.report:
        options.report.write_text(text)
    return int("NOT EQUAL" in text)


def report(lines: list[str]) -> str:
    """Return the report."""
    slurm_version = said(["sinfo", "--version"], {}).strip()
    versions = f"{slurm_version}, submitit {version('submitit')}, Ray {version('ray')}"
    head = [
        "| cluster | done when killed | exit status resumed | results equal to the local sweep's | | time |"
    ]
    head.append("|---|---|---|---|---|---|")
    return "\n".join([
        "# A sweep of four on clusters, killed midway and resumed",
        "",
        f"{versions}, Python {platform.python_version()}, one node of {len(os.sched_getaffinity(0))} cores.",
        f"Command: `taskvec {' '.join(JOBS)}` with `{' '.join(SLURM)}` and with `{' '.join(RAY)}`;",
        "the sweep and all its jobs were killed as soon as the first job was done (SLURM: `scancel`; Ray:",
        "`ray stop --force` and a new cluster). Results are equal in all but timing and environment.",
        "",
        *head,
        *lines,
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
