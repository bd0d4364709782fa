"""A small world for learned merges: a float64 tower with q, k, v layers, vectors of three tasks, labelled examples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from memory import Memory
from merge_world import Given, Scope, expression
from torch import Tensor, nn

from taskvec.models.base import Model
from taskvec.models.layers import LinearLayer
from taskvec.needs import Examples, Signed
from taskvec.protocols.base import Learning
from taskvec.training.evaluator import Evaluator
from taskvec.training.objectives.cross_entropy import CrossEntropy
from taskvec.vectors import TaskVector

WIDTH, CLASSES, ROWS = 6, 3, 40
SCALE = 10.0  # of the head


class Attention(nn.Module):
    """q, k, v and out over four places, one head."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        attended = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)
        return x + self.out(attended)


class Module(nn.Module):
    """A norm, attention, and the mean over places; ``unused`` takes no part."""

    def __init__(self, norm: nn.Module | None = None):
        super().__init__()
        self.norm = norm or nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        places = inputs.view(len(inputs), -1, WIDTH)
        return F.normalize(torch.tanh(self.attn(self.norm(places))).mean(1), dim=1)


class Tower(Model):
    """Features of unit length under a linear head, random weights by a seed."""

    def __init__(
        self, seed: int, dtype: torch.dtype = torch.float64, norm: nn.Module | None = None
    ):
        torch.manual_seed(seed)
        super().__init__(Module(norm).to(dtype))
        self.asked = 0  # forward passes

    @property
    def layers(self) -> list[LinearLayer]:
        return [LinearLayer(f"attn.{name}", f"attn.{name}", 0) for name in ("q", "k", "v", "out")]

    def prepare(self, inputs: Tensor) -> tuple[Tensor]:
        self.asked += 1
        return (inputs.to(next(iter(self.parameters.values()))),)

    def logits(self, features: Tensor, head: Tensor, parameters=None) -> Tensor:
        return features @ head.to(features).T


def vectors(model: Model, seed: int, count: int = 3) -> list[Signed]:
    """Return random task vectors of tasks t0, t1, ..."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        deltas = {}
        for name, weights in model.parameters.items():
            deltas[name] = 0.3 * torch.randn(weights.shape, generator=generator).to(weights)
        found.append(Signed(expression(f"t{number}"), 1.0, TaskVector(deltas)))
    return found


def view(seed: int, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> Memory:
    """Return labelled examples that a linear head can tell apart a little."""
    torch.manual_seed(seed)
    targets = torch.randint(0, CLASSES, (rows,))
    inputs = torch.randn(rows, 4 * WIDTH, dtype=dtype) + targets[:, None]
    head = SCALE * F.normalize(torch.randn(CLASSES, WIDTH, dtype=dtype), dim=1)
    return Memory(inputs, targets, head)


def given(model: Model, signed: list[Signed], views: dict[str, Memory], **more: Any) -> Given:
    """Return what a learned merge is given: labelled examples of some tasks, cross-entropy."""
    needs = {Examples(task, "val", "learning", labels=True): view for task, view in views.items()}
    known = needs | more.pop("known", {})
    scope = Scope(tuple(vector.tasks[0] for vector in signed), learning=tuple(needs))
    scope.backbone = SimpleNamespace(gives={"zero_shot_heads"})
    found = Given(
        scope, known=known, model=model, objective=more.pop("objective", CrossEntropy()), **more
    )
    found.evaluator = Evaluator(model, found.__getitem__)
    found.learning = found.learning or Learning(found.objective, tuple(needs))
    found.answers = {}
    return found


class Interrupted(Exception):
    """Training was cut off."""


class Store:
    """A checkpoint in memory that cuts training off after some saves, None never."""

    def __init__(self, after: int | None = None):
        self.after, self.held = after, None

    def restore(self) -> Any:
        return self.held

    def save_if_due(self, state) -> None:
        self.held = _copy(state())
        if self.after is not None:
            self.after -= 1
            if self.after == 0:
                self.after = None
                raise Interrupted


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return list(value) if isinstance(value, list) else value
