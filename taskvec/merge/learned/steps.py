"""Steps that see every task, and a bound on what is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taskvec.merge.piece import Tensors
from taskvec.needs import View
from taskvec.training.loop import Moment
from taskvec.training.objectives.base import LogitsOf, MicroBatch, Objective, State
from taskvec.training.schedule import Schedule


class OfAll(NamedTuple):
    """One micro-batch of each task."""

    parts: Sequence[MicroBatch]

    @property
    def size(self) -> int:
        """The number of examples."""
        return sum(part.size for part in self.parts)


class Together:
    """An objective's own steps for each task, side by side; the loss is the mean of the tasks' losses.

    An epoch is that of the largest task.
    """

    def __init__(self, objective: Objective, views: Mapping[str, View], schedule: Schedule, seed: int):
        self.objective = objective
        self.steps = [objective.steps({task: view}, schedule, seed) for task, view in views.items()]
        self.per_epoch = max(own.per_epoch for own in self.steps)

    def at(self, step: int, state: State) -> list[OfAll]:
        """Return the micro-batches of a step."""
        by_task = [own.at(step, state) for own in self.steps]
        return [OfAll(parts) for parts in zip(*by_task, strict=True)]

    def loss(self, logits_of: LogitsOf, batch: OfAll, state: State) -> Tensor:
        """Return the mean over the tasks."""
        losses = [self.objective.loss(logits_of, part, state) for part in batch.parts]
        return torch.stack(losses).mean()


class Clamp:
    """Keeps leaves in [0, 1] after every step; remembers nothing."""

    def __init__(self, leaves: Tensors):
        self.leaves = leaves

    def __call__(self, moment: Moment) -> None:
        """Clamp the leaves in place."""
        with torch.no_grad():
            for leaf in self.leaves.values():
                leaf.clamp_(0, 1)

    def state(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load(self, state: State) -> None:
        """Take up nothing."""
