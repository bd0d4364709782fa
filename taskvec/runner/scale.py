"""``scale=NAME``: a published table's jobs on smaller models and suites, by the rules of ``conf/scale/NAME.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from taskvec.config import Config
from taskvec.errors import UserError
from taskvec.registry import did_you_mean
from taskvec.runner.configs import search_dirs
from taskvec.runner.yaml_files import read_yaml

WORD = "scale="
Job = list[str]


class Scale(Config):
    """How a job's overrides change.

    ``choices`` replaces the option of a group, ``always`` sets keys, ``instead`` does so where a job has another value,
    and keys of ``without`` are dropped.
    """

    choices: dict[str, dict[str, str]] = {}
    always: dict[str, Any] = {}
    instead: dict[str, Any] = {}
    without: tuple[str, ...] = ()


def taken(overrides: Sequence[str]) -> tuple[str | None, Job]:
    """Return the name of the scale among some overrides, None if there is none, and the others."""
    named = [word.removeprefix(WORD) for word in overrides if word.startswith(WORD)]
    others = [word for word in overrides if not word.startswith(WORD)]
    return (named[-1] if named else None), others


def refuse(overrides: Sequence[str]) -> None:
    """Check that no scale is asked for.

    Raises:
        UserError: if one is: Hydra's own launchers and sweepers know none.
    """
    name, _ = taken(overrides)
    if name is not None:
        raise UserError(
            f"scale={name}: Hydra's launchers and sweepers do not know it; use sweep.jobs"
        )


@cache
def load(name: str) -> Scale:
    """Return the rules of a scale.

    Raises:
        UserError: if there is none of that name.
    """
    for folder in search_dirs():
        path = folder / "scale" / f"{name}.yaml"
        if path.is_file():
            return Scale.model_validate(read_yaml(path))
    known = [path.stem for folder in search_dirs() for path in (folder / "scale").glob("*.yaml")]
    raise UserError(f"scale={name}: no such scale{did_you_mean(name, known)}")


def scaled(jobs: Sequence[Job], name: str | None, published: Mapping[str, Any]) -> list[Job]:
    """Return the overrides of each job at a scale; what the table itself says of it (``mini``) comes last.

    Raises:
        UserError: if the experiment is no published table.
    """
    if name is None:
        return list(jobs)
    if not published:
        raise UserError(
            f"scale={name}: only an experiment of papers/ has one; `taskvec papers` lists them"
        )
    rules = load(name)
    own = published.get(name) or {}
    return [_small(job, rules, own) for job in jobs]


def _small(job: Job, rules: Scale, own: Mapping[str, Any]) -> Job:
    """Return one job's overrides."""
    changed = {}
    for word in job:
        key, _, value = word.partition("=")
        changed[key] = rules.choices.get(key, {}).get(value, value)
    for key in {*rules.without, *(key for key, value in own.items() if value is None)}:
        changed.pop(key, None)
    instead = {key: value for key, value in rules.instead.items() if key in changed}
    given = {key: value for key, value in own.items() if value is not None}
    changed |= rules.always | instead | given
    return [f"{key}={value}" for key, value in changed.items()]
