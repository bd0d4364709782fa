"""`taskvec status` over many finished runs: ``python tests/bench/status.py [RUNS]``.

Each of RUNS (2,000 by default) finished runs on mini8 has a seed and a learning rate of its own, and is planned by
`status` as if its data and weights could have changed. Seconds are CPU time of processes of their own, so that other
work on the machine matters little; wall time is beside them. Exits with 1 above 5 s.
"""

from __future__ import annotations

import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import world
from conftest import command
from report_world import template

BAR = 5.0


def write(outputs: Path, runs: int) -> None:
    """Write finished runs that stand: their configs, and the fingerprints that planning finds."""
    from taskvec.graph.plan import Plan
    from taskvec.runner import compose
    from taskvec.runner.folder import RunFolder, run_id

    include = world.build(outputs / "world")
    done = command(include, *world.FAST, f"outputs={outputs / 'real'}", timeout=600)
    assert done.returncode == 0, done.stderr
    pattern = template(outputs / "real")
    compose.register_all()
    first = compose.resolve(compose.compose(["suite=mini8", f"outputs={outputs}"]))
    for number in range(runs):
        rate = 1e-4 * (1 + number)
        tuned = first.finetune.model_copy(update={"lr": rate, "seed": number})
        config = first.model_copy(update={"seed": number, "finetune": tuned})
        plan = Plan(config)
        told = {"run_id": run_id(config), "fingerprint": plan.fingerprint}
        result = pattern.model_copy(update={**told, "config": config.recorded()})
        folder = RunFolder.of(config)
        with folder.working():
            folder.start(config, (), plan)
            folder.finish(result, mirrored_to="none")


def used() -> float:
    """Return the CPU seconds of all processes that ended so far."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def status(outputs: Path) -> tuple[float, float, str]:
    """Return CPU and wall seconds of the command, and its last line."""
    start, before = time.perf_counter(), used()
    done = command(None, "status", "--outputs", str(outputs), timeout=900)
    assert done.returncode == 0, done.stderr
    return used() - before, time.perf_counter() - start, done.stdout.splitlines()[-1]


def main(runs: int) -> int:
    """Print the figures and return whether a bar is missed."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), runs)
        cpu, wall, said = status(Path(place))
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(f"status: {said}; {cpu:.2f} s CPU, {wall:.2f} s wall (bar {BAR:g} s for 2,000)")
    return int(cpu > BAR)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
