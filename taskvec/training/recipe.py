"""The fine-tuning recipe of the task-arithmetic papers, as a schema every fine-tuning method extends."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from taskvec.config import Component
from taskvec.training.selectors import check_selector

if TYPE_CHECKING:
    from taskvec.data.views import View
    from taskvec.models.base import Model
    from taskvec.statistics.curvature import Curvature
    from taskvec.training.fit import Penalty


@dataclass(frozen=True)
class Reference:
    """What fine-tuning may see of a task other than its own: its curvature at theta_0, or its training examples.

    ``curvature`` reads it anew at every call, so that merging over many tasks holds few at a time.
    """

    model: Model
    curvature: Callable[[], Curvature] | None = None
    view: View | None = None


class Recipe(Component):
    """AdamW on all selected parameters, linear warm-up and cosine decay per step, gradient-norm clipping (spec 1.4).

    ``select`` names the parameters that move (:mod:`taskvec.training.selectors`), ``lora`` with ``rank`` and
    ``lora_alpha``. ``forward_mode`` ``tangent`` trains, and later evaluates, the model linearised at theta_0.
    ``decay_towards`` says what weight decay pulls to: weights to zero (the papers), or deltas to zero (``base``, TAK).
    ``batch_size`` examples make one step, cut into ``accumulation`` micro-batches whose gradients are averaged.
    ``epochs``, where given, replaces ``steps``. ``augment`` concerns images. ``checkpoint_every`` is in seconds.
    ``gradient_checkpointing`` computes every block twice to save memory. Neither changes results.
    """

    select: str = "full"
    forward_mode: Literal["standard", "tangent"] = "standard"
    decay_towards: Literal["zero", "base"] = "zero"
    rank: int = Field(16, ge=1)
    lora_alpha: float = Field(16.0, gt=0)

    lr: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    steps: int = Field(2000, ge=1)
    epochs: int | None = Field(None, ge=1)
    warmup: int = Field(500, ge=0)
    batch_size: int = Field(128, ge=1)
    accumulation: int = Field(1, ge=1)
    clip_norm: float = Field(1.0, gt=0)
    augment: Literal["none", "random_resized_crop"] = "random_resized_crop"
    crop_scale: float = Field(0.9, gt=0, le=1)
    checkpoint_every: float = Field(30.0, ge=0)
    gradient_checkpointing: bool = False

    unfingerprinted: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "gradient_checkpointing"})
    reference: ClassVar[Literal["nothing", "curvature", "data"]] = "nothing"

    @model_validator(mode="after")
    def _micro_batches(self) -> Recipe:
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} does not divide into {self.accumulation} micro-batches")
        return self

    @model_validator(mode="after")
    def _recomputable(self) -> Recipe:
        if self.gradient_checkpointing and self.forward_mode == "tangent":
            raise ValueError(
                "gradient_checkpointing cannot go through the forward-mode derivative of forward_mode=tangent; "
                "raise accumulation instead"
            )
        return self

    @field_validator("select")
    @classmethod
    def _known(cls, select: str) -> str:
        return check_selector(select)

    def penalties(self, others: Mapping[str, Reference], seed: int) -> list[Penalty]:
        """Return what is added to the loss, functions of (step, deltas), given what ``reference`` asks of the other
        tasks of the suite.
        """
        return []

    def frozen(self, others: Mapping[str, Reference]) -> Collection[str]:
        """Return the names that stay at theta_0 although ``select`` takes them, given the same."""
        return ()

    def total_steps(self, examples: int) -> int:
        """Return the number of optimiser steps for a training set of this size."""
        return self.epochs * math.ceil(examples / self.batch_size) if self.epochs else self.steps


def learning_rate(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Return the rate of step s: peak (s+1)/W for s < W, else peak/2 (1 + cos(pi (s-W)/(S-W))) (spec 1.4)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak / 2 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
