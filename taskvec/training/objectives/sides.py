"""Batches of two tasks, half from each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from taskvec.needs import View
from taskvec.training.batches import Batch, Batches
from taskvec.training.objectives.base import State
from taskvec.training.schedule import Schedule


class Sides(NamedTuple):
    """Examples of the target and of the control."""

    target: Batch
    control: Batch

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.target.size + self.control.size


class TwoSides:
    """The batches of two views side by side, each half as large; an epoch is the first view's."""

    def __init__(self, views: Mapping[str, View], schedule: Schedule, seed: int):
        sides = []
        for task, view in views.items():
            sides.append(
                Batches(
                    {task: view},
                    batch_size=max(1, schedule.batch_size // 2),
                    accumulation=schedule.accumulation,
                    seed=seed,
                    crop=schedule.crop,
                )
            )
        self.target, self.control = sides
        self.per_epoch = self.target.per_epoch

    def at(self, step: int, state: State) -> list[Sides]:
        """Return the micro-batches of a step; the shorter side's count decides."""
        pairs = zip(self.target.at(step), self.control.at(step), strict=False)
        return [Sides(target, control) for target, control in pairs]
