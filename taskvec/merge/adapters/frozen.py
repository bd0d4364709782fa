"""Readouts trained on frozen features, in full batches, by the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from taskvec.merge.adapters.base import Shots
from taskvec.training.loop import Group, train
from taskvec.training.objectives.base import State
from taskvec.training.readouts import read_out
from taskvec.training.schedule import Schedule
from taskvec.vectors import Tensors


class Whole(NamedTuple):
    """All examples at once."""

    size: int


class FullBatches:
    """Steps that all see all examples."""

    per_epoch = 1

    def __init__(self, count: int):
        self.count = count

    def at(self, step: int, state: State) -> list[Whole]:
        """Return everything."""
        return [Whole(self.count)]


def train_readout(
    leaves: Tensors,
    groups: Sequence[Group],
    readout: Callable[[], Tensors],
    shots: Shots,
    schedule: Schedule,
) -> dict[str, Tensor]:
    """Train the leaves of a readout by cross-entropy on the augmented examples and return the readout."""
    for leaf in leaves.values():
        leaf.requires_grad_()
    classes = shots.repeated

    def loss(batch: Any, state: State) -> Tensor:
        logits = read_out(readout(), shots.augmented, shots.augmented_logits)
        return F.cross_entropy(logits, classes)

    train(groups, loss, FullBatches(len(classes)), schedule)
    return {name: tensor.detach() for name, tensor in readout().items()}
