"""A task vector is the difference of fine-tuned and pre-trained weights, tau = theta - theta_0, by parameter name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taskvec.errors import UserError
from taskvec.vectors.deferred import Deferred, Tensors, like, save_tensors
from taskvec.vectors.low_rank import LowRank

BASE_HASH = "base_hash"
FORMAT = 1  # of the header in a vector's file
SHOWN = 5  # names in a message

Look = Callable[[Tensors, str], Tensor]


class TaskVector(Tensors):
    """An ordered mapping of canonical parameter names to deltas, closed under addition and scaling.

    An editable parameter that is absent has delta zero. ``metadata`` says what the vector was made from; the entry
    ``base_hash`` (see :func:`weights_hash`) ties it to its base weights. (Ilharco et al. 2023, section 2.)

    ``factors`` are the deltas that are known as products of low rank; they come after the others, are multiplied at
    every look, and stay factors under scaling.

    A vector opened from a file is deferred: its deltas stay in the file, and sums and multiples of it are computed,
    tensor by tensor, at every look. :meth:`materialised` keeps them in memory for those who look often.
    """

    __array_ufunc__ = None  # so that a NumPy scalar on the left leaves the product to __rmul__

    def __init__(
        self,
        deltas: Tensors,
        metadata: Mapping[str, Any] | None = None,
        factors: Mapping[str, LowRank] | None = None,
    ):
        self.metadata = dict(metadata or {})
        self.factors = dict(factors or {})
        self._dense = deltas if isinstance(deltas, Deferred) else dict(deltas)
        self._deltas = _multiplied(self._dense, self.factors) if self.factors else self._dense

    @classmethod
    def between(
        cls,
        base: Tensors,
        tuned: Tensors,
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
        shapes = {name: like(tuned, name) for name in tuned}
        floating = {name: shape for name, shape in shapes.items() if shape.is_floating_point()}

        def difference(name: str) -> Tensor:
            return tuned[name].detach() - base[name].detach()

        deltas: Tensors = Deferred(floating, difference)
        if not deferred:
            deltas = dict(deltas)
        return cls(deltas, metadata)

    def __getitem__(self, name: str) -> Tensor:
        return self._deltas[name]

    def announced(self, name: str) -> Tensor:
        """Return a meta tensor of a delta's shape and dtype; the delta is not made for it."""
        return like(self._deltas, name)

    def __contains__(self, name: object) -> bool:
        return name in self._deltas

    def __iter__(self) -> Iterator[str]:
        return iter(self._deltas)

    def __len__(self) -> int:
        return len(self._deltas)

    def __repr__(self) -> str:
        entries = sum(like(self, name).numel() for name in self)
        norm = float(self.norm())
        mode = self.metadata.get("forward_mode", "standard")
        made_on = str(self.metadata.get(BASE_HASH, "unknown"))[:12]
        return (
            f"TaskVector({len(self)} tensors, {entries:,} entries, norm {norm:.4g}, {mode}, "
            f"base {made_on})"
        )

    def __add__(self, other: TaskVector | int) -> TaskVector:
        if isinstance(other, int) and other == 0:  # the start value of the built-in sum
            return self
        if not isinstance(other, TaskVector):
            return NotImplemented
        shared = _same_base(self, other)
        for name in self.keys() & other.keys():
            _same_shape(name, like(self._deltas, name), like(other._deltas, name))
        only_theirs = [name for name in other if name not in self]
        names = [*self, *only_theirs]

        def total(name: str, look: Look = getitem) -> Tensor:
            if name not in self:
                return look(other._deltas, name) + 0  # a tensor of its own
            own = look(self._deltas, name)
            return own + (look(other._deltas, name) if name in other else 0)

        if self.deferred or other.deferred:
            shapes = {name: total(name, like) for name in names}
            return TaskVector(Deferred(shapes, total), shared)
        return TaskVector({name: total(name) for name in names}, shared)

    __radd__ = __add__

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + (-other)

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __mul__(self, factor: float) -> TaskVector:
        if isinstance(factor, TaskVector):
            return NotImplemented
        if self.deferred and isinstance(factor, int | float) and factor == 1:
            return self

        def scaled(delta: Tensor) -> Tensor:
            return delta * factor

        factors = {name: product.times(factor) for name, product in self.factors.items()}
        return TaskVector(_each(self._dense, scaled, scaled), self.metadata, factors)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> TaskVector:
        return self * (1.0 / divisor)

    def dot(self, other: TaskVector) -> Tensor:
        """Return the inner product over the shared names, accumulated in float64 (0-d)."""
        terms = []
        for name in self:
            if name in other:
                products = self[name].double() * other[name].double()
                terms.append(products.sum())
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    def norm(self) -> Tensor:
        """Return the Euclidean norm over all deltas, accumulated in float64 (0-d)."""
        return self.dot(self).sqrt()

    def blocks(self, pattern: Mapping[str, str] | None = None) -> dict[str, list[str]]:
        """Return the parameter names of each block: one block per tensor, or ``pattern`` maps names to block names."""
        grouped: dict[str, list[str]] = {}
        for name in self:
            block = pattern[name] if pattern else name
            grouped.setdefault(block, []).append(name)
        return grouped

    def to(self, *args: Any, **kwargs: Any) -> TaskVector:
        """Return the vector with every delta moved or cast as by ``Tensor.to``."""

        def moved(delta: Tensor) -> Tensor:
            return delta.to(*args, **kwargs)

        def cast(shape: Tensor) -> Tensor:
            dtype = moved(torch.empty(0, dtype=shape.dtype)).dtype
            return shape.to(dtype)

        factors = {name: product.to(*args, **kwargs) for name, product in self.factors.items()}
        stays = moved(torch.empty(0)).device.type == "cpu"
        # a deferred vector elsewhere would copy to the other device at every look
        dense = self._dense if stays else dict(self._dense)
        return TaskVector(_each(dense, moved, cast), self.metadata, factors)

    @property
    def deferred(self) -> bool:
        """Whether deltas are computed at every look."""
        return isinstance(self._deltas, Deferred)

    def materialised(self) -> TaskVector:
        """Return the vector with its deltas in memory, products multiplied; itself if it is so."""
        return TaskVector(dict(self), self.metadata) if self.deferred else self

    def apply_to(
        self, base: Tensors, scale: float = 1.0, dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """Return theta_0 + scale * tau; parameters without a delta are the base's own tensors.

        With a ``dtype`` each sum, taken in the dtype of theta_0, is rounded to it before the next one is made.

        Raises:
            KeyError: if the vector holds a name that the base does not have.
            ValueError: if the shapes of an entry differ.
        """
        _check(base, self._deltas)
        weights = dict(base)
        for name, weight in base.items():
            if scale != 0 and name in self:
                weights[name] = torch.add(weight, self[name].to(weight), alpha=scale)
            if dtype is not None:
                weights[name] = weights[name].to(dtype)
        return weights

    def pack(self) -> tuple[Tensors, dict[str, Any]]:
        """Return the tensors and the JSON header of the one file format, for a store and for files alike.

        A dense delta has its parameter's name, factors are ``up/NAME`` and ``down/NAME``. Of a deferred vector the
        tensors are deferred.
        """
        factors, scales = {}, {}
        for name, product in self.factors.items():
            factors[f"up/{name}"] = product.up
            factors[f"down/{name}"] = product.down
            scales[name] = float(product.scale)
        header = {
            "format": FORMAT,
            "metadata": self.metadata,
            "order": list(self),
            "scales": scales,
        }
        if not isinstance(self._dense, Deferred):
            return self._dense | factors, header
        shapes = {name: tensor.to("meta") for name, tensor in factors.items()}

        def tensor(name: str) -> Tensor:
            return factors[name] if name in factors else self._dense[name]

        return Deferred(self._dense.like | shapes, tensor), header

    @classmethod
    def unpack(
        cls, tensors: Tensors, header: Mapping[str, Any], *, base_hash: str | None = None
    ) -> TaskVector:
        """Invert :meth:`pack`; other tensors beside the vector's are left alone. On the CPU the vector is deferred.

        Raises:
            KeyError: if the header or a tensor is not complete.
            UserError: if the vector was made on other base weights than those of ``base_hash``.
            ValueError: for a header of another format.
        """
        if header["format"] != FORMAT:
            raise ValueError(
                f"a task vector of format {header['format']}; this version reads format {FORMAT}"
            )
        made_on = header["metadata"].get(BASE_HASH)
        if base_hash and made_on and made_on != base_hash:
            raise UserError(
                f"the task vector was made on other base weights ({made_on[:12]}) than the backbone's "
                f"({base_hash[:12]}); choose the backbone that it was made on"
            )
        factors = {}
        for name, scale in header["scales"].items():
            factors[name] = LowRank(tensors[f"up/{name}"], tensors[f"down/{name}"], scale)
        dense = {name: tensors[name] for name in header["order"] if name not in factors}
        on_cpu = all(delta.device.type == "cpu" for delta in dense.values())
        deltas = Deferred.of(dense) if on_cpu else dense
        return cls(deltas, header["metadata"], factors)

    def save(self, path: Path | str) -> None:
        """Write a safetensors file that keeps names, order and metadata, one tensor at a time."""
        tensors, header = self.pack()
        save_tensors(path, tensors, {"taskvec": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(
        cls, path: Path | str, device: str = "cpu", *, base_hash: str | None = None
    ) -> TaskVector:
        """Open a file written by :meth:`save`; on the CPU its tensors are read from the file as they are used.

        Raises:
            UserError: if the vector was made on other base weights than those of ``base_hash``.
            ValueError: if the file is not a task vector.
        """
        try:
            with safe_open(str(path), "pt", device=device) as file:
                metadata = file.metadata() or {}
                header = json.loads(metadata["taskvec"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return cls.unpack(tensors, header, base_hash=base_hash)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path}: a safetensors file, but not a task vector (no taskvec header)"
            ) from error
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path}: not a readable safetensors file: {error}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def random_like(vector: TaskVector, generator: torch.Generator) -> TaskVector:
    """Return a Gaussian vector whose norm equals ``vector``'s in every tensor (Ilharco et al. 2023, table 1).

    Tensors are drawn in the order of their names, whatever the vector's.
    """
    drawn = {}
    for name in sorted(vector):
        delta = vector[name]
        noise = torch.randn(delta.shape, generator=generator, dtype=torch.float32)
        scale = delta.float().norm() / noise.norm().clamp_min(1e-30)
        drawn[name] = (noise * scale.cpu()).to(delta)
    return TaskVector({name: drawn[name] for name in vector}, vector.metadata)


def weights_hash(weights: Tensors) -> str:
    """Return the SHA-256 over names, shapes, dtypes and bytes of the weights, in name order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _multiplied(dense: Tensors, factors: Mapping[str, LowRank]) -> Deferred:
    """Return dense deltas and products as one mapping, the products multiplied at every look.

    Raises:
        ValueError: naming a delta that is given twice.
    """
    twice = sorted(dense.keys() & factors.keys())
    if twice:
        raise ValueError(f"{twice[0]} is given as a delta and as factors")
    shapes = {name: like(dense, name) for name in dense}
    shapes |= {name: product.like() for name, product in factors.items()}

    def look(name: str) -> Tensor:
        return factors[name].delta() if name in factors else dense[name]

    return Deferred(shapes, look)


def _each(
    tensors: Tensors, change: Callable[[Tensor], Tensor], announce: Callable[[Tensor], Tensor]
) -> Tensors:
    """Return every tensor changed; deferred ones at every look, ``announce`` changing their meta tensors."""
    if not isinstance(tensors, Deferred):
        return {name: change(tensor) for name, tensor in tensors.items()}
    shapes = {name: announce(shape) for name, shape in tensors.like.items()}
    return Deferred(shapes, lambda name: change(tensors[name]))


def _same_base(left: TaskVector, right: TaskVector) -> dict[str, Any]:
    """Return the metadata that two vectors share.

    Raises:
        ValueError: naming the base weights if they are not the same.
    """
    hashes = {vector.metadata.get(BASE_HASH) for vector in (left, right)} - {None}
    if len(hashes) > 1:
        raise ValueError(
            f"task vectors of different base weights cannot be added ({' and '.join(sorted(hashes))})"
        )
    return {
        key: value
        for key, value in left.metadata.items()
        if right.metadata.get(key, value) == value
    }


def _same_shape(name: str, left: Tensor, right: Tensor) -> None:
    if left.shape != right.shape:
        raise ValueError(f"{name}: shapes differ, {tuple(left.shape)} and {tuple(right.shape)}")


def _check(base: Tensors, deltas: Tensors) -> None:
    unknown = [name for name in deltas if name not in base]
    if unknown:
        raise KeyError(f"the base has no parameter {', '.join(unknown[:SHOWN])}")
    for name in deltas:
        _same_shape(name, like(base, name), like(deltas, name))
