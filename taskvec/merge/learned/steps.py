"""Steps that see every task, and a bound on what is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from taskvec.needs import View
from taskvec.training.callbacks import Moment
from taskvec.training.objectives.base import LogitsOf, MicroBatch, Objective, State, Steps
from taskvec.training.schedule import Schedule
from taskvec.vectors import Tensors

Total = Literal["mean", "sum"]
Span = Literal["longest", "shortest"]


class OfAll(NamedTuple):
    """One micro-batch of each task, by task."""

    parts: Mapping[str, MicroBatch]

    @property
    def size(self) -> int:
        """The number of examples."""
        return sum(part.size for part in self.parts.values())


class Together:
    """An objective's own steps for each task, side by side; the loss is the mean or the sum of the tasks' losses.

    An epoch is that of the task with the most steps, or with the fewest. The objective's state is kept by task.
    """

    def __init__(
        self,
        objective: Objective,
        views: Mapping[str, View],
        schedule: Schedule,
        seed: int,
        *,
        total: Total = "mean",
        span: Span = "longest",
    ):
        self.objective, self.views, self.total = objective, views, total
        self.steps: dict[str, Steps] = {}
        for task, view in views.items():
            self.steps[task] = objective.steps({task: view}, schedule, seed)
        lengths = [own.per_epoch for own in self.steps.values()]
        self.per_epoch = max(lengths) if span == "longest" else min(lengths)

    def at(self, step: int, state: State) -> list[OfAll]:
        """Return the micro-batches of a step; one of few rows has fewer micro-batches."""
        by_task = {task: own.at(step, state.get(task, {})) for task, own in self.steps.items()}
        most = max(len(batches) for batches in by_task.values())
        found = []
        for number in range(most):
            parts = {
                task: batches[number] for task, batches in by_task.items() if number < len(batches)
            }
            found.append(OfAll(parts))
        return found

    def loss(self, logits_of: LogitsOf, batch: OfAll, state: State) -> Tensor:
        """Return the mean, or the sum, over the tasks."""
        losses = []
        for task, part in batch.parts.items():
            losses.append(self.objective.loss(logits_of, part, state.get(task, {})))
        stacked = torch.stack(losses)
        return stacked.sum() if self.total == "sum" else stacked.mean()

    def epoch(self, logits_of: LogitsOf, epoch: int, epochs: int, state: State) -> State:
        """Return each task's state before an epoch."""
        found = {}
        for task, view in self.views.items():
            found[task] = self.objective.epoch(
                logits_of, {task: view}, epoch, epochs, state.get(task, {})
            )
        return found


class Joint(Together):
    """The steps of an objective that plays tasks against each other, as it makes them."""

    def __init__(
        self, objective: Objective, views: Mapping[str, View], schedule: Schedule, seed: int
    ):
        self.objective, self.views = objective, views
        self.own = objective.steps(views, schedule, seed)
        self.per_epoch = self.own.per_epoch

    def at(self, step: int, state: State) -> list[MicroBatch]:
        """Return the objective's micro-batches of a step."""
        return list(self.own.at(step, state))

    def loss(self, logits_of: LogitsOf, batch: MicroBatch, state: State) -> Tensor:
        """Return the objective's loss."""
        return self.objective.loss(logits_of, batch, state)

    def epoch(self, logits_of: LogitsOf, epoch: int, epochs: int, state: State) -> State:
        """Return the objective's state before an epoch."""
        return self.objective.epoch(logits_of, self.views, epoch, epochs, state)


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
