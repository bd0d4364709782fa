"""What a merge returns: weights, for any scaling coefficient, of one model or of one for each task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from taskvec.vectors.deferred import Tensors
from taskvec.vectors.task_vector import TaskVector

Alpha = float | Mapping[str, float]  # one coefficient, or one for each vector by task


class Composition(ABC):
    """A merged model theta(alpha); ``forward`` "tangent" evaluates it linearised at theta_0.

    ``per_task`` says that every task has a model of its own. ``pack`` and ``unpack`` carry it to the store and back.
    """

    forward: str = "standard"
    per_task: ClassVar[bool] = False

    @abstractmethod
    def parameters(self, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return the editable weights at scaling coefficient alpha; ``task`` chooses among per-task models."""

    def rounded(self, dtype: torch.dtype, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return :meth:`parameters` rounded once to a narrower dtype."""
        weights = self.parameters(alpha, task)
        return {name: weight.to(dtype) for name, weight in weights.items()}

    def direction(self, task: str | None = None) -> TaskVector | None:
        """Return tau where theta(alpha) = theta_0 + alpha tau, so that one jvp serves every alpha; None elsewhere."""
        return None

    def readout(self, task: str) -> Tensors:
        """Return what replaces or extends a task's head (an adapter's tensors); empty where nothing does."""
        return {}

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values from which ``unpack`` makes the composition again.

        Raises:
            NotImplementedError: for compositions of merges that are not stored.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be stored")

    @classmethod
    def unpack(cls, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Composition:
        """Invert ``pack`` on the base weights.

        Raises:
            NotImplementedError: for compositions of merges that are not stored.
        """
        raise NotImplementedError(f"{cls.__name__} cannot be stored")


class Scaled(Composition):
    """theta_0 + alpha * tau: the composition of every merge that yields one merged vector.

    ``heads`` are those, by task, that belong to tau alone.
    """

    def __init__(self, base: Tensors, merged: TaskVector, heads: Tensors | None = None):
        self.base, self.merged, self.heads = base, merged, heads or {}

    def parameters(self, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return theta_0 + alpha * tau; the task makes no difference."""
        return self.merged.apply_to(self.base, alpha)

    def rounded(self, dtype: torch.dtype, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return the weights in ``dtype``, rounded one by one as they are composed."""
        return self.merged.apply_to(self.base, alpha, dtype)

    def direction(self, task: str | None = None) -> TaskVector:
        """Return tau; the task makes no difference."""
        self.merged = self.merged.materialised()  # it is looked at with every batch
        return self.merged

    def readout(self, task: str) -> Tensors:
        """Return the head that belongs to tau, if there is one."""
        return {"head": self.heads[task]} if task in self.heads else {}

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the deltas of tau."""
        return dict(self.merged), {}

    @classmethod
    def unpack(cls, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Scaled:
        """Invert ``pack``."""
        return cls(base, TaskVector(tensors))


class Shifted(Composition):
    """theta_0 + tau_0 + alpha * tau: the composition of merges that move around another point than theta_0."""

    def __init__(self, base: Tensors, centre: TaskVector, merged: TaskVector):
        self.base, self.centre, self.merged = base, centre, merged

    def parameters(self, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return theta_0 + tau_0 + alpha * tau; the task makes no difference."""
        return self.merged.apply_to(self.centre.apply_to(self.base), alpha)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the deltas as centre/NAME and merged/NAME."""
        tensors = _under("centre/", self.centre) | _under("merged/", self.merged)
        return tensors, {}

    @classmethod
    def unpack(cls, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Shifted:
        """Invert ``pack``."""
        centre = TaskVector(_below(tensors, "centre/"))
        merged = TaskVector(_below(tensors, "merged/"))
        return cls(base, centre, merged)


class Summed(Composition):
    """theta_0 + sum_t alpha_t tau_t: one coefficient for each vector, by the task it was made for."""

    def __init__(self, base: Tensors, vectors: Mapping[str, TaskVector]):
        self.base, self.vectors = base, vectors

    def parameters(self, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return the weights at alpha, one number for all vectors or one for each task."""
        scales = alpha if isinstance(alpha, Mapping) else dict.fromkeys(self.vectors, alpha)
        total = TaskVector({})
        for name, scale in scales.items():
            if scale:
                total = total + self.vectors[name] * scale
        return total.apply_to(self.base)

    def direction(self, task: str | None = None) -> TaskVector:
        """Return the plain sum, the direction of equal coefficients."""
        return sum(self.vectors.values(), TaskVector({})).materialised()


class PerTask(Composition):
    """theta_0 + alpha * tau_t for task t: the composition of merges that keep a model for each task.

    Tasks without a model of their own are answered by theta_0 + alpha * ``shared``, or theta_0 where that is None.
    """

    per_task: ClassVar[bool] = True

    def __init__(
        self, base: Tensors, vectors: Mapping[str, TaskVector], shared: TaskVector | None = None
    ):
        self.base, self.vectors, self.shared = base, vectors, shared or TaskVector({})

    def parameters(self, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return the weights of a task's model at alpha."""
        return self.vectors.get(task, self.shared).apply_to(self.base, alpha)

    def rounded(self, dtype: torch.dtype, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return the weights of a task's model in ``dtype``, rounded one by one as they are composed."""
        return self.vectors.get(task, self.shared).apply_to(self.base, alpha, dtype)

    def direction(self, task: str | None = None) -> TaskVector:
        """Return the task's own tau."""
        return self.vectors.get(task, self.shared).materialised()

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the deltas as TASK/NAME."""
        tensors = _under("shared/", self.shared)
        for task, vector in self.vectors.items():
            tensors |= _under(f"task/{task}/", vector)
        return tensors, {"tasks": list(self.vectors)}

    @classmethod
    def unpack(cls, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> PerTask:
        """Invert ``pack``."""
        vectors = {}
        for task in meta["tasks"]:
            vectors[task] = TaskVector(_below(tensors, f"task/{task}/"))
        shared = TaskVector(_below(tensors, "shared/"))
        return cls(base, vectors, shared)


def _under(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] = tensor
    return found
