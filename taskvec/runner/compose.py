"""From command-line overrides to a validated, typed run: Hydra composes, pydantic checks, nothing heavy is imported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from taskvec import registry
from taskvec.config import Component
from taskvec.data.cards import load_tasks
from taskvec.errors import UserError, as_bad_input
from taskvec.graph.run import Plain, RunConfig
from taskvec.runner import explain, replaced
from taskvec.runner.configs import conf_dir, options, presets, register_all, search_dirs, user_files
from taskvec.runner.replaced import GROUPS
from taskvec.runner.yaml_files import read_yaml

if TYPE_CHECKING:
    from taskvec.runner.launch.processes import SweepConfig

PRIMARY = "config"  # the file that a run's config starts with
NOT_OF_A_RUN = ("sweep", "parts", "published")

__all__ = ["Composed", "compose", "from_data", "register_all", "resolve", "sweep_config"]


@dataclass(frozen=True)
class Composed:
    """A config as Hydra composed it, with the option chosen in each group."""

    node: DictConfig
    choices: Mapping[str, Any]
    overrides: tuple[str, ...]


@contextmanager
def hydra_context() -> Iterator[None]:
    """Point Hydra at the config folders for the time of a composition."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def compose(overrides: Sequence[str], primary: str = PRIMARY) -> Composed:
    """Compose a config, by default that of one run.

    Raises:
        UserError: for an unknown key or option or an override that cannot be parsed, with key, place and nearest match.
    """
    for word in overrides:
        if word.startswith("~"):
            raise UserError(explain.taken_away(word))
    for file in user_files(overrides):
        read_yaml(file)  # Hydra itself would follow it to any depth
    by_hydra = partial(_by_hydra, primary=primary)
    node = by_hydra(overrides)
    replaced.leave_out(node, overrides, by_hydra)
    choices = dict(node.hydra.runtime.choices)
    del node["hydra"]
    return Composed(node, choices, tuple(overrides))


def _by_hydra(overrides: Sequence[str], primary: str) -> DictConfig:
    """Return what Hydra composes, its own settings below ``hydra``; keys may be added and removed.

    Raises:
        UserError: as :func:`compose`.
    """
    with hydra_context():
        try:
            words = [*map(grouped, overrides)]
            node = hydra_compose(primary, overrides=words, return_hydra_config=True)
        except Exception as error:
            keys = partial(known_keys, primary=primary)
            raise UserError(
                explain.composition(error, overrides, keys, options, presets)
            ) from error
    OmegaConf.set_struct(node, False)
    return node


def grouped(override: str) -> str:
    """Return an override as Hydra takes it: ``source=NAME`` chooses among the backbones' files."""
    return f"backbone@{override}" if override.startswith("source=") else override


def known_keys(parent: str, overrides: Sequence[str], primary: str = PRIMARY) -> list[str]:
    """Return the keys that exist below ``parent``, given the overrides that select groups.

    At the top those inside groups are among them, with dots.
    """
    chosen = (*GROUPS, "method", "experiment")
    groups = [grouped(word) for word in overrides if word.split("=", 1)[0].lstrip("+~") in chosen]
    own = parent.startswith("hydra")
    with hydra_context():
        node = hydra_compose(primary, overrides=groups, return_hydra_config=own)
    if parent:
        return _own_keys(OmegaConf.select(node, parent))
    more = ["method", "experiment", "source"] if primary == PRIMARY else []
    keys = [*_own_keys(node), *more]
    for group in node:
        if not OmegaConf.is_missing(node, group):
            keys += [f"{group}.{key}" for key in _own_keys(node[group])]
    return keys


def _own_keys(node: Any) -> list[str]:
    if not isinstance(node, DictConfig):
        return []
    return [key for key in node if key not in ("kind", "_target_")]


def resolve(composed: Composed) -> RunConfig:
    """Turn a composed config into a typed run.

    Raises:
        UserError: for a wrong type, a value out of range, a missing value or an unknown key, with the file that set it.
    """
    data = plain_of(composed)
    for key in NOT_OF_A_RUN:
        del data[key]
    data["choices"] = chosen(composed)
    data["method"] = composed.choices.get("method") or "custom"
    data["experiment"] = composed.choices.get("experiment")
    try:
        return from_data(data)
    except explain.InvalidError as error:
        raise UserError(error.explain(composed.overrides, sources(composed))) from error
    except UserError as error:
        key, _, message = str(error).partition(": ")
        if key not in ("suite.tasks", *(f"{group}.kind" for group in GROUPS)):
            raise
        where = explain.place(key, composed.overrides, sources(composed))
        raise UserError(f"{key} ({where}): {message}") from error


