"""Fine-tuning a backbone on one or several tasks through their frozen heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.data.views import TaskView
from taskvec.training.batches import Batch, Batches
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.loop import Observe, train
from taskvec.training.recipe import Recipe
from taskvec.vectors import TaskVector

if TYPE_CHECKING:
    from taskvec.models.base import Model


def fit(
    model: Model,
    views: Mapping[str, TaskView],
    recipe: Recipe,
    *,
    seed: int,
    bf16: bool = False,
    ascend: bool = False,
    checkpoint: Checkpoint | None = None,
    observe: Observe | None = None,
) -> tuple[TaskVector, list[dict[str, float]]]:
    """Return the task vector of the selected parameters and the training curve.

    The loss is the mean cross-entropy over the examples of all tasks (one task: individual fine-tuning, several: joint
    multi-task training); ``ascend`` turns its sign (the gradient-ascent baseline of Ilharco et al. 2023).
    """
    device = next(iter(model.parameters.values())).device
    trainable = {n: p.clone().requires_grad_() for n, p in model.parameters.items() if recipe.selects(n)}
    crop = recipe.crop_scale if recipe.augment == "random_resized_crop" else None
    batches = Batches(views, batch_size=recipe.batch_size, accumulation=recipe.accumulation, seed=seed, crop=crop)
    sign = -1.0 if ascend else 1.0

    def loss(batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = model.features(trainable, batch.inputs)
        return sign * cross_entropy(model, features.float(), batch, views)

    total = recipe.total_steps(len(batches))
    curve = train(trainable, loss, batches, recipe, total, checkpoint=checkpoint, observe=observe)
    return TaskVector.between(model.parameters, trainable), curve


def cross_entropy(model: Model, features: Tensor, batch: Batch, views: Mapping[str, TaskView]) -> Tensor:
    """Return the mean cross-entropy over a batch's examples, each under the head of its own task."""
    parts = []
    for task, rows in batch.rows.items():
        logits = model.logits(features[rows], views[task].head)
        parts.append(F.cross_entropy(logits, batch.labels[task].to(logits.device), reduction="sum"))
    return torch.stack(parts).sum() / len(features)
