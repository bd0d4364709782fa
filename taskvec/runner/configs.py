"""Where configs and components are: the shipped folder, the user's own, and the options of each group."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from taskvec import registry
from taskvec.config import Config, Seeded
from taskvec.errors import UserError

INCLUDE = "TASKVEC_INCLUDE"
SCHEMA = "schema/"  # where every component is, whatever files there are
PLAIN_KEYS = frozenset({"outputs", "seed", "compute", "sweep", "parts", "published"})


def conf_dir() -> Path:
    """Return the folder of the shipped configs: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def included() -> list[Path]:
    """Return the user's own folders and files, from ``--include`` and the environment."""
    places = os.environ.get(INCLUDE, "").split(os.pathsep)
    return [Path(place).expanduser().resolve() for place in places if place]


def include(paths: Sequence[Path]) -> None:
    """Make folders and files of the user's known, as ``--include`` does, before those that are known already.

    Raises:
        UserError: if one is missing, or a file of it fails to import.
    """
    known = included()
    new = [path for path in paths if path not in known]
    if new:
        os.environ[INCLUDE] = os.pathsep.join(map(str, [*new, *known]))
        register_all()


def search_dirs() -> list[Path]:
    """Return the config folders, the user's first."""
    return [path for path in included() if path.is_dir()] + [conf_dir()]


def register_all() -> None:
    """Load the user's components, and give every component a config option that needs no YAML file.

    Raises:
        UserError: if an included path is missing or a file of it fails to import.
    """
    Plugins.instance().register(ComponentSource)
    Plugins.instance().register(SearchPath)
    for path in included():
        _load_included(path)


def _load_included(path: Path) -> None:
    if not path.exists():
        raise UserError(f"--include {path}: no such file or folder")
    if path.is_file() and path.suffix != ".py":
        raise UserError(f"--include {path}: not a Python file (*.py)")
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    for file in files:
        registry.load_file(file)


def defaults_of(schema: type[Config]) -> dict[str, Any]:
    """Return the default value of every field as plain data; a required field is OmegaConf's missing mark.

    The seed of a component is the run's unless it is set.
    """
    defaults = {}
    for name, info in schema.model_fields.items():
        if name == "kind":
            continue
        value = "???" if info.is_required() else info.get_default(call_default_factory=True)
        if isinstance(value, Config):
            value = value.model_dump(mode="json")
        defaults[name] = list(value) if isinstance(value, tuple) else value
    if issubclass(schema, Seeded):
        defaults["seed"] = "${seed}"
    return defaults


def options(group: str) -> list[str]:
    """Return the options of a group: YAML files of the config folders and registered components."""
    group = "backbone" if group == "source" else group
    names = {*registry.names(group)}
    for folder in search_dirs():
        for path in (folder / group).rglob("*.yaml"):
            names.add(str(path.relative_to(folder / group).with_suffix("")))
    return sorted(names)


class ComponentSource(ConfigSource):
    """Components as options of Hydra: ``schema/GROUP/NAME``, and ``GROUP/NAME`` where no folder has such a file.

    A component is imported when its option is read.
    """

    @staticmethod
    def scheme() -> str:
        """The prefix of the one path of this kind."""
        return "component"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a component's defaults; those of a transform stand below its name."""
        place, name = _place_and_name(config_path)
        group = place.removeprefix(SCHEMA)
        defaults = defaults_of(registry.lookup(group, name).schema)
        package = f"transform.{name}" if place == "transform" else None
        return ConfigResult(
            config=OmegaConf.create({"kind": name} | defaults),
            path=f"{self.scheme()}://",
            provider=self.provider,
            header={"package": package},
        )

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return whether there are components below a path."""
        return config_path.strip("/").removeprefix(SCHEMA) in ("", "schema", *registry.GROUPS)

    def is_config(self, config_path: str) -> bool:
        """Return whether a path is a component's."""
        place, name = _place_and_name(config_path)
        group = place.removeprefix(SCHEMA)
        return group in registry.GROUPS and name in registry.names(group)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return what lies below a path, groups or components."""
        place = config_path.strip("/")
        group = place.removeprefix(SCHEMA)
        found: list[str] = []
        if group in registry.GROUPS and results_filter != ObjectType.GROUP:
            found += registry.names(group)
        if place in ("", "schema") and results_filter != ObjectType.CONFIG:
            found += registry.GROUPS
        return sorted(found)


def _place_and_name(config_path: str) -> tuple[str, str]:
    """Return what stands before and after the last slash of an option's path."""
    place, _, name = config_path.removesuffix(".yaml").rpartition("/")
    return place, name


class SearchPath(SearchPathPlugin):
    """Puts the user's folders before ours, whose presets win over ours of the same name, and components after both."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Insert the folders, the first one first, and the components."""
        for folder in search_dirs()[:-1]:
            search_path.prepend("taskvec-user", f"file://{_groups_of(folder)}", anchor="main")
        search_path.append("taskvec", f"{ComponentSource.scheme()}://")


@cache
def _groups_of(folder: Path) -> Path:
    """Return a user's folder as Hydra may see it: it would take one named like a plain key (outputs) for a group."""
    if not any((folder / key).is_dir() for key in PLAIN_KEYS):
        return folder
    view = Path(tempfile.mkdtemp(prefix="taskvec-"))
    atexit.register(shutil.rmtree, view, ignore_errors=True)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in PLAIN_KEYS:
            (view / path.name).symlink_to(path)
    return view


def user_files(overrides: Sequence[str]) -> list[Path]:
    """Return the YAML files of the user's folders that overrides choose."""
    found = []
    for override in overrides:
        group, _, option = override.lstrip("+").partition("=")
        group = "backbone" if group == "source" else group.partition("@")[0]
        for folder in search_dirs()[:-1]:
            path = folder / group / f"{option}.yaml"
            if group and option and path.is_file():
                found.append(path)
    return found


def presets(overrides: Sequence[str]) -> list[Path]:
    """Return the files of the experiment and the method that the overrides choose."""
    chosen = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    found = []
    for group in ("experiment", "method"):
        for folder in search_dirs() if group in chosen else ():
            path = folder / group / f"{chosen[group]}.yaml"
            if path.is_file():
                found.append(path)
    return found
