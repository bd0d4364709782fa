"""What the tests of merges share: small random weights and vectors of awkward shapes, and what a merge is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskvec.merge.base import Merge
from taskvec.needs import Examples, Need, Signed, Tuned
from taskvec.vectors import TaskVector

SHAPES = {
    "block.fc.weight": (12, 9),
    "block.fc.bias": (12,),
    "block.proj.weight": (7, 12),
    "kernel": (4, 3, 2, 2),
    "scale": (),
    "nothing": (0, 3),
    "head.weight": (6, 6),
}


@dataclass
class Scope:
    """The planning scope of a merge."""

    tasks: tuple[str, ...]
    side: str = "target"
    backbone: Any = None
    source: Any = None
    learning: tuple[Examples, ...] = ()

    def vector(self, task: str) -> Tuned:
        """Return the vector of a task."""
        return expression(task)


@dataclass
class Given:
    """What a merge is given: statistics by need, a seed, and whatever a test puts in."""

    scope: Scope
    seed: int = 0
    known: Mapping[Need, Any] = field(default_factory=dict)
    model: Any = None
    learning: Any = None
    objective: Any = None
    checkpoint: Any = None
    observe: Any = lambda *_: None
    forward: str = "standard"
    evaluator: Any = None

    @property
    def source(self) -> Any:
        """The model that the vectors belong to."""
        return self.model

    def __getitem__(self, need: Need) -> Any:
        return self.known[need]


def expression(task: str) -> Tuned:
    """Return the expression of a task's vector."""
    return Tuned((Examples(task, "train", "learning", labels=True),))


def draw(
    seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64
) -> dict:
    """Return fresh Gaussian tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)
        for name, s in shapes.items()
    }


def signed(
    deltas: Sequence[Mapping[str, Tensor]], signs: Sequence[float] | None = None
) -> list[Signed]:
    """Return deltas as the vectors of tasks t0, t1, ..."""
    signs = signs or [1.0] * len(deltas)
    return [
        Signed(expression(f"t{number}"), sign, TaskVector(delta))
        for number, (sign, delta) in enumerate(zip(signs, deltas, strict=True))
    ]


def given_for(vectors: Sequence[Signed], seed: int = 0, **known: Any) -> Given:
    """Return what a merge of these vectors is given."""
    return Given(Scope(tuple(vector.tasks[0] for vector in vectors)), seed, **known)


def merged(
    merge: Merge, base: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]], **how: Any
) -> dict:
    """Return the merged deltas of a merge that gives one vector."""
    vectors = signed(deltas)
    return dict(merge.compose(base, vectors, given_for(vectors, **how)).direction())


def flat(deltas: Mapping[str, Tensor], names: Sequence[str] | None = None) -> Tensor:
    """Return deltas as one vector, in the order of the names."""
    return torch.cat([deltas[name].reshape(-1) for name in names or deltas])


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert :func:`flat`."""
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(like[name].shape) for part, name in zip(parts, like, strict=True)}


def close(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float = 1e-12
) -> None:
    """Assert equality up to a tolerance relative to the largest entry, name by name."""
    assert set(left) == set(right)
    for name in left:
        size = float(right[name].abs().max()) if right[name].numel() else 0.0
        torch.testing.assert_close(
            left[name], right[name], rtol=0, atol=tolerance * max(size, 1e-30), check_dtype=False
        )
