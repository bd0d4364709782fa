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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from pydantic import Field

from taskvec.config import Config
from taskvec.runner.launch.devices import VISIBLE, chosen
from taskvec.runner.signals import IN_SWEEP

log = logging.getLogger(__name__)
# of one run: two jobs that both heard them would write into one
OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME")
COMMAND = (sys.executable, "-m", "taskvec", "run")
POLL_SECONDS = 0.05
GRACE_SECONDS = 20.0  # in which a job that was told to end records it
TAIL_BYTES = 4_000


class SweepConfig(Config):
    """``jobs`` run at once; with ``devices`` (CUDA ids) each sees exactly one, the next that is free."""

    jobs: int = Field(1, ge=1)
    devices: tuple[int | str, ...] = ()


@dataclass(eq=False)
class Job:
    """A job at work, on a device of its own or on whatever there is."""

    words: str
    device: str | None
    process: subprocess.Popen
    said: IO[bytes]
    start: float = field(default_factory=time.perf_counter)

    def told(self) -> str:
        """Return how it ended: its last line where it failed."""
        if self.process.returncode == 0:
            return "done"
        self.said.seek(0, os.SEEK_END)
        self.said.seek(max(0, self.said.tell() - TAIL_BYTES))
        lines = self.said.read().decode(errors="replace").split("\n")
        spoken = [line for line in lines if line.strip()]
        return spoken[-1] if spoken else "no output"


def run_processes(jobs: Sequence[Sequence[str]], config: SweepConfig) -> None:
    """Run every job in a process of its own; one that dies takes no other with it, and none outlives this process.

    What a job prints is in its run folder's log; outcomes are in the folders' status.

    Raises:
        UserError: if a device is not among those that this process was given.
    """
    devices = chosen(config.devices)
    free: deque[str | None] = deque()
    for slot in range(config.jobs):
        free.append(devices[slot % len(devices)] if devices else None)
    waiting, running = deque(jobs), []
    try:
        while waiting or running:
            while waiting and free:
                running.append(_started(waiting.popleft(), free.popleft()))
            for job in _ended(running):
                running.remove(job)
                free.append(job.device)
                _signal(job, signal.SIGKILL)  # to what it started and left behind
                log.info(
                    "%s: %s after %.0f s", job.words, job.told(), time.perf_counter() - job.start
                )
            time.sleep(POLL_SECONDS)
    finally:
        _stop(running)


def environment(device: str | None) -> Mapping[str, str]:
    """Return what a job's process inherits from this one."""
    inherited = {name: value for name, value in os.environ.items() if name not in OF_ONE_RUN}
    inherited[IN_SWEEP] = str(os.getpid())
    if device is not None:
        inherited[VISIBLE] = device
    return inherited


def _started(overrides: Sequence[str], device: str | None) -> Job:
    words = " ".join(overrides)
    log.info("starting %s%s", words, f" on device {device}" if device is not None else "")
    said = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the job)
    # a process group of its own, so that what a job starts ends with it
    process = subprocess.Popen(
        [*COMMAND, *overrides],
        env=environment(device),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        process_group=0,
    )
    return Job(words, device, process, said)


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
