"""Pseudo-labels: who is trusted, which targets the others get, and batches of both (UFM, spec 6.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.errors import UserError
from taskvec.needs import View
from taskvec.training.batches import augment, generator
from taskvec.training.linearise import exact
from taskvec.training.objectives.base import LogitsOf, State
from taskvec.training.schedule import Schedule

ROWS = 500  # of a batch of predictions
TRUSTED = 4  # one example in so many of a batch is a trusted one
RELEASED_THRESHOLD = 0.99


def chances(logits_of: LogitsOf, task: str, view: View) -> Tensor:
    """Return softmax(logits) [N, C] of all examples as they are, on the CPU.

    Raises:
        UserError: for a head of one output, which has no classes.
    """
    parts = []
    for rows in view.batches(ROWS):
        logits = logits_of(task, view.take(rows))
        if logits.shape[1] == 1:
            raise UserError(
                f"objective=ufm: task {task} has one output and no classes; leave it out"
            )
        parts.append(exact(logits).softmax(1).cpu())
    return torch.cat(parts)


def flattened(chance: Tensor, power: float) -> Tensor:
    """Return p^power / sum p^power of probabilities [n, C]."""
    raised = chance.pow(power)
    return raised / raised.sum(1, keepdim=True)


def trusted(chance: Tensor, count: int) -> Tensor:
    """Return the rows [k] int64, ascending, of the ``count`` most confident examples predicted as each class."""
    confidence, classes = chance.max(1)
    chosen = []
    for label in range(chance.shape[1]):
        own = (classes == label).nonzero().view(-1)
        order = confidence[own].argsort(descending=True, stable=True)
        chosen.append(own[order[:count]])
    return torch.cat(chosen).sort().values


def estimate(
    chance: Tensor, count: int, power: float, threshold: float
) -> dict[str, Tensor | float]:
    """Return trusted rows, everybody's class, the threshold, and the share of the others that exceed it."""
    rows = trusted(chance, count)
    others = torch.ones(len(chance), dtype=torch.bool)
    others[rows] = False
    exceed = flattened(chance, power).max(1).values[others] > threshold
    accepted = exceed.double().mean().item() if len(exceed) else 1.0
    return {
        "trusted": rows,
        "classes": chance.argmax(1),
        "threshold": threshold,
        "accepted": accepted,
    }


def everybody(chance: Tensor) -> dict[str, Tensor | float]:
    """Return the state of the released code, whose trusted flags are set for every image."""
    rows = torch.arange(len(chance))
    return {
        "trusted": rows,
        "classes": chance.argmax(1),
        "threshold": RELEASED_THRESHOLD,
        "accepted": 1.0,
    }


class Taught(NamedTuple):
    """Examples of a task as they are and augmented; ``classes`` [n] int64 of the trusted ones, -1 of the others."""

    task: str
    weak: Tensor
    strong: Tensor
    classes: Tensor

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.classes)


class TaughtBatches:
    """A quarter trusted examples, drawn anew for every batch, and shuffled epochs of the others.

    A batch is of full size; where all examples are trusted, it is made of them alone.

    Raises:
        UserError: for several tasks together.
    """

    def __init__(self, views: Mapping[str, View], schedule: Schedule, seed: int):
        if len(views) != 1:
            raise UserError("objective=ufm takes the examples of one task at a time")
        ((self.task, self.view),) = views.items()
        self.schedule, self.seed = schedule, seed
        self.few = max(1, schedule.batch_size // TRUSTED)
        self.rest = schedule.batch_size - self.few
        self.per_epoch = math.ceil(len(self.view) / max(1, self.rest))

    def at(self, step: int, state: State) -> list[Taught]:
        """Return the micro-batches of a step."""
        sure = torch.zeros(len(self.view), dtype=torch.bool)
        trusted_rows = state["trusted"].cpu()
        sure[trusted_rows] = True
        others = (~sure).nonzero().view(-1)
        few = self.few if len(others) else self.schedule.batch_size
        drawn = self._drawn(trusted_rows, few, step)
        rows = torch.cat([drawn, self._epoch(others, step)])
        known = state["classes"].cpu()
        classes = torch.where(sure, known, -1)
        found = []
        for number, part in enumerate(rows.split(self._micro)):
            batch = self._batch(part, classes[part], f"{step}/{number}")
            found.append(batch)
        return found

    @property
    def _micro(self) -> int:
        return self.schedule.batch_size // self.schedule.accumulation

    def _drawn(self, rows: Tensor, count: int, step: int) -> Tensor:
        order = torch.randperm(len(rows), generator=generator(self.seed, f"trusted {step}"))
        return rows[order[:count]]

    def _epoch(self, rows: Tensor, step: int) -> Tensor:
        epoch, position = divmod(step, self.per_epoch)
        order = torch.randperm(len(rows), generator=generator(self.seed, f"others {epoch}"))
        start = position * self.rest
        return rows[order[start : start + self.rest]]

    def _batch(self, rows: Tensor, classes: Tensor, stream: str) -> Taught:
        weak = self.view.take(rows)
        strong = augment(weak, self.schedule, self.seed, f"strong {stream}")
        return Taught(self.task, weak, strong, classes.to(weak.device))


def taught(logits_of: LogitsOf, batch: Taught, power: float, threshold: float) -> Tensor:
    """Return the mean of -sum_c target_c log softmax(strong)_c over trusted and confident examples, 0 if none is."""
    strong = exact(logits_of(batch.task, batch.strong))
    log_p = strong.log_softmax(1)
    sure = batch.classes >= 0
    targets = torch.zeros_like(log_p)
    one_hot = F.one_hot(batch.classes[sure], log_p.shape[1])
    targets[sure] = one_hot.to(log_p)
    counts = sure.clone()
    if not sure.all():
        with torch.no_grad():
            weak = exact(logits_of(batch.task, batch.weak[~sure]))
        chance = weak.softmax(1)
        targets[~sure] = flattened(chance, power)
        confidence = targets.max(1).values
        counts |= confidence > threshold
    losses = -(targets * log_p).sum(1)
    return losses[counts].sum() / counts.sum().clamp_min(1)
