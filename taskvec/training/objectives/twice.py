"""Batches that hold every example in two augmentations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from taskvec.needs import View
from taskvec.training.batches import Batch, Batches, augment
from taskvec.training.objectives.base import State
from taskvec.training.schedule import Schedule

FIRST, SECOND = 0, 1  # streams of crops


class Twice(NamedTuple):
    """The same examples, augmented twice."""

    first: Batch
    second: Batch

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.first.size


class TwoCrops:
    """Shuffled epochs over the union of some tasks, every image in two crops."""

    def __init__(self, views: Mapping[str, View], schedule: Schedule, seed: int):
        self.schedule, self.seed = schedule, seed
        self.plain = Batches(
            views,
            batch_size=schedule.batch_size,
            accumulation=schedule.accumulation,
            seed=seed,
            crop=None,
            labels=False,
        )
        self.per_epoch = self.plain.per_epoch

    def at(self, step: int, state: State) -> list[Twice]:
        """Return the micro-batches of a step."""
        found = []
        for number, batch in enumerate(self.plain.at(step)):
            streams = [f"{step}/{number}/{view}" for view in (FIRST, SECOND)]
            crops = [augment(batch.inputs, self.schedule, self.seed, stream) for stream in streams]
            found.append(Twice(*(batch._replace(inputs=crop) for crop in crops)))
        return found
