"""A task vector is the difference of fine-tuned and pre-trained weights, tau = theta - theta_0, by parameter name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from taskvec.vectors.deferred import Deferred, like, save_tensors

BASE_HASH = "base_hash"


class TaskVector(Mapping[str, Tensor]):
    """An ordered mapping of canonical parameter names to deltas, closed under addition and scaling.

    An editable parameter that is absent has delta zero. ``metadata`` says what the vector was made from; the entry
    ``base_hash`` (see :func:`weights_hash`) ties it to its base weights. (Ilharco et al. 2023, section 2.)

    A vector opened from a file is deferred: its deltas stay in the file, and sums and multiples of it are computed,
    tensor by tensor, at every look. :meth:`materialised` keeps them in memory for those who look often.
    """

    __array_ufunc__ = None  # so that a NumPy scalar on the left leaves the product to __rmul__

    def __init__(self, deltas: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None):
        self._deltas = deltas if isinstance(deltas, Deferred) else dict(deltas)
        self.metadata = dict(metadata or {})

    @classmethod
    def between(
        cls,
        base: Mapping[str, Tensor],
        tuned: Mapping[str, Tensor],
        metadata: Mapping[str, Any] | None = None,
        *,
        deferred: bool = False,
    ) -> TaskVector:
        """Return tau = tuned - base over the floating-point entries of ``tuned``; integer entries are not weights.

        A ``deferred`` vector subtracts at every look; the weights must not change meanwhile.

        Raises:
            KeyError: if ``base`` lacks an entry.
            ValueError: if the shapes of an entry differ.
        """
        _check(base, tuned)
        floating = {name: shape for name in tuned if (shape := like(tuned, name)).is_floating_point()}
        deltas = Deferred(floating, lambda name: tuned[name].detach() - base[name].detach())
        return cls(deltas if deferred else dict(deltas), metadata)

    def __getitem__(self, name: str) -> Tensor:
        return self._deltas[name]

    def __contains__(self, name: object) -> bool:
        return name in self._deltas

    def __iter__(self) -> Iterator[str]:
        return iter(self._deltas)

    def __len__(self) -> int:
        return len(self._deltas)

    def __repr__(self) -> str:
        return f"TaskVector({len(self)} tensors, norm {float(self.norm()):.4g}, {self.metadata})"

    def __add__(self, other: TaskVector | int) -> TaskVector:
        if isinstance(other, int) and other == 0:  # the start value of the built-in sum
            return self
        if not isinstance(other, TaskVector):
            return NotImplemented
        shared = _same_base(self, other)
        for name in self.keys() & other.keys():
            _same_shape(name, like(self._deltas, name), like(other._deltas, name))
        names = [*self, *(name for name in other if name not in self)]

        def total(name: str, look: Callable[[Mapping[str, Tensor], str], Tensor] = getitem) -> Tensor:
            parts = [look(vector._deltas, name) for vector in (self, other) if name in vector]
            return parts[0] + (parts[1] if len(parts) > 1 else 0)

        if self.deferred or other.deferred:
            shapes = {name: total(name, like) for name in names}
            return TaskVector(Deferred(shapes, total), shared)
        return TaskVector({name: total(name) for name in names}, shared)

    __radd__ = __add__

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + (-other)

    def __neg__(self) -> TaskVector:
        return self._each(torch.neg)

    def __mul__(self, factor: float) -> TaskVector:
        if isinstance(factor, TaskVector):
            return NotImplemented
        if self.deferred and isinstance(factor, int | float) and factor == 1:
            return self
        return self._each(lambda delta: delta * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> TaskVector:
        return self * (1.0 / divisor)

    def dot(self, other: TaskVector) -> Tensor:
        """Return the inner product over the shared names, accumulated in float64 (0-d)."""
        terms = [(self[name].double() * other[name].double()).sum() for name in self if name in other]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    def norm(self) -> Tensor:
        """Return the Euclidean norm over all deltas, accumulated in float64 (0-d)."""
        return self.dot(self).sqrt()

    def blocks(self, pattern: Mapping[str, str] | None = None) -> dict[str, list[str]]:
        """Return the parameter names of each block: one block per tensor, or ``pattern`` maps names to block names."""
        grouped: dict[str, list[str]] = {}
        for name in self:
            grouped.setdefault(pattern[name] if pattern else name, []).append(name)
        return grouped

    def to(self, *args: Any, **kwargs: Any) -> TaskVector:
        """Return the vector with every delta moved or cast as by ``Tensor.to``."""
        if not self.deferred or torch.empty(0).to(*args, **kwargs).device.type != "cpu":
            # Every look at a deferred vector would copy to the other device.
            return TaskVector({name: delta.to(*args, **kwargs) for name, delta in self.items()}, self.metadata)
        shapes = {}
        for name, shape in self._deltas.like.items():
            shapes[name] = shape.to(torch.empty(0, dtype=shape.dtype).to(*args, **kwargs).dtype)
        return TaskVector(Deferred(shapes, lambda name: self[name].to(*args, **kwargs)), self.metadata)

    @property
    def deferred(self) -> bool:
        """Whether the deltas are computed at every look."""
        return isinstance(self._deltas, Deferred)

    def materialised(self) -> TaskVector:
        """Return the vector with its deltas in memory; itself if they are."""
        return TaskVector(dict(self), self.metadata) if self.deferred else self

    def _each(self, change: Callable[[Tensor], Tensor]) -> TaskVector:
        if not self.deferred:
            return TaskVector({name: change(delta) for name, delta in self.items()}, self.metadata)
        shapes = {name: change(shape) for name, shape in self._deltas.like.items()}
        return TaskVector(Deferred(shapes, lambda name: change(self[name])), self.metadata)

    def apply_to(self, base: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        """Return theta_0 + scale * tau; parameters without a delta are the base's own tensors.

        Raises:
            KeyError: if the vector holds a name that the base does not have.
            ValueError: if the shapes of an entry differ.
        """
        _check(base, self)
        if scale == 0:
            return dict(base)
        return {
            name: weight if name not in self else torch.add(weight, self[name].to(weight), alpha=scale)
            for name, weight in base.items()
        }

    def save(self, path: Path | str) -> None:
        """Write a safetensors file that keeps names, order and metadata, one tensor at a time."""
        text = {"taskvec": json.dumps({"metadata": self.metadata, "order": list(self)}, sort_keys=True)}
        save_tensors(path, self._deltas, text)

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu") -> TaskVector:
        """Open a file written by :meth:`save`; on the CPU its tensors are read from the file as they are used.

        Raises:
            ValueError: if the file is not a task vector.
        """
        try:
            with safe_open(str(path), "pt", device=device) as file:
                header = json.loads((file.metadata() or {})["taskvec"])
                deltas = {name: file.get_tensor(name) for name in header["order"]}
                return cls(Deferred.of(deltas) if device == "cpu" else deltas, header["metadata"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: a safetensors file, but not a task vector (no taskvec header)") from error
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: not a readable safetensors file: {error}") from error
        except Exception as error:
            if type(error).__name__ == "SafetensorError":
                raise ValueError(f"{path}: not a readable safetensors file: {error}") from error
            raise


def random_like(vector: TaskVector, generator: torch.Generator) -> TaskVector:
    """Return a Gaussian vector whose norm equals ``vector``'s in every tensor (Ilharco et al. 2023, table 1)."""
    drawn = {}
    for name, delta in vector.items():
        noise = torch.randn(delta.shape, generator=generator, dtype=torch.float32)
        drawn[name] = (noise * (delta.float().norm() / noise.norm().clamp_min(1e-30)).cpu()).to(delta)
    return TaskVector(drawn, vector.metadata)


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes, dtypes and bytes of the weights, in name order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()


def _same_base(left: TaskVector, right: TaskVector) -> dict[str, Any]:
    hashes = {v.metadata.get(BASE_HASH) for v in (left, right)} - {None}
    if len(hashes) > 1:
        raise ValueError(f"task vectors of different base weights cannot be added ({' and '.join(sorted(hashes))})")
    return {key: value for key, value in left.metadata.items() if right.metadata.get(key, value) == value}


def _same_shape(name: str, left: Tensor, right: Tensor) -> None:
    if left.shape != right.shape:
        raise ValueError(f"{name}: shapes differ, {tuple(left.shape)} and {tuple(right.shape)}")


def _check(base: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    other = other._deltas if isinstance(other, TaskVector) else other
    unknown: Iterable[str] = [name for name in other if name not in base]
    if unknown:
        raise KeyError(f"the base has no parameter {', '.join(list(unknown)[:5])}")
    for name in other:
        _same_shape(name, like(base, name), like(other, name))
