"""From command-line overrides to a validated, typed run: Hydra composes, pydantic checks, nothing heavy is imported."""

from __future__ import annotations

import atexit
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, SerializeAsAny

from taskvec import registry
from taskvec.config import Component, Config
from taskvec.data.tasks import load_tasks
from taskvec.errors import UserError
from taskvec.runner import explain
from taskvec.runner.launch import SweepConfig

GROUPS = tuple(registry.PACKAGES)
INCLUDE = "TASKVEC_INCLUDE"


class RunConfig(Config):
    """One run: a choice per group, and what holds for all of them."""

    method: str
    experiment: str | None = None
    seed: int = Field(ge=0, lt=2**31)
    device: str = Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    precision: Literal["fp32", "tf32", "bf16"]
    offload: bool = False
    outputs: str = Field(min_length=1)
    backbone: SerializeAsAny[Component]
    suite: SerializeAsAny[Component]
    finetune: SerializeAsAny[Component]
    transform: dict[str, SerializeAsAny[Component]]
    merge: SerializeAsAny[Component]
    protocol: SerializeAsAny[Component]
    tracker: SerializeAsAny[Component]
    choices: dict[str, str | None] = Field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The folder of runs and of the artefact store."""
        return Path(os.path.realpath(os.path.expanduser(self.outputs)))

    def to_yaml(self) -> str:
        """Return the resolved config as YAML, the text of a run's ``config.yaml``."""
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json")))


@dataclass(frozen=True)
class Composed:
    """A config as Hydra composed it, with the option chosen in each group."""

    node: DictConfig
    choices: Mapping[str, Any]
    overrides: tuple[str, ...]


def conf_dir() -> Path:
    """Return the folder of the shipped configs: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def included() -> list[Path]:
    """Return the user's own folders and files, from ``--include`` and the environment."""
    return [Path(p).expanduser().resolve() for p in os.environ.get(INCLUDE, "").split(os.pathsep) if p]


def search_dirs() -> list[Path]:
    """Return the config folders, the user's first."""
    return [path for path in included() if path.is_dir()] + [conf_dir()]


def register_all() -> None:
    """Load built-in and user components and give each a config option that needs no YAML file.

    Raises:
        UserError: if an included path is missing or a file of it fails to import.
    """
    registry.load_builtin()
    for path in included():
        if not path.exists():
            raise UserError(f"--include {path}: no such file or folder")
        if path.is_file() and path.suffix != ".py":
            raise UserError(f"--include {path}: not a Python file (*.py)")
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            registry.load_file(file)
    store = ConfigStore.instance()
    for entry in registry.entries():
        node = {"kind": entry.name} | defaults_of(entry.schema)
        package = f"transform.{entry.name}" if entry.group == "transform" else None
        store.store(group=f"schema/{entry.group}", name=entry.name, node=node)
        if not any((folder / entry.group / f"{entry.name}.yaml").exists() for folder in search_dirs()):
            store.store(group=entry.group, name=entry.name, node=node, package=package or entry.group)


def defaults_of(schema: type[Config]) -> dict[str, Any]:
    """Return the default value of every field as plain data; a required field is OmegaConf's missing mark."""
    out = {}
    for name, info in schema.model_fields.items():
        if name == "kind":
            continue
        value = "???" if info.is_required() else info.get_default(call_default_factory=True)
        out[name] = value.model_dump(mode="json") if isinstance(value, Config) else value
        out[name] = list(value) if isinstance(value, tuple) else out[name]
    return out


@contextmanager
def hydra_context() -> Iterator[None]:
    """Point Hydra at the config folders for the time of a composition."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def search_path_overrides() -> list[str]:
    """Return the override that adds the user's folders to Hydra's search path."""
    folders = [f"'file://{_groups_of(path)}'" for path in search_dirs()[:-1]]
    return [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


@cache
def _groups_of(folder: Path) -> Path:
    """Return a user's folder as Hydra may see it: it would take one named like a plain key (outputs) for a group."""
    plain = {"outputs", "seed", "device", "precision", "offload", "sweep"}
    if not any((folder / key).is_dir() for key in plain):
        return folder
    view = Path(tempfile.mkdtemp(prefix="taskvec-"))
    atexit.register(shutil.rmtree, view, ignore_errors=True)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in plain:
            (view / path.name).symlink_to(path)
    return view


def compose(overrides: Sequence[str]) -> Composed:
    """Compose the config of one run.

    Raises:
        UserError: for an unknown key or option or an override that cannot be parsed, with key, place and nearest match.
    """
    with hydra_context():
        try:
            node = hydra_compose("config", overrides=[*overrides, *search_path_overrides()], return_hydra_config=True)
        except Exception as error:
            raise UserError(explain.composition(error, overrides, known_keys, options, presets)) from error
    choices = dict(node.hydra.runtime.choices)
    OmegaConf.set_struct(node, False)
    del node["hydra"]
    return Composed(node, choices, tuple(overrides))