def plain_of(composed: Composed) -> dict[str, Any]:
    """Return a composed config as plain data, references resolved.

    Raises:
        UserError: for a reference that leads nowhere, an unknown key, a missing value or a number that is not finite.
    """
    try:
        data: dict[str, Any] = OmegaConf.to_container(
            composed.node, resolve=True, throw_on_missing=False
        )
    except Exception as error:
        raise UserError(" ".join(str(error).split())) from error
    for path, known in unknown_keys(composed.node):
        where = explain.place(path, composed.overrides, sources(composed))
        hint = registry.did_you_mean(path.rpartition(".")[2], known)
        raise UserError(f"{path} ({where}): unknown key{hint}")
    for path in missing_values(data):
        raise UserError(f"{path}: no value given and it has no default; set it with {path}=...")
    for path in not_finite(data):
        raise UserError(f"{path}: must be a finite number")
    return data


def chosen(composed: Composed) -> dict[str, str | None]:
    """Return the option of each group; transforms, of which there may be several, have none.

    Raises:
        UserError: if another group is given several options, whose settings Hydra mixes.
    """
    found = {}
    for group, choice in composed.choices.items():
        if "/" not in group:
            found[group.removeprefix("backbone@")] = choice
    for group in GROUPS:
        # Hydra has no choice where there are several
        several = group in composed.node and group not in found
        if several and group != "transform":
            where = explain.place(group, composed.overrides, sources(composed))
            raise UserError(f"{group} ({where}): takes one option")
    return found


def sweep_config(composed: Composed) -> SweepConfig:
    """Return the settings of a sweep, which are no part of its runs.

    Raises:
        UserError: for a wrong type or value.
    """
    from taskvec.runner.launch.processes import SweepConfig

    try:
        return explain.checked(SweepConfig, OmegaConf.to_container(composed.node.sweep), "sweep")
    except explain.InvalidError as error:
        raise UserError(error.explain(composed.overrides, sources(composed))) from error


def from_data(data: dict[str, Any]) -> RunConfig:
    """Return the typed run of plain data, for example of a stored ``config.yaml``.

    Raises:
        UserError: if a component or a task is not known.
        InvalidError: if a value does not fit its field.
    """
    data = dict(data)
    # before the components: their seeds are the run's
    explain.checked(
        Plain, {key: value for key, value in data.items() if key in Plain.model_fields}, ""
    )
    for group in GROUPS:
        node = data.get(group)
        if group == "transform" and isinstance(node, dict | None):
            data[group] = {
                name: component(group, name, child) for name, child in (node or {}).items()
            }
        elif isinstance(node, dict):
            registered = "backbone" if group == "source" else group
            data[group] = component(registered, "", node)
    return explain.checked(RunConfig, data, "")


def component(group: str, name: str, node: Mapping[str, Any]) -> Component:
    """Return the typed component of one config node.

    Raises:
        UserError: if it is not a component, its kind is not known or its class not complete.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{group}.{name}: must be a component with its settings, got {node!r}")
    if "kind" not in node:
        names = ", ".join(registry.names(group))
        start = f"`defaults: [/schema/{group}/NAME@_here_, _self_]`"
        raise UserError(f"{group}.kind: missing; begin the file with {start}, NAME of {names}")
    entry = registry.lookup(group, str(node["kind"]))
    node = dict(node)
    if group == "suite" and not node.get("definitions"):
        with as_bad_input():
            node["definitions"] = load_tasks(node, entry.schema, search_dirs())
    path = f"{group}.{name}" if name else group
    try:
        return explain.checked(entry.schema, node, path)
    except TypeError as error:  # a user's class that lacks a method
        raise UserError(f"{group}={entry.name} ({entry.source.name}): {error}") from error


def unknown_keys(node: DictConfig) -> Iterator[tuple[str, list[str]]]:
    """Yield the dotted path of every key that its component does not have, with those that it has."""
    for group in GROUPS:
        known = replaced.known(node, group) - {"kind"}
        # a transform's own keys are checked with it; without a kind there is nothing to compare with
        if group != "transform" and known:
            for key in replaced.unknown(node, group):
                yield f"{group}.{key}", sorted(known)


def missing_values(data: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every value that is still OmegaConf's missing mark."""
    if isinstance(data, dict):
        for key, value in data.items():
            below = f"{path}.{key}" if path else key
            yield from missing_values(value, below)
    elif data == "???":
        yield path


def not_finite(data: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every number that is infinite or not a number."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            below = f"{path}.{key}" if path else str(key)
            yield from not_finite(value, below)
    elif isinstance(data, float) and not math.isfinite(data):
        yield path


def sources(composed: Composed, primary: str = PRIMARY) -> list[tuple[str, Path]]:
    """Return the YAML files that took part, each with the config path it fills, the last to apply first."""
    found = []
    for group, choice in reversed(composed.choices.items()):
        for option in choice if isinstance(choice, (list, tuple)) else [choice]:
            for folder in search_dirs():
                place, _, package = group.partition("@")
                path = folder / place / f"{option}.yaml"
                if option and path.is_file():
                    whole = group in ("method", "experiment")
                    found.append(("" if whole else package or place, path))
                    break
    return [*sorted(found, key=lambda item: item[0] != ""), ("", conf_dir() / f"{primary}.yaml")]
