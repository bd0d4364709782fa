"""Everything that can be wrong with a run, checked before a weight is loaded."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from pathlib import Path
from typing import Any

from taskvec.errors import UserError, as_bad_input
from taskvec.graph.nodes.head import InitialHead
from taskvec.graph.nodes.imported import PublishedVector
from taskvec.graph.plan import Plan
from taskvec.graph.run import RunConfig
from taskvec.graph.store import Store
from taskvec.runner.remotes import check_fetched, check_known

CHECKPOINT_COPIES = 3  # parameters and AdamW's two moments


def preflight(config: RunConfig, plan: Plan) -> None:
    """Check components against each other, weights' headers and every data file.

    Raises:
        UserError: naming the first thing that is wrong and its remedy.
    """
    with as_bad_input():
        _checked(config, plan)


def _checked(config: RunConfig, plan: Plan) -> None:
    for name, backbone in backbones(config).items():
        readable(config, name, backbone)
    compatible(config)
    present(config.compute.device)
    if config.compute.compile:
        compilable(config)
    config.protocol.check(config.suite)
    check_known(config)
    for backbone in backbones(config).values():
        backbone.check()
        backbone.check_inputs()
        selection(config, backbone)
    carried(config)
    capable(config, plan)
    plan.fingerprint  # noqa: B018 (reads and checks every data file of the run)
    label_words(config, plan)


def room(config: RunConfig, plan: Plan) -> None:
    """Check the output folder, the disk, that what the hub gives is here or within reach, and published vectors.

    Raises:
        UserError: naming the remedy.
    """
    writable(config.root)
    check_fetched(config, plan)
    for node in plan.nodes:
        if isinstance(node, PublishedVector):
            node.check()
    enough_disk(config, plan)


def backbones(config: RunConfig) -> dict[str, Any]:
    """Return the run's backbones by the key that chooses them."""
    found = {"backbone": config.backbone}
    return found if config.source is None else found | {"source": config.source}


def chosen(config: RunConfig, group: str) -> str:
    """Return a choice as it was typed."""
    return f"{group}={config.choices.get(group) or getattr(config, group).kind}"


def compatible(config: RunConfig) -> None:
    """Check that the forward mode that fine-tuning produces can be evaluated, offloaded, rounded and compiled.

    Which stages take it is checked where the plan puts them together.

    Raises:
        UserError: naming the two components that do not go together.
    """
    method = config.tuning
    if config.compute.offload and method.mode == "tangent":
        raise UserError(
            "compute.offload: forward_mode=tangent keeps every block's weights on the device for the way back; "
            "use compute.offload=false or finetune.forward_mode=standard"
        )
    if config.protocol.post_hoc and method.mode == "tangent":
        raise UserError(
            f"protocol.post_hoc: finetune={method.kind} is linear already; leave post_hoc out"
        )
    linearised = method.mode == "tangent" or config.protocol.post_hoc
    if linearised and config.compute.weights != "fp32":
        raise UserError(
            "compute.weights: a linearised model has no composed weights that could be rounded; use "
            "compute.weights=fp32, and compute.precision=bf16 for faster products"
        )
    if linearised and config.compute.compile:
        raise UserError(
            "compute.compile: a linearised model is evaluated by a forward-mode derivative, which is not compiled; "
            "use compute.compile=false"
        )
    if linearised and "tangent" not in config.backbone.forward_modes:
        raise UserError(
            f"backbone={config.backbone.kind} has no forward-mode derivative; use finetune.forward_mode=standard"
        )


def readable(config: RunConfig, group: str, backbone: Any) -> None:
    """Check that a backbone reads the suite, and needs no labels that the protocol keeps back.

    Raises:
        UserError: naming the two components that do not go together.
    """
    named = chosen(config, group)
    if backbone.modality != config.suite.modality:
        suite = chosen(config, "suite")
        raise UserError(f"{suite} holds {config.suite.modality}, {named} reads {backbone.modality}")
    if config.protocol.unseen_targets and "learned_heads" in backbone.gives:
        raise UserError(
            f"protocol={config.protocol.kind} reports on tasks whose labels must not be learned from, and {named} "
            "would learn a head from them; take a causal or text-to-text model"
        )


def present(device: str) -> None:
    """Check that a device is here; ``auto`` and ``cpu`` always are, and need no torch to say so.

    Raises:
        UserError: if it is not.
    """
    if device not in ("auto", "cpu"):
        from taskvec.graph.workspace import resolve_device

        resolve_device(device)


