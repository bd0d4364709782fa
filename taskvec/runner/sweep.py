"""Running one job or a sweep of them: validated as a whole first, summed up as a whole at the end."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence

import hydra as hydra_package
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from taskvec.errors import UserError, describe
from taskvec.graph.run import RunConfig
from taskvec.runner import compose, progress, quoting, scale, signals, sweeps
from taskvec.runner.compose import Composed, grouped
from taskvec.runner.configs import conf_dir
from taskvec.runner.execute import execute
from taskvec.runner.expand import expand, unions
from taskvec.runner.folder import RunFolder, run_id
from taskvec.runner.launch import plugins
from taskvec.runner.launch.devices import chosen
from taskvec.runner.launch.processes import OF_ONE_RUN, SweepConfig, run_processes
from taskvec.runner.launch.ray import run_on_ray
from taskvec.runner.neighbours import notice
from taskvec.runner.ranking import Job, summary
from taskvec.text import printable_lines

log = logging.getLogger(__name__)
Typed = tuple[RunConfig, Sequence[str]]  # a job as a config, and as overrides


def one(overrides: Sequence[str]) -> int:
    """Run one job, print its table, and return the exit status.

    Raises:
        UserError: for input that cannot be worked with.
    """
    in_sweep = signals.IN_SWEEP in os.environ
    refuse_hydra(overrides)
    config = single(overrides, in_sweep=in_sweep)
    notice(config.root)
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
    if plugins.plugged(overrides):
        plugins.check(overrides)
        scale.refuse(overrides)
    else:
        refuse_hydra(overrides)
    settings = sweep_settings(overrides)
    parts = unions(overrides)
    jobs = list(distinct([job for words in parts for job in expand(words)]).values())
    named = progress.titles([words for _, words in jobs])
    log.info("%d jobs", len(jobs))
    sweeps.record([RunFolder.of(config) for config, _ in jobs], settings.jobs)
    for config, _ in jobs[:1]:
        notice(config.root)
    if plugins.plugged(overrides):
        for words in parts:
            if hydra(["--multirun", *map(grouped, words)]):
                log.error("the launcher failed; `taskvec status` says how the runs stand")
                return 1
    else:
        _run(jobs, named, settings)
    return told([Job.of(*job, title) for title, job in zip(named, jobs, strict=True)])


def sweep_settings(overrides: Sequence[str]) -> SweepConfig:
    """Return how a sweep's jobs are to be run, on devices that are there.

    Raises:
        UserError: for a wrong value, or a device that is not there.
    """
    own = [word for word in overrides if word.startswith("sweep.")]
    found = compose.sweep_config(compose.compose(own))
    chosen(found.devices)
    return found


def _run(jobs: Sequence[Typed], named: Sequence[str], settings: SweepConfig) -> None:
    """Run jobs one after the other in this process, side by side in others, or on a cluster."""
    commands = [words for _, words in jobs]
    if settings.launcher == "ray":
        run_on_ray(commands, named, settings)
    elif settings != SweepConfig():
        run_processes(commands, named, settings)
    else:
        for title, (config, words) in zip(named, jobs, strict=True):
            with progress.job(title):
                execute(config, tuple(words), refuse=False)


def refuse_hydra(overrides: Sequence[str]) -> None:
    """Refuse settings of Hydra's own, which nothing on this machine would follow.

    Raises:
        UserError: naming the first.
    """
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        if key.startswith(("hydra.", "hydra/")):
            raise UserError(
                f"{key} (command line): runs on this machine do not follow it; outputs=FOLDER moves what they write, "
                "hydra/launcher=NAME with -m gives the jobs to a cluster"
            )


def at_home(word: str) -> str:
    """Return ``outputs=~/...`` with the home folder in place of the tilde, which Hydra's launchers would not see."""
    text = quoting.literal(word) if word.startswith("outputs=") else None
    if text is None or not text.startswith("~"):
        return word
    return f"outputs={quoting.quote(os.path.expanduser(text))}"


def distinct(jobs: Sequence[Sequence[str]]) -> dict[str, Typed]:
    """Return each different job once, by the name of its run: typed, and as overrides."""
    found = {}
    for words in jobs:
        config = compose.resolve(compose.compose(words))
        found.setdefault(run_id(config), (config, words))
    return found


def told(jobs: Sequence[Job]) -> int:
    """Print how a sweep ended and which of its jobs is best on validation data; return 1 if any job is not done."""
    print("\n" + "\n".join(summary(jobs)))
    left = sum(job.state != "done" for job in jobs)
    if left:
        print(f"{left} failed; `taskvec retry` runs them again", file=sys.stderr)
    return 1 if left else 0


def hydra(arguments: Sequence[str]) -> int:
    """Hand the command line to Hydra itself: other launchers and sweepers, ``--cfg``, completion queries."""
    decorated = hydra_package.main(
        version_base="1.3", config_path=str(conf_dir()), config_name="config"
    )(job)
    with _argv(arguments), _held_back("--multirun" not in arguments):
        try:
            decorated()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def job(node: DictConfig) -> float:
    """Run one job of a sweep and return its validation number, nan if there is none; other jobs go on."""
    overrides = tuple(HydraConfig.get().overrides.task)
    choices = dict(HydraConfig.get().runtime.choices)
    plain = OmegaConf.create(OmegaConf.to_container(node, resolve=False))
    # in another process nobody has yet
    progress.to_standard_error()
    compose.register_all()
    title = f"{HydraConfig.get().job.num + 1}: {' '.join(overrides)}"
    try:
        config = compose.resolve(Composed(plain, choices, overrides))
        with progress.job(title):
            outcome = execute(config, overrides, refuse=False)
    except Exception as error:  # Hydra would print a traceback of its own
        signals.require_none(error)
        log.error("%s: %s", " ".join(overrides), describe(error))
        return float("nan")
    ranks = outcome.result is not None and outcome.result.criterion.ranks
    return outcome.result.criterion.value if ranks else float("nan")


@contextlib.contextmanager
def _held_back(held: bool) -> Iterator[None]:
    """Print what a block prints at its end: in Hydra's hands a closed pipe would be a traceback."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text) if held else contextlib.nullcontext():
        yield
    sys.stdout.write(text.getvalue())


@contextlib.contextmanager
def _argv(arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["taskvec", *arguments]
    try:
        yield
    finally:
        sys.argv = before
