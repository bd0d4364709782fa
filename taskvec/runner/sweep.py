"""Running one job or a sweep of them: validated as a whole first, summed up as a whole at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

import hydra as hydra_package
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from taskvec.errors import UserError
from taskvec.runner import compose, explain
from taskvec.runner.compose import Composed, RunConfig
from taskvec.runner.execute import execute
from taskvec.runner.folder import RunFolder
from taskvec.runner.launch import IN_SWEEP, SweepConfig, run_processes

log = logging.getLogger(__name__)


def one(overrides: Sequence[str]) -> int:
    """Run one job, print its table, and return the exit status.

    Raises:
        UserError: for input that cannot be worked with.
    """
    in_sweep = IN_SWEEP in os.environ
    config = compose.resolve(compose.compose(overrides))
    outcome = execute(config, tuple(overrides), refuse=not in_sweep)
    if outcome.state == "failed":
        return 1  # the reason is logged and recorded
    if not in_sweep:
        from taskvec.report.table import run_table

        print(f"{run_table(outcome.result)}\n\n{RunFolder.of(config).path}/result.json")
    return 0


def many(overrides: Sequence[str]) -> int:
    """Run a sweep: every job is validated first, every job is run, and one summary lists all outcomes.

    Jobs run on this machine (``sweep.jobs``, ``sweep.devices``) unless ``hydra/launcher`` or ``hydra/sweeper`` says
    otherwise; then Hydra's plugin runs them.

    Raises:
        UserError: if any job's config is wrong; then none is started.
    """
    jobs = expand(overrides)
    configs = [compose.resolve(compose.compose(job)) for job in jobs]
    local = compose.sweep_config(compose.compose([o for o in overrides if o.startswith("sweep.")]))
    log.info("%d jobs", len(jobs))
    if any(o.startswith(("hydra/launcher=", "hydra/sweeper=")) for o in overrides):
        status = hydra(["--multirun", *overrides])
        return summary(configs) or status
    if local == SweepConfig():
        for config, job_overrides in zip(configs, jobs, strict=True):
            execute(config, tuple(job_overrides), refuse=False)
    else:
        run_processes(jobs, local)
    return summary(configs)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job, cut by Hydra's own sweeper from the command line and the experiment file.

    Raises:
        UserError: for an override that cannot be parsed.
    """
    experiment = [o for o in overrides if o.startswith("experiment=") and "," not in o]
    with compose.hydra_context():
        loader = GlobalHydra.instance().config_loader()
        try:
            words = [*experiment, *compose.search_path_overrides()]
            params = hydra_package.compose("config", words, return_hydra_config=True).hydra.sweeper.get("params") or {}
            given = {override.split("=", 1)[0] for override in overrides}
            words = [f"{key}={value}" for key, value in params.items() if key not in given] + list(overrides)
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
            batches = BasicSweeper.split_arguments(parsed, None)
        except Exception as error:
            raise UserError(
                explain.composition(error, overrides, compose.known_keys, compose.options, compose.presets)
            ) from error
    return [[word for word in job if not word.startswith(("hydra", "sweep."))] for job in batches[0]]


def summary(jobs: Sequence[RunConfig]) -> int:
    """Print one line per job with its state, and return 1 if any is not done."""
    failed = 0
    print(f"\n{len(jobs)} jobs:")
    for folder in {f.name: f for f in map(RunFolder.of, jobs)}.values():
        status = folder.status()
        state, reason = status.get("state", "missing"), status.get("reason")
        failed += state != "done"
        result = folder.result()
        number = f"  primary {result.primary:.4f}" if state == "done" and result else ""
        print(f"  {state:<8}{folder.name}{number}{f'  {reason}' if reason else ''}")
    if failed:
        print(f"{failed} failed; `taskvec retry` runs them again", file=sys.stderr)
    return 1 if failed else 0


def hydra(arguments: Sequence[str]) -> int:
    """Hand the command line to Hydra itself: other launchers and sweepers, ``--cfg``, completion queries."""
    decorated = hydra_package.main(version_base="1.3", config_path=str(compose.conf_dir()), config_name="config")(job)
    with _argv([*arguments, *compose.search_path_overrides()]):
        try:
            decorated()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def job(node: DictConfig) -> float:
    """Run one job of a sweep and return its primary metric, nan if it failed; other jobs go on."""
    overrides = tuple(HydraConfig.get().overrides.task)
    choices = dict(HydraConfig.get().runtime.choices)
    plain = OmegaConf.create(OmegaConf.to_container(node, resolve=False))
    compose.register_all()  # in another process nobody has yet
    outcome = execute(compose.resolve(Composed(plain, choices, overrides)), overrides, refuse=False)
    return outcome.result.primary if outcome.result else float("nan")


@contextlib.contextmanager
def _argv(arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["taskvec", *arguments]
    try:
        yield
    finally:
        sys.argv = before
