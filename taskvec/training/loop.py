"""The training loop: one function for every parameterisation, forward mode, objective and regulariser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from taskvec.training.checkpoint import Checkpoint
from taskvec.training.recipe import Recipe, learning_rate

Observe = Callable[[int, int, Mapping[str, float]], None]


class Steps(Protocol):
    """Micro-batches by step number."""

    def at(self, step: int) -> list:
        """Return the micro-batches of a step."""


def train(
    trainable: Mapping[str, Tensor],
    loss: Callable[[object], Tensor],
    batches: Steps,
    recipe: Recipe,
    total: int,
    *,
    regularisers: Sequence[Callable[[int], Tensor]] = (),
    checkpoint: Checkpoint | None = None,
    observe: Observe | None = None,
) -> list[dict[str, float]]:
    """Minimise the mean of ``loss`` over each step's micro-batches plus the regularisers, and return the curve.

    ``trainable`` holds the leaf tensors that AdamW changes in place; how they enter the model is the business of
    ``loss``. A run resumed from ``checkpoint`` continues exactly as the interrupted one would have.

    Raises:
        FloatingPointError: as soon as the loss is not finite.
    """
    tensors = list(trainable.values())
    optimiser = torch.optim.AdamW(tensors, lr=recipe.lr, weight_decay=recipe.weight_decay)
    start, curve = checkpoint.restore(trainable, optimiser) if checkpoint else (0, [])
    for step in range(start, total):
        rate = learning_rate(step, peak=recipe.lr, warmup=min(recipe.warmup, total), total=total)
        for group in optimiser.param_groups:
            group["lr"] = rate
        micro_batches = batches.at(step)
        examples = sum(len(batch.inputs) for batch in micro_batches)
        mean = torch.zeros((), device=tensors[0].device)
        for batch in micro_batches:
            part = loss(batch) * (len(batch.inputs) / examples)
            part.backward()
            mean += part.detach()
        for regulariser in regularisers:
            regulariser(step).backward()
        norm = nn.utils.clip_grad_norm_(tensors, recipe.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % max(1, total // 50) == 0 or step + 1 == total:  # reading a loss waits for the device
            curve.append({"step": step + 1, "loss": mean.item(), "grad_norm": norm.item(), "lr": rate})
            if not torch.isfinite(mean):
                raise FloatingPointError(f"the training loss is {mean.item()} at step {step + 1}; lower finetune.lr")
            if observe:
                observe(step + 1, total, curve[-1])
        if checkpoint:
            checkpoint.save_if_due(step + 1, trainable, optimiser, curve)
    return curve
