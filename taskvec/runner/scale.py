"""``scale=NAME``: a published table's jobs on smaller models and suites, by the rules of ``conf/scale/NAME.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

from taskvec.config import Config
from taskvec.errors import UserError
from taskvec.registry import did_you_mean
from taskvec.runner.configs import search_dirs
from taskvec.runner.yaml_files import read_yaml

WORD = "scale="
Job: TypeAlias = list[str]
Settings: TypeAlias = Mapping[str, Any]


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
    name, others = None, []
    for word in overrides:
        if word.startswith(WORD):
            name = word.removeprefix(WORD)
        else:
            others.append(word)
    return name, others


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
    known = {}
    for folder in reversed(search_dirs()):  # the user's own last, so that it is the one that counts
        for path in (folder / "scale").glob("*.yaml"):
            known[path.stem] = path
    if name not in known:
        hint = did_you_mean(name, list(known))
        raise UserError(f"scale={name}: no such scale{hint}")
    rules = read_yaml(known[name])
    return Scale.model_validate(rules)


def scaled(jobs: Sequence[Job], name: str | None, published: Settings) -> list[Job]:
    """Return the overrides of each job at a scale; what the table itself says of it (``mini``) comes last.

    Raises:
        UserError: if the experiment is no published table.
    """
    if name is None:
        return list(jobs)
    if not published:
        remedy = "`taskvec papers` lists them"
        raise UserError(f"scale={name}: only an experiment of papers/ has one; {remedy}")
    rules = load(name)
    own = published.get(name) or {}
    return [_small(job, rules, own) for job in jobs]


def _small(job: Job, rules: Scale, own: Settings) -> Job:
    """Return one job's overrides."""
    changed: dict[str, Any] = {}
    for word in job:
        key, _, value = word.partition("=")
        options = rules.choices.get(key, {})
        changed[key] = options.get(value, value)
    for key in rules.without:
        changed.pop(key, None)
    changed |= rules.always
    for key, value in rules.instead.items():
        if key in changed:
            changed[key] = value
    for key, value in own.items():
        changed.pop(key, None)
        if value is not None:
            changed[key] = value
    return [f"{key}={value}" for key, value in changed.items()]
