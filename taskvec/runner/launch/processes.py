"""The jobs of a sweep on this machine: N at once, in processes of their own, each pinned to a device."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import Field

from taskvec.config import Config

log = logging.getLogger(__name__)
IN_SWEEP = "TASKVEC_SWEEP"


class SweepConfig(Config):
    """``jobs`` run at once; with ``devices`` (CUDA ids) each sees exactly one, the next that is free."""

    jobs: int = Field(1, ge=1)
    devices: tuple[int | str, ...] = ()


def run_processes(jobs: Sequence[Sequence[str]], config: SweepConfig) -> None:
    """Run every job in a process of its own; one that dies takes no other with it.

    What a job prints is in its run folder's log; outcomes are in the folders' status.
    """
    slots: queue.Queue[str | None] = queue.Queue()
    for slot in range(config.jobs):
        slots.put(str(config.devices[slot % len(config.devices)]) if config.devices else None)

    def run(overrides: Sequence[str]) -> None:
        device = slots.get()
        environment = dict(os.environ) | {IN_SWEEP: "1"}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        words = " ".join(overrides)
        log.info("starting %s%s", words, f" on device {device}" if device is not None else "")
        start = time.perf_counter()
        try:
            command = [sys.executable, "-m", "taskvec", "run", *overrides]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        finally:
            slots.put(device)
        last = (done.stderr.splitlines() or ["no output"])[-1] if done.returncode else "done"
        log.info("%s: %s after %.0f s", words, last, time.perf_counter() - start)

    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(run, jobs))