def compilable(config: RunConfig) -> None:
    """Check that the forward pass can be compiled: as one piece, by a compiler that is here.

    Raises:
        UserError: naming what does not go with it, or what is missing.
    """
    from taskvec.graph.workspace import resolve_device
    from taskvec.models.compiled import check_compiler

    method = config.tuning
    if config.compute.offload:
        raise UserError(
            "compute.compile: offloaded blocks are moved one by one; use compute.offload=false or compute.compile=false"
        )
    if getattr(method, "gradient_checkpointing", False):
        raise UserError(
            "compute.compile: finetune.gradient_checkpointing=true wraps every block, which is not compiled; leave one "
            "of them out"
        )
    check_compiler(resolve_device(config.compute.device))


def carried(config: RunConfig) -> None:
    """Check that the transforms that move vectors can take them from the one backbone to the other.

    Raises:
        UserError: naming what of the backbones differs.
    """
    source, target = config.backbone_of("source"), config.backbone_of("target")
    for transform in config.transform.values():
        if transform.moves:
            transform.check(source, target)


def capable(config: RunConfig, plan: Plan) -> None:
    """Check that the backbone can answer what is asked: perplexity of a corpus, generation, or what a question says.

    Raises:
        UserError: naming what it cannot do.
    """
    named, gives = chosen(config, "backbone"), config.backbone.gives
    suite = config.suite
    if (
        config.protocol.uses_control
        and suite.control_metric == "perplexity"
        and "perplexity" not in gives
    ):
        raise UserError(
            f"suite.control: {suite.control} is a corpus, and {named} gives no probability of a text; take a causal "
            "language model, or a task as suite.control"
        )
    for cell in plan.asked:
        missing = sorted(cell.question.capabilities - gives)
        if missing:
            raise UserError(
                f"protocol={config.protocol.kind} asks for {missing[0]}, which {named} does not give; "
                "take a causal language model"
            )


def label_words(config: RunConfig, plan: Plan) -> None:
    """Check that a language model can tell the label words of every task apart, unless an earlier run has.

    Raises:
        UserError: if the tokenizer cannot be loaded, or two words share their first token.
    """
    if config.suite.modality != "texts":
        return
    store = Store(config.root / "store")
    for node in plan.nodes:
        if (
            isinstance(node, InitialHead)
            and "label_words" in node.base.backbone.gives
            and not store.has(node)
        ):
            node.base.backbone.heads({node.task: node.prompt})


def selection(config: RunConfig, backbone: Any) -> None:
    """Check that fine-tuning trains something, where the backbone's header says what there is.

    Raises:
        UserError: if ``finetune.select`` selects no parameter.
    """
    from taskvec.training.selectors import selected

    select, names = getattr(config.finetune, "select", "full"), backbone.parameter_shapes()
    if names and select != "full":
        try:
            selected(select, names, backbone.linear_layers())
        except ValueError as error:
            raise UserError(str(error)) from error


def writable(root: Path) -> None:
    """Check that files can be created below the output folder.

    Raises:
        UserError: with the system's reason.
    """
    probe = root / f".probe-{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"taskvec")
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise UserError(
            f"outputs: {root} cannot be written: {error.strerror}; set outputs=FOLDER"
        ) from error


def enough_disk(config: RunConfig, plan: Plan) -> None:
    """Check that the vectors and statistics still to be made, and one training checkpoint, fit on the disk.

    Raises:
        UserError: with the bytes needed and free.
    """
    store = Store(config.root / "store")
    missing = [node.copies for node in plan.nodes if node.copies and not store.has(node)]
    need = bytes_of(config, sum(missing))
    free = shutil.disk_usage(config.root).free
    if need > free:
        raise UserError(
            f"outputs: {sum(missing)} vectors and statistics need about {need / 1e6:,.1f} MB, {config.root} has "
            f"{free / 1e6:,.1f} MB; set outputs=FOLDER on another disk or free space with `taskvec store prune`"
        )


def bytes_of(config: RunConfig, count: int) -> int:
    """Return about how many bytes some vectors and statistics take, and one training checkpoint beside them."""
    weights = max(backbone.weight_bytes() for backbone in backbones(config).values())
    return weights * (count + CHECKPOINT_COPIES) if count else 0