def known_keys(parent: str, overrides: Sequence[str]) -> list[str]:
    """Return the keys that exist below ``parent``, given the overrides that select groups."""
    groups = [o for o in overrides if o.split("=", 1)[0].lstrip("+~") in (*GROUPS, "method", "experiment")]
    own = parent.startswith("hydra")
    with hydra_context():
        node = hydra_compose("config", overrides=[*groups, *search_path_overrides()], return_hydra_config=own)
    selected = OmegaConf.select(node, parent) if parent else node
    keys = [key for key in selected if key not in ("kind", "_target_")] if isinstance(selected, DictConfig) else []
    return keys + ["experiment"] if not parent else keys


def options(group: str) -> list[str]:
    """Return the options of a group: YAML files of the config folders and registered components."""
    names = {p.stem for folder in search_dirs() for p in (folder / group).glob("*.yaml")}
    nested = {
        str(p.relative_to(folder / group).with_suffix(""))
        for folder in search_dirs()
        for p in (folder / group).glob("*/**/*.yaml")
    }
    return sorted(names | nested | {entry.name for entry in registry.entries(group)})


def presets(overrides: Sequence[str]) -> list[Path]:
    """Return the files of the experiment and the method that the overrides choose."""
    chosen = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    places = ((folder, group) for group in ("experiment", "method") if group in chosen for folder in search_dirs())
    return [path for folder, group in places if (path := folder / group / f"{chosen[group]}.yaml").is_file()]


def resolve(composed: Composed) -> RunConfig:
    """Turn a composed config into a typed run.

    Raises:
        UserError: for a wrong type, a value out of range, a missing value or an unknown key, with the file that set it.
    """
    try:
        data: dict[str, Any] = OmegaConf.to_container(composed.node, resolve=True, throw_on_missing=False)
    except Exception as error:
        raise UserError(" ".join(str(error).split())) from error
    for path in missing_values(data):
        raise UserError(f"{path}: no value given and it has no default; set it with {path}=...")
    for path in not_finite(data):
        raise UserError(f"{path}: must be a finite number")
    del data["sweep"]
    data["choices"] = {k: v if isinstance(v, str) else None for k, v in composed.choices.items() if "/" not in k}
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
        raise UserError(f"{key} ({explain.place(key, composed.overrides, sources(composed))}): {message}") from error


def sweep_config(composed: Composed) -> SweepConfig:
    """Return the settings of a sweep, which are no part of its runs.

    Raises:
        UserError: for a wrong type or value.
    """
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
    for group in GROUPS:
        node = data.get(group)
        if group == "transform" and isinstance(node, dict | None):
            data[group] = {name: component(group, name, child) for name, child in (node or {}).items()}
        elif isinstance(node, dict):
            data[group] = component(group, "", node)
    return explain.checked(RunConfig, data, "")


def component(group: str, name: str, node: Mapping[str, Any]) -> Component:
    """Return the typed component of one config node.

    Raises:
        UserError: if it is not a component, its kind is not known or its class not complete.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{group}.{name}: must be a component with its settings, got {node!r}")
    entry = registry.lookup(group, str(node.get("kind")))
    node = dict(node)
    if group == "suite" and not node.get("definitions"):
        node["definitions"] = load_tasks(node, entry.schema, search_dirs())
    try:
        return explain.checked(entry.schema, node, f"{group}.{name}" if name else group)
    except TypeError as error:  # a user's class that lacks a method
        raise UserError(f"{group}={entry.name} ({entry.source.name}): {error}") from error


def missing_values(data: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every value that is still OmegaConf's missing mark."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from missing_values(value, f"{path}.{key}" if path else key)
    elif data == "???":
        yield path


def not_finite(data: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every number that is infinite or not a number."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from not_finite(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, float) and not math.isfinite(data):
        yield path


def sources(composed: Composed) -> list[tuple[str, Path]]:
    """Return the YAML files that took part, each with the config path it fills, the last to apply first."""
    found = []
    for group, choice in reversed(composed.choices.items()):
        for option in choice if isinstance(choice, (list, tuple)) else [choice]:
            for folder in search_dirs():
                path = folder / group / f"{option}.yaml"
                if option and path.is_file():
                    found.append(("" if group in ("method", "experiment") else group, path))
                    break
    return [*sorted(found, key=lambda item: item[0] != ""), ("", conf_dir() / "config.yaml")]
