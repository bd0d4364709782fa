"""Launchers and sweepers of Hydra that a command names: whether they are here, checked before a job is composed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import PurePath

from hydra.core.config_store import ConfigStore

from taskvec.errors import UserError
from taskvec.registry import did_you_mean

GROUPS = ("hydra/launcher", "hydra/sweeper")
# What brings each of them
EXTRAS = {
    "submitit_slurm": "'taskvec[slurm]'",
    "submitit_local": "'taskvec[slurm]'",
    "joblib": "hydra-joblib-launcher",
    "rq": "hydra-rq-launcher",
    "optuna": "hydra-optuna-sweeper",
    "ax": "hydra-ax-sweeper",
    "nevergrad": "hydra-nevergrad-sweeper",
}
SWEEPERS = ("optuna", "ax", "nevergrad")
SLURM_PROGRAMS = ("sbatch", "srun")


def plugged(overrides: Sequence[str]) -> bool:
    """Return whether a command gives its jobs to a launcher or a sweeper of Hydra's."""
    return any(_group(word) in GROUPS for word in overrides)


def check(overrides: Sequence[str]) -> None:
    """Check that the launcher and the sweeper that a command names are installed, and that SLURM is here if needed.

    Raises:
        UserError: naming what to install or to type instead.
    """
    for word in overrides:
        group, name = _group(word), word.partition("=")[2]
        if group in GROUPS:
            _installed(group, name)
            if name == "submitit_slurm":
                _slurm_is_here(word)


def _group(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _installed(group: str, name: str) -> None:
    if name == "ray":
        raise UserError(
            f"{group}=ray: Ray is driven by sweep.launcher=ray; see `taskvec docs cluster`"
        )
    store = ConfigStore.instance()
    found = {PurePath(file).stem for file in store.list(group)}
    if name in found:
        return
    if name in EXTRAS:
        raise UserError(f"{group}={name}: not installed: pip install {EXTRAS[name]}")
    known = {extra for extra in EXTRAS if (extra in SWEEPERS) == group.endswith("sweeper")}
    raise UserError(f"{group}: unknown option {name!r}{did_you_mean(name, sorted(found | known))}")


def _slurm_is_here(word: str) -> None:
    missing = [program for program in SLURM_PROGRAMS if shutil.which(program) is None]
    if missing:
        raise UserError(
            f"{word}: SLURM's {missing[0]} is not on this machine: start it on a login node, "
            "or try hydra/launcher=submitit_local"
        )
