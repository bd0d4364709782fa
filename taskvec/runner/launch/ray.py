"""The jobs of a sweep on a Ray cluster: each a task of its own that starts the command on whatever node has room.

Ray's launcher for Hydra asks for a cloudpickle of 2022, which joblib 1.6 and others cannot live with; a task that
starts a process needs neither.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.runner.launch.processes import COMMAND, OF_ONE_RUN
from taskvec.runner.signals import IN_SWEEP

if TYPE_CHECKING:
    from taskvec.runner.launch.processes import SweepConfig

log = logging.getLogger(__name__)
PASSED_ON = ("TASKVEC_", "WANDB_", "HF_", "PYTHONPATH")  # beginnings of variables that a job needs
RETRIES = 3  # of a job whose node or worker was lost; it goes on from its last checkpoint


def run_on_ray(jobs: Sequence[Sequence[str]], titles: Sequence[str], config: SweepConfig) -> None:
    """Run every job on the cluster; outcomes are in the folders' status, which all nodes must see under one path.

    Raises:
        UserError: if Ray is not installed, or there is no cluster at the address.
    """
    ray = connected(config.address)
    resources = {"num_cpus": config.cpus, "num_gpus": config.gpus}
    task = ray.remote(max_retries=RETRIES, **resources)(on_a_node)
    here, environment = os.getcwd(), passed_on()
    start = time.perf_counter()
    waiting: dict[Any, str] = {}
    try:
        for words, title in zip(jobs, titles, strict=True):
            job = task.remote(list(words), here, environment)
            waiting[job] = title
        while waiting:
            (ended,), _ = ray.wait(list(waiting), num_returns=1)
            title = waiting.pop(ended)
            seconds = time.perf_counter() - start
            log.info("[%s] %s, %.0f s after the start", title, told(ray, ended), seconds)
    finally:
        for left in waiting:
            ray.cancel(left, force=True)
        ray.shutdown()


def connected(address: str | None) -> Any:
    """Return Ray, connected to a cluster: that of an address, else the one of this machine, else one of its own.

    Raises:
        UserError: if it is not installed, or there is none at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("sweep.launcher=ray: not installed: pip install 'taskvec[ray]'") from error
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"sweep.address: no Ray cluster at {address!r}: {reason}") from error
    return ray


def passed_on() -> dict[str, str]:
    """Return the variables of this process that its jobs need on other nodes."""
    kept = {}
    for name, value in os.environ.items():
        if name.startswith(PASSED_ON) and name not in (*OF_ONE_RUN, IN_SWEEP):
            kept[name] = value
    return kept


def on_a_node(words: list[str], folder: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run one job in a process of its own and return its exit status and its last line.

    Ray has set the devices and the threads of this worker, which the process inherits; it ends with the worker.
    """
    own = {**os.environ, **environment, IN_SWEEP: str(os.getpid())}
    place = folder if Path(folder).is_dir() else None
    command = [*COMMAND, *words]
    done = subprocess.run(command, env=own, cwd=place, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    last = lines[-1] if lines else ""
    return done.returncode, last


def told(ray: Any, ended: Any) -> str:
    """Return how a job ended; a node that was lost too often is told as Ray tells it."""
    try:
        status, last = ray.get(ended)
    except ray.exceptions.RayError as error:
        first = str(error).partition("\n")[0]
        return f"lost: {first}"
    return "done" if status == 0 else f"failed with exit status {status}: {last}"
