"""What a dashboard shows of a result beside its numbers: units, results by task, curves by layer, pictures, files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import UserError
from taskvec.graph.result import Json, Result, Stage
from taskvec.panel import Lines, Picture
from taskvec.protocols.rows import Metric, Row
from taskvec.report.panels import panels

LAYERS = ("block", "layer", "depth")  # axes of a stage's curves that count layers
# Kinds of artefacts that others build on, by the type that a dashboard files them under
KINDS = {"vector": "task_vector", "composition": "merged_model"}
MERGED = 2  # vectors in a composition that is a merged model
NAME = 128  # characters of an artefact's name


def described(result: Result) -> list[Json]:
    """Return unit, direction and axis of everything that is mirrored of a result, a record each."""
    found = []
    for row in result.rows:
        for name, metric in row.metrics.items():
            about = {"unit": metric.unit, "better": metric.better, "axis": None}
            found.append({"metric": f"{row.row}/{name}"} | about)
    for name in result.curves:
        about = {"unit": None, "better": None, "axis": "alpha_curve/alpha"}
        found.append({"metric": f"alpha_curve/{name}"} | about)
    loss = {"unit": "number", "better": "lower", "axis": "train/step"}
    return [*found, {"metric": "train/*/loss"} | loss]


def by_task(result: Result) -> list[Json]:
    """Return a record for each row, metric and task."""
    found = []
    for row in result.rows:
        for name, metric in row.metrics.items():
            found += task_records(row, name, metric)
    return found


def task_records(row: Row, name: str, metric: Metric) -> Iterator[Json]:
    """Yield the records of one metric of a row."""
    for task, value in metric.values.items():
        alpha = row.alphas.get(task, row.alpha)
        judged_by = metric.by_task.get(task, name)
        yield {
            "row": row.row,
            "metric": name,
            "task": task,
            "value": value,
            "unit": metric.unit,
            "better": metric.better,
            "judged_by": judged_by,
            "alpha": alpha,
        }


@dataclass(frozen=True)
class Point:
    """Numbers by name at one layer of a picture's curves."""

    picture: str
    layer: float
    values: dict[str, float]


def by_layer(result: Result) -> list[Point]:
    """Return the curves that stages report over layers, layer by layer."""
    found = []
    for name, pictures in panels(result).items():
        for picture in pictures:
            if isinstance(picture, Lines) and picture.x in LAYERS:
                found += points(name, picture)
    return found


def points(name: str, picture: Lines) -> list[Point]:
    """Return the points of a picture's curves, those at one place together."""
    at: dict[float, dict[str, float]] = {}
    for label, curve in picture.series.items():
        for layer, value in curve:
            values = at.setdefault(layer, {})
            values[label] = value
    return [Point(name, layer, at[layer]) for layer in sorted(at)]


def drawn(pictures: list[Picture]) -> Any:
    """Return pictures beside each other as an image.

    Raises:
        UserError: if matplotlib is missing.
    """
    from PIL import Image

    from taskvec.report.figures import write

    file = io.BytesIO()
    write(pictures, "", file, "png")
    file.seek(0)
    return Image.open(file)


def images(result: Result, most: int) -> dict[str, Any]:
    """Return the first maps and stages' pictures of a result as images by name; none where matplotlib is missing.

    Coefficient curves are no pictures: they are mirrored as curves.
    """
    named = panels(result)
    names = [name for name in named if name not in result.curves]
    found = {}
    for name in names[:most]:
        try:
            found[name] = drawn(named[name])
        except UserError:
            return {}
    return found


@dataclass(frozen=True)
class Artefact:
    """A task vector or merged model in the store: whether the run made it, and the names of those it was made from."""

    name: str
    type: str
    folder: Path
    made: bool
    sources: tuple[str, ...]
    metadata: Json


def artefacts(result: Result, store: Path) -> list[Artefact]:
    """Return the vectors and merged models that a result stands on and that the store holds, sources first.

    A transformed vector was made from that of the same task before it, a merged model from the last of each task.
    """
    last: dict[str, Stage] = {}
    found = []
    for stage in result.stages:
        if stage.kind not in KINDS:
            continue
        if stage.kind == "vector":
            task, *transforms = stage.label.removeprefix("vector ").split(", ")
            sources = [last[task]] if transforms and task in last else []
            last[task] = stage
        else:
            _, _, tasks = stage.label.rpartition(" of ")
            sources = [last[task] for task in tasks.split("+") if task in last]
            if len(sources) < MERGED:
                continue
        names = tuple(name_of(source) for source in sources)
        found.append(artefact(result, store, stage, names))
    by_name = {one.name: one for one in found if one.folder.is_dir()}
    return list(by_name.values())


def artefact(result: Result, store: Path, stage: Stage, sources: tuple[str, ...]) -> Artefact:
    """Return one artefact."""
    usage = result.timing.get("artefacts", {})
    own = usage.get(f"{stage.label} {stage.fingerprint[:8]}", {})
    metadata = {"fingerprint": stage.fingerprint, "label": stage.label, "sources": list(sources)}
    return Artefact(
        name=name_of(stage),
        type=KINDS[stage.kind],
        folder=store / stage.kind / stage.fingerprint,
        made=bool(own.get("computed")),
        sources=sources,
        metadata=metadata,
    )


def name_of(stage: Stage) -> str:
    """Return an artefact's name: what it is, and enough of its fingerprint to tell it apart."""
    label = re.sub(r"[^\w.-]+", "_", stage.label)
    return f"{label[: NAME - 9]}-{stage.fingerprint[:8]}"
