"""Models for each task that share one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from taskvec.errors import UserError
from taskvec.merge.masks.bits import unpacked
from taskvec.vectors import TaskVector, Tensors
from taskvec.vectors.composition import Alpha, Composition

SHARED, MASK = "shared/", "mask/"  # prefixes in the store


@dataclass(frozen=True)
class Mask:
    """Which entries of the shared vector a task uses, packed by parameter name, and the factor on them."""

    bits: Tensors
    scale: float = 1.0


class Masked(Composition):
    """theta_0 + alpha * scale_t * M_t * tau for task t: one vector, a bit per entry and a number for each task.

    Tasks without a mask are answered by theta_0.
    """

    per_task: ClassVar[bool] = True

    def __init__(self, base: Tensors, shared: TaskVector, masks: Mapping[str, Mask]):
        self.base, self.shared, self.masks = base, shared, masks

    def parameters(self, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return the weights of a task's model at alpha."""
        scale = coefficient(alpha, task)
        return self.direction(task).apply_to(self.base, scale)

    def direction(self, task: str | None = None) -> TaskVector:
        """Return scale_t * M_t * tau."""
        if task not in self.masks:
            return TaskVector({})
        mask = self.masks[task]
        deltas = {}
        for name, bits in mask.bits.items():
            delta = self.shared[name]
            kept = unpacked(bits, delta.shape)
            deltas[name] = delta * kept * mask.scale
        return TaskVector(deltas)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the shared deltas as shared/NAME and the packed masks as mask/TASK/NAME."""
        tensors = {f"{SHARED}{name}": delta for name, delta in self.shared.items()}
        scales = {}
        for task, mask in self.masks.items():
            scales[task] = mask.scale
            for name, bits in mask.bits.items():
                tensors[f"{MASK}{task}/{name}"] = bits
        return tensors, {"scales": scales}

    @classmethod
    def unpack(cls, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Masked:
        """Invert ``pack``."""
        masks = {}
        for task, scale in meta["scales"].items():
            bits = _below(tensors, f"{MASK}{task}/")
            masks[task] = Mask(bits, scale)
        shared = _below(tensors, SHARED)
        return cls(base, TaskVector(shared), masks)


class Localised(Composition):
    """theta_0 + m_t * tau for task t, m_t = |tau_t| > alpha |tau - tau_t|: alpha is the threshold, not a scale.

    Tasks without a vector of their own are answered by theta_0 + tau.
    """

    per_task: ClassVar[bool] = True

    def __init__(self, base: Tensors, shared: TaskVector, vectors: Mapping[str, TaskVector]):
        self.base, self.shared, self.vectors = base, shared, vectors

    def parameters(self, alpha: Alpha, task: str | None = None) -> Tensors:
        """Return the weights of a task's model under the threshold alpha."""
        return self.localised(alpha, task).apply_to(self.base)

    def localised(self, alpha: Alpha, task: str | None = None) -> TaskVector:
        """Return m_t * tau."""
        if task not in self.vectors:
            return self.shared
        own = self.vectors[task]
        threshold = coefficient(alpha, task)
        deltas = {}
        for name in own:
            delta = self.shared[name]
            mask = important(own[name], delta, threshold)
            deltas[name] = delta * mask
        return TaskVector(deltas)


def important(own: Tensor, shared: Tensor, threshold: float) -> Tensor:
    """Return m = |tau_t| > threshold |tau - tau_t| (Wang et al. 2024, equation 4)."""
    others = shared - own
    return own.abs() > threshold * others.abs()


def agreeing(own: Tensor, unified: Tensor) -> Tensor:
    """Return where a task's delta has the sign of the unified one, bool (EMR)."""
    return own.sign() * unified.sign() > 0


def coefficient(alpha: Alpha, task: str | None) -> float:
    """Return a task's coefficient: its own, or the one for all.

    Raises:
        UserError: if there are coefficients by task, but none for this one.
    """
    if not isinstance(alpha, Mapping):
        return alpha
    if task not in alpha:
        raise UserError(f"there is no coefficient for {task}; known: {', '.join(alpha)}")
    return alpha[task]


def _below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
