"""Transforms of vectors on disk: the run's own machinery, with vectors from files in place of tuned ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import UserError
from taskvec.graph.artefact import data_seen, walk
from taskvec.graph.nodes.vector import TunedVector, VectorNode
from taskvec.graph.plan import Plan
from taskvec.graph.run import RunConfig
from taskvec.graph.store import Store
from taskvec.needs import Imported, Side
from taskvec.registry import did_you_mean
from taskvec.runner import compose
from taskvec.runner.execute import reports_of
from taskvec.runner.progress import Progress
from taskvec.runner.validate import preflight, writable

REPORT = "report.json"


@dataclass(frozen=True)
class Request:
    """Vectors by task, the config whose transforms change them, and the folder that they are written to."""

    config: RunConfig
    vectors: Mapping[str, VectorNode]
    out: Path


def request_of(
    transforms: str, places: Mapping[str, str], overrides: Sequence[str], out: Path
) -> Request:
    """Return what a command asks for: ``places`` hold each task's vector, ``transforms`` names one or several.

    Raises:
        UserError: for a wrong config, a task without data, and transforms that want more than vectors and data.
    """
    compose.register_all()
    words = [f"transform=[{transforms}]", f"suite.tasks=[{','.join(places)}]"]
    config = compose.resolve(compose.compose([*overrides, *words]))
    _known(places, config)
    plan = Plan(config)
    preflight(config, plan)
    late = plan.chain.late
    if late:
        raise UserError(f"transform.{late[0]}.on=merged: nothing is merged here; leave it out")
    side: Side = "source" if plan.chain.moving else "target"
    given = {task: Imported(task, place, side) for task, place in places.items()}
    among = tuple(given.values())
    changed = {task: plan.vector(plan.chain.after(one, among)) for task, one in given.items()}
    _refuse_training(changed)
    return Request(config, changed, out)


def carry_out(request: Request) -> list[Path]:
    """Compute the vectors and write each as TASK.safetensors, with what the transforms report beside them.

    Statistics are kept in the store, so that the same command with another setting collects nothing again.

    Raises:
        UserError: if a file of the folder is there already.
    """
    from taskvec.graph.workspace import Workspace

    _fresh(request)
    nodes = list(walk(request.vectors.values()))
    store = Store(request.config.root / "store")
    with Progress(_Unfollowed()) as progress:
        work = Workspace(store, request.config.compute, progress.observe, progress.done)
        work.plan(nodes)
        work.prepare(request.vectors.values())
    request.out.mkdir(parents=True, exist_ok=True)
    written = []
    for task, node in request.vectors.items():
        path = request.out / f"{task}.safetensors"
        node.value(work).save(path)
        written.append(path)
    report = {"reports": reports_of(nodes, store), "data_seen": data_seen(nodes)}
    path = request.out / REPORT
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return [*written, path]


def _known(places: Mapping[str, str], config: RunConfig) -> None:
    """Check that there are data of every task.

    Raises:
        UserError: naming one without.
    """
    for task in places:
        if task not in config.suite.definitions:
            hint = did_you_mean(task, list(config.suite.definitions))
            raise UserError(f"--vector {task}: the suite has no such task{hint}")


def _refuse_training(vectors: Mapping[str, VectorNode]) -> None:
    """Check that nothing has to be fine-tuned.

    Raises:
        UserError: naming what would be, and why.
    """
    for node in walk(vectors.values()):
        if isinstance(node, TunedVector):
            raise UserError(
                f"a transform asks for the head that is learned with {node.label}, which no file holds; use it in a run"
            )


def _fresh(request: Request) -> None:
    """Check that nothing is overwritten.

    Raises:
        UserError: naming a file that is there.
    """
    for name in (*(f"{task}.safetensors" for task in request.vectors), REPORT):
        if (request.out / name).exists():
            raise UserError(f"{request.out / name} is there already; choose another folder with -o")
    writable(request.out)


class _Unfollowed(nullcontext):
    """A session of a tracker that nobody looks at."""

    def curve(self, label: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Show nothing."""
