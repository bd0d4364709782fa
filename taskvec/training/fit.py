"""Fine-tuning a backbone on one or several tasks through their heads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.data.views import View
from taskvec.models.layers import LinearLayer
from taskvec.training.batches import Batch, Batches
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.linearise import jvp_features
from taskvec.training.loop import Observe, train
from taskvec.training.parameterisation import Deltas, LowRank, Weights
from taskvec.training.recipe import Recipe
from taskvec.training.recompute import recomputed
from taskvec.training.selectors import selected
from taskvec.vectors import TaskVector

if TYPE_CHECKING:
    from taskvec.models.base import Model

Penalty = Callable[[int, Mapping[str, Tensor]], Tensor]
HEAD = "head/"


class Fitted(NamedTuple):
    """A task vector, the heads learned with it (by task; empty where heads are frozen), and the training curve."""

    vector: TaskVector
    heads: dict[str, Tensor]
    curve: list[dict[str, float]]


def fit(  # noqa: PLR0913 (the settings of one run)
    model: Model,
    layers: Sequence[LinearLayer],
    views: Mapping[str, View],
    recipe: Recipe,
    *,
    seed: int,
    bf16: bool = False,
    ascend: bool = False,
    learn_heads: bool = False,
    penalties: Sequence[Penalty] = (),
    frozen: Collection[str] = (),
    checkpoint: Checkpoint | None = None,
    observe: Observe | None = None,
) -> Fitted:
    """Return the task vector of the selected parameters but ``frozen``.

    The loss is the mean cross-entropy over the examples of all tasks (one task: individual fine-tuning, several: joint
    multi-task training), of the model itself or of its linearisation, plus ``penalties`` of (step, deltas). ``ascend``
    turns the cross-entropy's sign (the gradient-ascent baseline of Ilharco et al. 2023).

    Raises:
        ValueError: if the recipe selects no parameter.
    """
    trained = parameterise(recipe, model, layers, seed, frozen)
    heads = {task: view.head.clone() for task, view in views.items()}
    if learn_heads:
        heads = {task: head.requires_grad_() for task, head in heads.items()}
    device = next(iter(heads.values())).device
    crop = recipe.crop_scale if recipe.augment == "random_resized_crop" else None
    batches = Batches(views, batch_size=recipe.batch_size, accumulation=recipe.accumulation, seed=seed, crop=crop)
    sign = -1.0 if ascend else 1.0

    def loss(batch: Batch) -> Tensor:
        parameters = trained.parameters()
        direction = trained.deltas() if recipe.forward_mode == "tangent" else None

        def score(task: str, inputs: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return scores(model, parameters, direction, inputs, heads[task])

        return sign * cross_entropy(score, batch)

    leaves = trained.leaves | ({HEAD + task: head for task, head in heads.items()} if learn_heads else {})
    regularisers = [lambda step, p=p: p(step, trained.deltas()) for p in penalties]
    total = recipe.total_steps(len(batches))
    with recomputed(model.module) if recipe.gradient_checkpointing else nullcontext():
        curve = train(
            leaves, loss, batches, recipe, total, regularisers=regularisers, checkpoint=checkpoint, observe=observe
        )
    vector = TaskVector({name: delta.detach() for name, delta in trained.deltas().items()})
    return Fitted(vector, {t: h.detach() for t, h in heads.items()} if learn_heads else {}, curve)


def cross_entropy(score: Callable[[str, Tensor], Tensor], batch: Batch) -> Tensor:
    """Return the mean cross-entropy over a batch's examples, each under the scores (task, inputs) of its own task.

    A head of one output learns the labels of a regression by squared error instead.
    """
    parts = []
    for task, rows in batch.rows.items():
        logits = score(task, batch.inputs[rows])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = batch.labels[task].to(logits.device)
        if labels.is_floating_point() and logits.shape[1] == 1:
            parts.append(F.mse_loss(logits[:, 0], labels, reduction="sum"))
        else:
            if labels.is_floating_point():
                labels = labels.round().long()  # the nearest of the words that stand for 0, 1, ...
            parts.append(F.cross_entropy(logits, labels, reduction="sum"))
    return torch.stack(parts).sum() / len(batch.inputs)


def parameterise(
    recipe: Recipe, model: Model, layers: Sequence[LinearLayer], seed: int, frozen: Collection[str] = ()
) -> Weights:
    """Return the leaves that a recipe trains, all it selects but ``frozen``, and how they make weights and deltas.

    Raises:
        ValueError: if the recipe selects no parameter.
    """
    names = selected(recipe.select, [n for n in model.parameters if n not in frozen], layers)
    if recipe.select == "lora":
        return LowRank(model.parameters, names, recipe.rank, recipe.lora_alpha, seed)
    return (Deltas if recipe.decay_towards == "base" else Weights)(model.parameters, names)


def scores(
    model: Model,
    parameters: Mapping[str, Tensor],
    direction: Mapping[str, Tensor] | None,
    inputs: Tensor,
    head: Tensor,
) -> Tensor:
    """Return the class scores [N, C] of the weights, or with a direction those of the model linearised at theta_0."""
    if direction is None:
        return model.logits(model.features(parameters, inputs, head), head, parameters)
    features, derivative = jvp_features(model, direction, inputs, head)
    return model.logits(features + derivative, head)
