"""Running one job or a sweep of them: validated as a whole first, summed up as a whole at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

import hydra as hydra_package
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from taskvec.errors import UserError, describe
from taskvec.graph.run import RunConfig
from taskvec.runner import compose, papers, quoting, scale, sweeps
from taskvec.runner.compose import Composed, grouped
from taskvec.runner.configs import conf_dir
from taskvec.runner.execute import execute
from taskvec.runner.expand import expand, unions
from taskvec.runner.folder import RunFolder, run_id
from taskvec.runner.launch.processes import OF_ONE_RUN, SweepConfig, run_processes
from taskvec.runner.signals import IN_SWEEP
from taskvec.text import printable, printable_lines

log = logging.getLogger(__name__)
PLUGINS = ("hydra/launcher=", "hydra/sweeper=")


def one(overrides: Sequence[str]) -> int:
    """Run one job, print its table, and return the exit status.

    Raises:
        UserError: for input that cannot be worked with.
    """
    in_sweep = IN_SWEEP in os.environ
    config = single(overrides, in_sweep=in_sweep)
    outcome = execute(config, tuple(overrides), refuse=not in_sweep)
    if outcome.state == "failed":
        return 1  # the reason is logged and recorded
    if not in_sweep:
        from taskvec.report.table import run_table

        text = f"{run_table(outcome.result)}\n\n{RunFolder.of(config).path}/result.json"
        print(printable_lines(text))
    return 0


def single(overrides: Sequence[str], *, in_sweep: bool = False) -> RunConfig:
    """Return the config of one run.

    Raises:
        UserError: for input that cannot be worked with, and an experiment that is several sweeps.
    """
    composed = compose.compose(overrides)
    if composed.node.parts and not in_sweep:
        raise UserError("the experiment is a union of sweeps; start it with -m")
    return compose.resolve(composed)


def many(overrides: Sequence[str]) -> int:
    """Run a sweep: every job is validated first, every job is run, and one summary lists all outcomes.

    Jobs run on this machine (``sweep.jobs``, ``sweep.devices``) unless ``hydra/launcher`` or ``hydra/sweeper`` says
    otherwise; then Hydra's plugin runs them. An experiment with ``parts`` is the union of their sweeps.

    Raises:
        UserError: if any job's config is wrong; then none is started.
    """
    for name in OF_ONE_RUN:
        os.environ.pop(name, None)
    overrides = [at_home(word) for word in overrides]
    parts = unions(overrides)
    jobs = distinct([job for words in parts for job in expand(words)])
    local = compose.sweep_config(
        compose.compose([word for word in overrides if word.startswith("sweep.")])
    )
    log.info("%d jobs", len(jobs))
    sweeps.record([RunFolder.of(config) for config, _ in jobs.values()], local.jobs)
    status = 0
    if any(word.startswith(PLUGINS) for word in overrides):
        scale.refuse(overrides)
        for words in parts:
            status = max(status, hydra(["--multirun", *map(grouped, words)]))
    elif local == SweepConfig():
        for config, words in jobs.values():
            execute(config, tuple(words), refuse=False)
    else:
        run_processes([words for _, words in jobs.values()], local)
    status = summary([config for config, _ in jobs.values()]) or status
    return max(status, papers.beside(overrides))


def at_home(word: str) -> str:
    """Return ``outputs=~/...`` with the home folder in place of the tilde, which Hydra's launchers would not see."""
    text = quoting.literal(word) if word.startswith("outputs=") else None
    if text is None or not text.startswith("~"):
        return word
    return f"outputs={quoting.quote(os.path.expanduser(text))}"


def distinct(jobs: Sequence[Sequence[str]]) -> dict[str, tuple[RunConfig, Sequence[str]]]:
    """Return each different job once, by the name of its run: typed, and as overrides."""
    found = {}
    for words in jobs:
        config = compose.resolve(compose.compose(words))
        found.setdefault(run_id(config), (config, words))
    return found


def summary(jobs: Sequence[RunConfig]) -> int:
    """Print one line per job with its state and validation number, and return 1 if any is not done."""
    print(f"\n{len(jobs)} jobs:")
    left = 0
    for folder in {f.name: f for f in map(RunFolder.of, jobs)}.values():
        status = folder.status()
        state = status.get("state", "missing")
        left += state != "done"
        result = folder.result() if state == "done" else None
        said = status.get("reason") or ""
        if result is not None:
            said = f"{result.criterion.name} {result.criterion.value:.4f}"
        print(printable(f"  {state:<12}{folder.name}  {said}".rstrip()))
    if left:
        print(f"{left} failed; `taskvec retry` runs them again", file=sys.stderr)
    return 1 if left else 0


def hydra(arguments: Sequence[str]) -> int:
    """Hand the command line to Hydra itself: other launchers and sweepers, ``--cfg``, completion queries."""
    decorated = hydra_package.main(
        version_base="1.3", config_path=str(conf_dir()), config_name="config"
    )(job)
    with _argv(arguments):
        try:
            decorated()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def job(node: DictConfig) -> float:
    """Run one job of a sweep and return its validation number, nan if it failed; other jobs go on."""
    overrides = tuple(HydraConfig.get().overrides.task)
    choices = dict(HydraConfig.get().runtime.choices)
    plain = OmegaConf.create(OmegaConf.to_container(node, resolve=False))
    compose.register_all()  # in another process nobody has yet
    try:
        outcome = execute(
            compose.resolve(Composed(plain, choices, overrides)), overrides, refuse=False
        )
    except Exception as error:  # Hydra would print a traceback of its own
        log.error("%s: %s", " ".join(overrides), describe(error))
        return float("nan")
    return outcome.result.criterion.value if outcome.result else float("nan")


@contextlib.contextmanager
def _argv(arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["taskvec", *arguments]
    try:
        yield
    finally:
        sys.argv = before
