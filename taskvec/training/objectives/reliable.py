"""Which predictions are reliable, batches that remember it, and the recovery of a collapsed model (SAR)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskvec.training.batches import Batch
from taskvec.training.callbacks import FORGET, Moment
from taskvec.training.linearise import exact
from taskvec.training.objectives.base import LogitsOf, State, Steps


@dataclass
class Noted:
    """A batch, and which of its examples were reliable when it was first asked [n] bool by task."""

    batch: Batch
    kept: dict[str, Tensor]

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.batch.size


class NotedBatches:
    """The batches of other steps, each with an empty note."""

    def __init__(self, plain: Steps):
        self.plain, self.per_epoch = plain, plain.per_epoch

    def at(self, step: int, state: State) -> list[Noted]:
        """Return the micro-batches of a step."""
        return [Noted(batch, {}) for batch in self.plain.at(step, state)]


def reliable(logits_of: LogitsOf, noted: Noted, margin: float, classes: int | None) -> Tensor:
    """Return the mean entropy over examples below margin * ln C, now and when the batch was first asked."""
    batch = noted.batch
    total, count = [], 0
    for task, rows in batch.rows.items():
        logits = exact(logits_of(task, batch.inputs[rows]))
        log_p = logits.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)
        bound = margin * math.log(classes or logits.shape[1])
        below = entropy.detach() < bound
        kept = noted.kept.setdefault(task, below) & below
        total.append(entropy[kept].sum())
        count += int(kept.sum())
    return torch.stack(total).sum() / max(1, count)


class Recover:
    """Puts leaves back to their start when the moving average of the loss, asked last in each step, is too low."""

    def __init__(self, leaves: Mapping[str, Tensor], memory: float, floor: float):
        self.leaves, self.memory, self.floor = leaves, memory, floor
        self.begun = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        self.average: float | None = None

    def __call__(self, moment: Moment) -> str | None:
        """Update the average with a loss; a loss of exactly zero says that no example was reliable."""
        loss = moment.moved.item()
        if loss:
            known = loss if self.average is None else self.average
            self.average = self.memory * known + (1 - self.memory) * loss
        if self.average is None or self.average >= self.floor:
            return None
        self.average = None
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(self.begun[name])
        return FORGET

    def state(self) -> dict[str, Any]:
        """Return the average and the start."""
        return {"average": self.average, "begun": self.begun}

    def load(self, state: State) -> None:
        """Take up a remembered state."""
        self.average, self.begun = state["average"], dict(state["begun"])
