"""What components are given in tests: views of tensors in memory, and the given of a fine-tuning method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from taskvec.needs import Examples
from taskvec.training.evaluator import Evaluator


@dataclass(frozen=True)
class Memory:
    """A view of tensors: ``inputs`` [N, ...], ``targets`` [N] (None: not granted), ``head``."""

    inputs: Tensor
    targets: Tensor | None = None
    head: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def regression(self) -> bool:
        return self.targets is not None and self.targets.is_floating_point()

    def take(self, rows: Tensor | slice) -> Tensor:
        return self.inputs[rows]

    def labels(self, rows: Tensor | slice | None = None) -> Tensor:
        assert self.targets is not None, "labels were not granted"
        return self.targets if rows is None else self.targets[rows]

    def lengths(self) -> Tensor | None:
        return (
            (self.inputs >= 0).sum(1)
            if self.inputs.ndim == 2 and not self.inputs.is_floating_point()
            else None
        )

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        yield from (torch.arange(len(self)) if order is None else order).split(size)


def need(task: str, split: str = "test") -> Examples:
    """The need of a task's examples."""
    return Examples(task, split, "report", labels=True)


def evaluator(
    model: Any, views: Mapping[str, Memory], **settings: Any
) -> tuple[Evaluator, list[Examples]]:
    """An evaluator of views by task, and their needs."""
    granted = {need(task): view for task, view in views.items()}
    return Evaluator(model, granted.__getitem__, **settings), list(granted)


@dataclass
class Given:
    """What fine-tuning is given: a model, views by task, and what it needs of other tasks."""

    model: Any
    views: Mapping[str, Memory]
    seed: int = 0
    start: Any = None
    ascend: bool = False
    kept: tuple[float, ...] = ()
    checkpoint: Any = None
    observe: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)  # what a need of another task gives
    learned_heads: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        gives = {"learned_heads"} if self.learned_heads else set()
        backbone = SimpleNamespace(gives=gives)
        tasks, known = tuple(self.views), tuple(self.others)
        self.scope = SimpleNamespace(
            tasks=tasks, side="target", backbone=backbone, others=lambda *_: known
        )
        self.evaluator, _ = evaluator(self.model, self.views)

    def __getitem__(self, need: Any) -> Any:
        on = need if isinstance(need, Examples) else need.on
        found = self.others[on.task]
        return found() if callable(found) else found
