"""From a sweep's command line to the overrides of each job, cut by Hydra's own sweeper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import hydra as hydra_package
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from taskvec.errors import UserError
from taskvec.runner import compose, explain, quoting, scale
from taskvec.runner.configs import options, presets


def unions(overrides: Sequence[str]) -> list[list[str]]:
    """Return the sweeps that a command line asks for: one, or one for each part of each experiment it names.

    Keys of the command line win over those of a part.

    Raises:
        UserError: if the experiment cannot be composed, or its parts are no lists of overrides.
    """
    named = [word for word in overrides if word.startswith("experiment=")]
    rest = [word for word in overrides if not word.startswith("experiment=")]
    if not named:
        return [list(overrides)]
    sweeps = []
    for experiment in experiments(named[-1]):
        words = [f"experiment={experiment}", *rest]
        composed = compose.compose([words[0]])
        parts = OmegaConf.to_container(composed.node.parts)
        if not parts:
            sweeps.append(words)
        for part in parts:
            # without the parts, so that each job's command runs it alone
            sweeps.append([words[0], "parts=[]", *_part(part, rest, experiment), *rest])
    return sweeps


def experiments(word: str) -> list[str]:
    """Return the experiments that ``experiment=...`` names: one, several with commas between, or ``glob(...)``.

    Raises:
        UserError: if it cannot be parsed.
    """
    with compose.hydra_context():
        loader = GlobalHydra.instance().config_loader()
        try:
            (parsed,) = OverridesParser.create(config_loader=loader).parse_overrides([word])
        except HydraException as error:
            raise UserError(quoting.unparsed(word, str(error))) from error
        if not parsed.is_sweep_override():
            return [word.partition("=")[2]]
        return [str(name) for name in parsed.sweep_string_iterator()]


def _part(part: object, given: Sequence[str], experiment: str) -> list[str]:
    """Return a part's overrides without those that the command line sets itself.

    Raises:
        UserError: if it is no list of overrides.
    """
    if isinstance(part, Mapping):
        words = [f"{key}={_text(value)}" for key, value in part.items()]
    elif isinstance(part, list) and all(isinstance(word, str) and "=" in word for word in part):
        words = list(part)
    else:
        raise UserError(
            f"experiment={experiment}: parts: each must be a list of key=value overrides, got {part!r}"
        )
    keys = {word.partition("=")[0] for word in given}
    return [word for word in words if word.partition("=")[0] not in keys]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep, from the command line and the experiment file, as ``scale=`` says.

    Raises:
        UserError: for an override that cannot be parsed, or an experiment that has no such scale.
    """
    chosen, overrides = scale.taken(overrides)
    experiment = [word for word in overrides if word.startswith("experiment=")]
    with compose.hydra_context():
        loader = GlobalHydra.instance().config_loader()
        try:
            composed = hydra_package.compose("config", experiment, return_hydra_config=True)
            params = composed.hydra.sweeper.get("params") or {}
            given = {override.split("=", 1)[0] for override in overrides}
            words = [f"{key}={value}" for key, value in params.items() if key not in given] + list(
                overrides
            )
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
            batches = BasicSweeper.split_arguments(parsed, None)
        except Exception as error:
            raise UserError(
                explain.composition(error, overrides, compose.known_keys, options, presets)
            ) from error
    jobs = []
    for job in batches[0]:
        jobs.append([word for word in job if not word.startswith(("hydra", "sweep."))])
    return scale.scaled(jobs, chosen, OmegaConf.to_container(composed.published))
