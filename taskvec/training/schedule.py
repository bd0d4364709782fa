"""How long, how fast and in which batches something is trained, and how strong a penalty is, as schemas."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from taskvec.config import Config, immaterial


class Schedule(Config):
    """An optimiser, its rate by step, and the batches of a step (spec 1.4).

    The rate rises linearly to ``lr`` over ``warmup`` steps, then follows ``shape`` to the last step; ``epochs``, where
    given, replaces ``steps``. ``betas`` and ``eps`` are AdamW's, ``momentum`` is SGD's. Gradients are scaled down to
    the norm ``clip_norm``, None leaves them. ``batch_size`` examples make one step, cut into ``accumulation``
    micro-batches whose gradients are averaged. ``augment`` concerns images. ``checkpoint_every`` is in seconds.
    """

    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)

    steps: int = Field(500, ge=1)
    epochs: int | None = Field(None, ge=1)
    warmup: int = Field(0, ge=0)
    shape: Literal["cosine", "constant"] = "cosine"
    clip_norm: float | None = Field(1.0, gt=0)

    batch_size: int = Field(128, ge=1)
    accumulation: int = Field(1, ge=1)
    augment: Literal["none", "random_resized_crop"] = "random_resized_crop"
    crop_scale: float = Field(0.9, gt=0, le=1)

    checkpoint_every: float = immaterial(30.0, ge=0)

    @model_validator(mode="after")
    def _micro_batches(self) -> Schedule:
        size = self.batch_size
        if size is not None and size % self.accumulation:
            raise ValueError(
                f"batch_size {size} does not divide into {self.accumulation} micro-batches"
            )
        return self

    @property
    def radius(self) -> float | None:
        """The radius of sharpness-aware steps, None for plain ones; a schedule that has them says so."""
        return None

    @property
    def shortest_epoch(self) -> int:
        """The fewest steps of an epoch, for which few examples are seen repeatedly; a schedule with more says so."""
        return 1

    @property
    def crop(self) -> float | None:
        """The smallest area of a random crop, as a fraction of the image; None without crops."""
        return self.crop_scale if self.augment == "random_resized_crop" else None

    def total(self, per_epoch: int) -> int:
        """Return the number of optimiser steps, given those of an epoch."""
        return self.epochs * per_epoch if self.epochs else self.steps

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of step s of S: lr (s+1)/W for s < W, then that of the shape (spec 1.4).

        W is ``warmup``, at most S; the cosine is lr/2 (1 + cos(pi (s-W)/(S-W))).
        """
        warmup = min(self.warmup, total)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.shape == "constant":
            return self.lr
        done = (step - warmup) / max(1, total - warmup)
        return self.lr / 2 * (1 + math.cos(math.pi * done))


class PenaltySettings(Config):
    """How a quadratic drift penalty enters the loss (spec 3.3, 3.4).

    The strength is ``weight``, reached linearly over the first ``warmup`` steps; None takes the backbone's. With
    ``cadence`` N it is applied at steps 0, N, 2N, ..., N times as strong so that its mean over steps stays, or as it is
    if ``faithful``. ``full_scale`` multiplies the blocks of norms and class token, ``projection_scale`` that of the
    output projection.
    """

    weight: float | None = Field(None, ge=0)
    full_scale: float = Field(1.0, ge=0)
    projection_scale: float = Field(1.0, ge=0)
    cadence: int = Field(1, ge=1)
    warmup: int = Field(0, ge=0)
    faithful: bool = False

    def strength(self, step: int) -> float:
        """Return the factor of the penalty at a step, 0 where it is left out."""
        if step % self.cadence:
            return 0.0
        ramp = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.weight * ramp * (1 if self.faithful else self.cadence)

    def turn(self, step: int) -> int:
        """Return how often the penalty was applied before a step at which it is."""
        return step // self.cadence
