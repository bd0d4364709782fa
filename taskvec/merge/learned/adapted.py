"""Learned merges under an adapter: the examples as the model sees them, and the adapter's leaves in joint training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.merge.adapters.base import Adapter, Shots
from taskvec.merge.learned.learning import Learner, Readout
from taskvec.training.batches import CROP_DRAWS, generator, random_resized_crop
from taskvec.training.loop import Group

ROWS = 500  # of a batch of features


class Jointly:
    """An adapter's leaves for each task, trained along with a learner's."""

    def __init__(self, adapter: Adapter, learner: Learner, seed: int):
        self.adapter = adapter
        self.shots = {task: shots(learner, task, adapter.copies, seed) for task in learner.views}
        self.leaves: dict[str, dict[str, Tensor]] = {}
        for task, own in self.shots.items():
            begun = adapter.start(own)
            self.leaves[task] = {name: leaf.requires_grad_() for name, leaf in begun.items()}

    def readouts(self) -> dict[str, Readout]:
        """Return for each task the function that makes its readout of the leaves."""
        return {task: lambda task=task: self.of(task) for task in self.leaves}

    def of(self, task: str) -> dict[str, Tensor]:
        """Return a task's readout."""
        return self.adapter.readout(self.leaves[task], self.shots[task])

    def groups(self, rate: float) -> list[Group]:
        """Return all leaves with their rates, named TASK/NAME."""
        return self.adapter.groups(self.named(), rate)

    def named(self) -> dict[str, Tensor]:
        """Return all leaves as TASK/NAME."""
        return {
            f"{task}/{name}": leaf
            for task, own in self.leaves.items()
            for name, leaf in own.items()
        }


def fitted(adapter: Adapter, learner: Learner, seed: int) -> dict[str, dict[str, Tensor]]:
    """Return each task's readout, fitted to the features of the learned model."""
    found = {}
    for task in learner.views:
        found[task] = adapter.fit(shots(learner, task, adapter.copies, seed), seed)
    return found


def detached(readouts: Mapping[str, Readout]) -> dict[str, dict[str, Tensor]]:
    """Return the present readouts without a graph."""
    found = {}
    for task, readout in readouts.items():
        found[task] = {name: tensor.detach() for name, tensor in readout().items()}
    return found


@torch.no_grad()
def shots(learner: Learner, task: str, copies: int, seed: int) -> Shots:
    """Return a task's examples as the model of the leaves' present values sees them; texts are not augmented."""
    view = learner.views[task]
    inputs = view.take(slice(None))
    features, logits = _looked_at(learner, task, inputs)
    found = Shots(features, logits, view.labels(), view.head, features, logits)
    crop = learner.schedule.crop
    if crop is None or inputs.ndim != 4:
        return found
    seen = []
    for copy in range(copies):
        cropped = _cropped(inputs, crop, seed, copy)
        seen.append(_looked_at(learner, task, cropped))
    augmented, augmented_logits = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return replace(found, augmented=augmented, augmented_logits=augmented_logits)


def _looked_at(learner: Learner, task: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit features [n, d] and logits [n, C]."""
    states_of, logits_of = learner.states(), learner.logits()
    features, logits = [], []
    for part in inputs.split(ROWS):
        states = states_of(task, part)
        features.append(F.normalize(states, dim=1))
        logits.append(logits_of(task, part))
    return torch.cat(features), torch.cat(logits)


def _cropped(inputs: Tensor, scale: float, seed: int, copy: int) -> Tensor:
    source = generator(seed, f"shots {copy}")
    draws = torch.rand(len(inputs), CROP_DRAWS, generator=source)
    return random_resized_crop(inputs, scale, draws)
