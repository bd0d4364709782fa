"""The jobs of a sweep on this machine: N at once, in processes of their own, each pinned to a device."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Literal

from pydantic import Field, model_validator

from taskvec.config import Config
from taskvec.runner.launch.devices import VISIBLE, chosen
from taskvec.runner.progress import bars
from taskvec.runner.signals import IN_SWEEP
from taskvec.text import printable

log = logging.getLogger(__name__)
# of one run: two jobs that both heard them would write into one
OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME")
COMMAND = (sys.executable, "-m", "taskvec", "run")
POLL_SECONDS = 0.05
GRACE_SECONDS = 20.0  # in which a job that was told to end records it
LOOK_BYTES = 1 << 16
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class SweepConfig(Config):
    """How ``-m`` runs jobs.

    On this machine (``local``): ``jobs`` at once; with ``devices`` (CUDA ids) each sees exactly one, the next that is
    free. On a cluster (``ray``): as many as there is room for, each with ``cpus`` cores and ``gpus`` devices;
    ``address`` None finds the cluster of this machine, or starts one.
    """

    jobs: int = Field(1, ge=1)
    devices: tuple[int | str, ...] = ()
    launcher: Literal["local", "ray"] = "local"
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    address: str | None = None

    @model_validator(mode="after")
    def _of_one_launcher(self) -> SweepConfig:
        local = self.jobs != 1 or self.devices
        if self.launcher == "ray" and local:
            raise ValueError(
                "jobs and devices are of this machine; Ray takes cpus and gpus per job"
            )
        if self.launcher == "local" and (self.cpus, self.gpus, self.address) != (1, 0, None):
            raise ValueError("cpus, gpus and address are of a cluster; add sweep.launcher=ray")
        return self


@dataclass(eq=False)
class Job:
    """A job at work, on a device of its own or on whatever there is."""

    title: str
    device: str | None
    process: subprocess.Popen
    output: IO[bytes]
    start: float = field(default_factory=time.perf_counter)
    read: int = 0

    def said(self, *, ended: bool = False) -> list[str]:
        """Return the lines that it wrote since the last look; what it left unfinished counts once it has ``ended``."""
        # At a place of its own: the position in the file is the job's too
        found = os.pread(self.output.fileno(), LOOK_BYTES, self.read)
        whole = len(found) if ended else found.rfind(b"\n") + 1
        self.read += whole
        lines = found[:whole].decode(errors="replace").split("\n")
        return [f"[{self.title}] {line}" for line in lines if line.strip()]

    def told(self) -> str:
        """Return how it ended."""
        status = self.process.returncode
        if status == 0:
            return "done"
        return f"ended by signal {-status}" if status < 0 else f"failed with exit status {status}"


def run_processes(
    jobs: Sequence[Sequence[str]], titles: Sequence[str], config: SweepConfig
) -> None:
    """Run every job in a process of its own; one that dies takes no other with it, and none outlives this process.

    What a job says is said again here under its title; outcomes are in the folders' status.

    Raises:
        UserError: if a device is not among those that this process was given.
    """
    devices = chosen(config.devices)
    threads = share(min(config.jobs, len(jobs)))
    free: deque[str | None] = deque()
    for slot in range(config.jobs):
        device = devices[slot % len(devices)] if devices else None
        free.append(device)
    waiting, running = deque(zip(titles, jobs, strict=True)), []
    try:
        with _counted(len(jobs)) as count:
            while waiting or running:
                while waiting and free:
                    title, words = waiting.popleft()
                    running.append(_started(title, words, free.popleft(), threads))
                for job in running:
                    _repeat(job.said())
                for job in _ended(running):
                    running.remove(job)
                    free.append(job.device)
                    _close(job)
                    count()
                time.sleep(POLL_SECONDS)
    finally:
        _stop(running)


def share(jobs: int) -> Mapping[str, str]:
    """Return the variables that give each of some jobs side by side its part of the cores; the user's own win.

    torch, OpenMP and the BLAS libraries each start a thread per core otherwise, and wait for one another.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    each = str(max(1, (cores or 1) // jobs))
    # OMP_NUM_THREADS is the one that all others fall back on
    if THREADS[0] in os.environ:
        return {}
    return {name: each for name in THREADS if name not in os.environ}


def environment(device: str | None, more: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Return what a job's process inherits from this one, and ``more``."""
    inherited = {name: value for name, value in os.environ.items() if name not in OF_ONE_RUN}
    inherited[IN_SWEEP] = str(os.getpid())
    inherited |= more or {}
    if device is not None:
        inherited[VISIBLE] = device
    return inherited


@contextlib.contextmanager
def _counted(total: int) -> Iterator[Callable[[], None]]:
    """Show how many jobs are done on a terminal, with the time left; what is yielded counts one more."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    shown = bars()
    task = shown.add_task("jobs", total=total, said="")
    with shown:
        yield lambda: shown.advance(task)


def _repeat(lines: Iterable[str]) -> None:
    """Write lines of jobs where this process writes its own."""
    with contextlib.suppress(OSError):  # nobody reads it
        for line in lines:
            sys.stderr.write(f"{printable(line)}\n")


def _close(job: Job) -> None:
    """Say how a job ended, and end what it started and left behind."""
    _signal(job, signal.SIGKILL)
    while lines := job.said(ended=True):
        _repeat(lines)
    seconds = time.perf_counter() - job.start
    log.info("[%s] %s after %.0f s", job.title, job.told(), seconds)


def _started(
    title: str, overrides: Sequence[str], device: str | None, threads: Mapping[str, str]
) -> Job:
    place = "" if device is None else f" on device {device}"
    log.info("[%s] starting%s", title, place)
    output = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the job)
    # a process group of its own, so that what a job starts ends with it
    process = subprocess.Popen(
        [*COMMAND, *overrides],
        env=environment(device, threads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=output,
        process_group=0,
    )
    return Job(title, device, process, output)


def _ended(running: Iterable[Job]) -> list[Job]:
    return [job for job in running if job.process.poll() is not None]


def _stop(running: Sequence[Job]) -> None:
    """End jobs with all that they started: first with a word, then without."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        deadline = time.monotonic() + seconds
        for job in running:
            _signal(job, number)
            _signal(job, signal.SIGCONT)  # a stopped one hears the first only when it goes on
        while any(job.process.poll() is None for job in running) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def _signal(job: Job, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(job.process.pid, number)
