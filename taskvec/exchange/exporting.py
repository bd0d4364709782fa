"""A run's merged model as a folder of its own, for open_clip or transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from taskvec.checkpoints.beside import CARD, card, tokenizer_files
from taskvec.checkpoints.names import names_of
from taskvec.checkpoints.reading import Checkpoint
from taskvec.checkpoints.writing import Content, Weights, refuse_existing, write_folder
from taskvec.errors import UserError
from taskvec.exchange.bases import checkpoint_of
from taskvec.graph.plan import Plan
from taskvec.graph.workspace import silent_workspace, to_compute
from taskvec.models.sources import Source
from taskvec.registry import did_you_mean
from taskvec.runner.folder import RunFolder
from taskvec.runner.survey import config_of
from taskvec.vectors import Deferred, Tensors

if TYPE_CHECKING:
    from taskvec.graph.nodes.composition import CompositionNode
    from taskvec.graph.result import Result
    from taskvec.graph.run import RunConfig
    from taskvec.protocols.rows import Row

STEMS = {"open_clip": "open_clip_model", "transformers": "model"}


def export(run: Path, out: Path, row: str = "merged", task: str | None = None) -> Path:
    """Write the model of one row of a run's result: weights in float32, description, tokenizer and model card.

    ``task`` chooses among models for single tasks. Whatever the run did not edit (a text tower, a language model's
    head) is the backbone's.

    Raises:
        UserError: if the run is not done, has no such row, or its model is none that a folder can hold.
    """
    refuse_existing(out)
    folder = RunFolder(run)
    result = folder.result()
    if result is None:
        raise UserError(f"{run}: no finished run")
    config = config_of(folder)
    config = config.model_copy(update={"outputs": str(run.resolve().parent.parent)})
    chosen = _row(result, row)
    node = _composition(Plan(config), chosen, run)
    weights = _weights(config, node, chosen, task)
    backbone = node.base.backbone
    base = checkpoint_of(backbone)
    kind = "open_clip" if _is_open_clip(backbone.described()) else "transformers"
    beside = _beside(backbone) | {CARD: _card(result, chosen, folder, kind, out.name)}
    write_folder(out, Weights.of(_stored(weights, base)), beside, stem=STEMS[kind])
    return out


def _is_open_clip(described: Mapping[str, Any]) -> bool:
    return any(name.startswith("open_clip") for name in described)


def _row(result: Result, name: str) -> Row:
    """Return a row of a result.

    Raises:
        UserError: if there is none of that name.
    """
    for row in result.rows:
        if row.row == name:
            return row
    hint = did_you_mean(name, [row.row for row in result.rows])
    raise UserError(f"export: {result.run_id} has no row {name!r}{hint}")


def _composition(plan: Plan, row: Row, run: Path) -> CompositionNode:
    """Return the one composition that a row is about.

    Raises:
        UserError: if the run is stale, or the row is about several models.
    """
    asked = set(row.cells.values())
    found = {
        node.composition.fingerprint: node.composition
        for node in plan.cells.values()
        if node.fingerprint in asked
    }
    if not found:
        raise UserError(f"{run}: code, data or weights below it changed; run it again")
    if len(found) > 1:
        raise UserError(
            f"export: the row {row.row} is about {len(found)} models; choose another row"
        )
    return next(iter(found.values()))


def _weights(config: RunConfig, node: CompositionNode, row: Row, task: str | None) -> Tensors:
    """Return the editable weights of a row's model at the coefficient that the row reports.

    Raises:
        UserError: if its vectors are not in the store, or it is none that weights alone describe.
    """
    if node.mode == "tangent":
        raise UserError(
            "export: the model is evaluated linearised, as no library does; nothing to export"
        )
    work = silent_workspace(config.root, config.compute)
    if to_compute(work.store, node.inputs.values()):
        raise UserError(f"export: its vectors are not in {work.store.root}; run it again")
    made = node.value(work)
    if made.per_task and task is None:
        raise UserError("export: the merge makes a model for each task; choose one with --task")
    if any(made.readout(name) for name in config.suite.tasks):
        raise UserError(
            "export: the model has heads of its own beside the weights; nothing to export"
        )
    alpha: Any = dict(row.alphas) if node.separate else row.alpha
    if alpha is None:
        alpha = 1.0
    return made.parameters(alpha, task)


def _stored(weights: Tensors, base: Checkpoint) -> Tensors:
    """Return all tensors of a base under its own names, those in float32 that hold the weights."""
    names = names_of(base)
    held: dict[str, list[str]] = {}
    shapes = {}
    for stored, tensor in base.tensors.items():
        ours = [name for name in names.canonical({stored: tensor.to("meta")}) if name in weights]
        shapes[stored] = tensor.to("meta")
        if ours:
            held[stored] = ours
            shapes[stored] = shapes[stored].float()

    def make(stored: str) -> Any:
        if stored not in held:
            return base.tensors[stored]
        parts = {name: weights[name].detach().float().cpu() for name in held[stored]}
        return names.stored(parts)[stored].contiguous()

    return Deferred(shapes, make)


def _beside(backbone: Any) -> dict[str, Content]:
    """Return description and tokenizer."""
    found: dict[str, Content] = {}
    for name, told in backbone.described().items():
        text = json.dumps(told, indent=2, ensure_ascii=False)
        found[name] = text.encode() + b"\n"
    source: Source | None = backbone.tokenizer_source
    files = tokenizer_files(source) if source is not None else {}
    return files | found


def _card(result: Result, row: Row, folder: RunFolder, kind: str, title: str) -> bytes:
    """Return the model card: how the model was made, and what was measured of it."""
    config = result.config
    command = folder.status_on_disk().get("command") or "taskvec"
    library = "open_clip" if kind == "open_clip" else "transformers"
    tags = ["task-arithmetic", "model-merging", "taskvec"]
    front = {"library_name": library, "tags": tags}
    tasks = ", ".join(config["suite"]["tasks"])
    merge, finetune = config["merge"]["kind"], config["finetune"]["kind"]
    names = [name for name in row.metrics if name != "validation"]
    per_task = dict.fromkeys(task for name in names for task in row.metrics[name].values)
    lines = []
    for task in per_task:
        values = [row.metrics[name].values.get(task) for name in names]
        lines.append([task, *values])
    lines.append(["mean", *(row.metrics[name].mean for name in names)])
    measured = tabulate(lines, headers=["", *names], tablefmt="github", floatfmt=".4f")
    alpha = "one for each task" if row.alphas else row.alpha
    body = f"""\
The row `{row.row}` of the run `{result.run_id}`: vectors of {tasks} (finetune={finetune}), merge={merge}, coefficient
alpha = {alpha}. Weights are in float32; what the run did not edit is the backbone's.

    {command}

Measured on the test splits:

{measured}

Fingerprint of the run's answers: `{result.fingerprint}`."""
    return card(title, front, body)
