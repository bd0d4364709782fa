"""What published tables need, what of it is here, which of their runs are done, and what the others may cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from taskvec.data.remote import Remote
from taskvec.data.tasks import BY_HAND, Task
from taskvec.errors import UserError
from taskvec.graph.run import RunConfig
from taskvec.papers import tables
from taskvec.report.runs import Run, find_results
from taskvec.runner import compose
from taskvec.runner.configs import search_dirs
from taskvec.runner.remotes import remotes
from taskvec.runner.yaml_files import read_yaml

# What of a job decides which data and weights it reads
DECISIVE = (
    "suite",
    "suite.tasks",
    "backbone",
    "backbone.pretrained",
    "source",
    "source.pretrained",
    "finetune",
    "protocol",
)

Part: TypeAlias = Mapping[str, Any]
Kind: TypeAlias = tuple[str, str]  # backbone and protocol of a run


@dataclass
class Outlay:
    """What one table takes: jobs by kind, things of the hub by title, tasks whose data is made by hand, runs done."""

    name: str
    kinds: dict[Kind, int] = field(default_factory=dict)
    wanted: dict[str, Remote] = field(default_factory=dict)
    by_hand: list[str] = field(default_factory=list)
    done: int = 0
    seconds: float | None = None

    @property
    def jobs(self) -> int:
        """The number of jobs."""
        return sum(self.kinds.values())

    @property
    def missing(self) -> list[Remote]:
        """What is not in the hub's cache."""
        return [remote for remote in self.wanted.values() if not remote.here()]


def outlays(names: Iterable[str], outputs: Path) -> Iterator[Outlay]:
    """Yield what some tables take, with what the runs below an outputs folder say of them.

    Raises:
        UserError: if a table's experiment cannot be read.
    """
    runs = _finished(outputs)
    costs = _costs(runs)
    for name in names:
        found = Outlay(name)
        for part in parts_of(name):
            _count(found, part)
            for words in _choices(part):
                config = _config(tuple(words))
                found.wanted |= {remote.title: remote for remote in remotes(config)}
                found.by_hand += [
                    task for task in made_by_hand(config) if task not in found.by_hand
                ]
        found.done = sum(_belongs(run, found) for run in runs)
        found.seconds = _estimate(found, costs)
        yield found


def parts_of(name: str) -> list[Part]:
    """Return the parts of a table's experiment as its file has them.

    Raises:
        UserError: if there is no such table, or it cannot be read.
    """
    for folder in search_dirs():
        path = folder / "experiment" / tables.FOLDER / f"{name}.yaml"
        if path.is_file():
            return read_yaml(path)["parts"]
    return []


def made_by_hand(config: RunConfig) -> list[str]:
    """Return the tasks of a run whose data no one distributes, in a mirror or not."""
    found = []
    for name in config.suite.tasks:
        task = config.suite.definitions[name]
        if isinstance(task, Task) and task.path.startswith(BY_HAND):
            found.append(name)
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _count(found: Outlay, part: Part) -> None:
    """Add the jobs of a part, by backbone and protocol."""
    others = [
        len(_listed(value)) for key, value in part.items() if key not in ("backbone", "protocol")
    ]
    for backbone in _listed(part["backbone"]):
        for protocol in _listed(part["protocol"]):
            kind = (backbone, protocol)
            found.kinds[kind] = found.kinds.get(kind, 0) + math.prod(others)


def _choices(part: Part) -> Iterator[list[str]]:
    """Yield the overrides of a part's jobs as far as they decide what is read, each choice once."""
    keys = [key for key in DECISIVE if key in part]
    for values in product(*[_listed(part[key]) for key in keys]):
        yield [f"{key}={value}" for key, value in zip(keys, values, strict=True)]


@cache
def _config(words: tuple[str, ...]) -> RunConfig:
    # what it reads does not depend on its shots, without which it is not complete
    needed = [word for word in words if word != "protocol=few_shot"]
    return compose.resolve(compose.compose(needed))


def _finished(outputs: Path) -> list[Run]:
    try:
        return find_results([outputs])
    except UserError:
        return []  # no run is finished


def _kind(run: Run) -> Kind:
    config = run.result.config
    choices = config.get("choices") or {}
    return str(choices.get("backbone")), str(choices.get("protocol"))


def _belongs(run: Run, table: Outlay) -> bool:
    """Return whether a run was asked for by a table's experiment, at full scale."""
    experiments = str(run.result.config.get("experiment") or "")
    named = f"{tables.FOLDER}{table.name}" in experiments.split(", ")
    return named and _kind(run) in table.kinds


def _costs(runs: Sequence[Run]) -> dict[Kind, float]:
    """Return the median wall time of the finished runs of each kind, in seconds."""
    times: dict[Kind, list[float]] = {}
    for run in runs:
        wall = run.result.timing.get("wall_s")
        if wall is not None:
            times.setdefault(_kind(run), []).append(wall)
    return {kind: statistics.median(walls) for kind, walls in times.items()}


def _estimate(table: Outlay, costs: Mapping[Kind, float]) -> float | None:
    """Return about how many seconds the jobs of a table take, None where no run like one of them is known."""
    if any(kind not in costs for kind in table.kinds):
        return None
    return sum(costs[kind] * count for kind, count in table.kinds.items())
