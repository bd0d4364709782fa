"""Everything that can be wrong with a run, checked before a weight is loaded."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.data.tasks import Task
from taskvec.errors import UserError
from taskvec.runner.compose import RunConfig
from taskvec.runner.store import Store

if TYPE_CHECKING:
    from taskvec.runner.plan import Plan

CHECKPOINT_COPIES = 3  # parameters and AdamW's two moments


def preflight(config: RunConfig, plan: Plan) -> None:
    """Check components against each other, weights' headers, every data file, the output folder and the disk.

    Raises:
        UserError: naming the first thing that is wrong and its remedy.
    """
    compatible(config)
    config.protocol.check(config.suite)
    config.backbone.check()
    config.backbone.check_inputs()
    selection(config)
    plan.fingerprint  # noqa: B018 (reads and checks every data file of the run)
    label_words(config, plan)
    writable(config.root)
    enough_disk(config, plan)


def compatible(config: RunConfig) -> None:
    """Check that every stage supports the forward mode that fine-tuning produces.

    Raises:
        UserError: naming the two components that do not go together.
    """
    if config.backbone.modality != config.suite.modality:
        raise UserError(
            f"suite={config.choices.get('suite') or config.suite.kind} holds {config.suite.modality}, "
            f"backbone={config.choices.get('backbone') or config.backbone.kind} reads {config.backbone.modality}"
        )
    readable(config)
    mode = config.finetune.forward_mode
    for group, component in (*config.transform.items(), ("merge", config.merge), ("protocol", config.protocol)):
        if mode not in component.forward_modes:
            takes = "/".join(sorted(component.forward_modes))
            raise UserError(
                f"{group}={component.kind} takes {takes} vectors, finetune={config.finetune.kind} gives {mode}"
            )
    if config.offload and mode == "tangent":
        raise UserError(
            "offload: forward_mode=tangent keeps every block's weights on the device for the way back; "
            "use offload=false or finetune.forward_mode=standard"
        )
    if config.protocol.post_hoc and mode == "tangent":
        raise UserError(f"protocol.post_hoc: finetune={config.finetune.kind} is linear already; leave post_hoc out")
    if (
        mode not in config.backbone.forward_modes
        or config.protocol.post_hoc
        and "tangent" not in config.backbone.forward_modes
    ):
        raise UserError(
            f"backbone={config.backbone.kind} has no forward-mode derivative; use finetune.forward_mode=standard"
        )


def readable(config: RunConfig) -> None:
    """Check that the backbone can answer what the protocol asks: perplexity of a corpus, heads without target labels.

    Raises:
        UserError: naming the two components that do not go together.
    """
    protocol, suite, backbone = config.protocol, config.suite, config.backbone
    chosen = f"backbone={config.choices.get('backbone') or backbone.kind}"
    if protocol.uses_control and suite.control_metric == "perplexity" and "perplexity" not in backbone.gives:
        raise UserError(
            f"suite.control: {suite.control} is a corpus, and {chosen} gives no probability of a text; take a causal "
            "language model, or a task as suite.control"
        )
    if protocol.generates and "generation" not in backbone.gives:
        raise UserError(f"protocol={protocol.kind} lets the model write, and {chosen} is no causal language model")
    if protocol.unseen_targets and "learned_heads" in backbone.gives:
        raise UserError(
            f"protocol={protocol.kind} must not see the target's labels, from which {chosen} would learn a head; "
            "take a causal or text-to-text model"
        )


def label_words(config: RunConfig, plan: Plan) -> None:
    """Check that a language model can tell the label words of every task apart, unless an earlier run has.

    Raises:
        UserError: if the tokenizer cannot be loaded, or two words share their first token.
    """
    if "label_words" not in config.backbone.gives:
        return
    store = Store(config.root / "store")
    for task in dict.fromkeys(task for cell in plan.questions for task in cell.tasks):
        if isinstance(plan.tasks[task], Task) and not store.has(plan.initial_head(task)):
            config.backbone.heads({task: plan.prompts(task)})


def selection(config: RunConfig) -> None:
    """Check that fine-tuning trains something, where the backbone's header says what there is.

    Raises:
        UserError: if ``finetune.select`` selects no parameter.
    """
    from taskvec.training.selectors import selected

    names = config.backbone.parameter_names()
    if names and config.finetune.select != "full":
        try:
            selected(config.finetune.select, names, config.backbone.linear_layers())
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
        raise UserError(f"outputs: {root} cannot be written: {error.strerror}; set outputs=FOLDER") from error


def enough_disk(config: RunConfig, plan: Plan) -> None:
    """Check that the vectors still to be made, and one training checkpoint, fit on the disk.

    Raises:
        UserError: with the bytes needed and free.
    """
    store = Store(config.root / "store")
    missing = [node for node in plan.nodes if node.kind == "vector" and not store.has(node)]
    need = config.backbone.weight_bytes() * (len(missing) + CHECKPOINT_COPIES) if missing else 0
    free = shutil.disk_usage(config.root).free
    if need > free:
        raise UserError(
            f"outputs: {len(missing)} task vectors need {need / 1e6:,.1f} MB, {config.root} has {free / 1e6:,.1f} MB; "
            "set outputs=FOLDER on another disk or free space with `taskvec store prune`"
        )
