"""Tensors that are made when they are asked for, and a safetensors file written one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


Tensors = Mapping[str, Tensor]  # by name


class Deferred(Tensors):
    """Tensors by name, made by ``make`` at every look and not kept; ``like`` holds shapes and dtypes (meta tensors)."""

    def __init__(self, like: Tensors, make: Callable[[str], Tensor]):
        self.like = dict(like)
        self._make = make

    @classmethod
    def of(cls, tensors: Tensors) -> Deferred:
        """Return tensors that exist already, for example those of an open file, so that what follows is deferred."""
        return cls(
            {name: tensor.to("meta") for name, tensor in tensors.items()}, tensors.__getitem__
        )

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.like:
            raise KeyError(name)
        return self._make(name)

    def announced(self, name: str) -> Tensor:
        """Return the meta tensor of an entry."""
        return self.like[name]

    def __contains__(self, name: object) -> bool:
        return name in self.like

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


def like(tensors: Tensors, name: str) -> Tensor:
    """Return a meta tensor of the shape and dtype of an entry, which is not made for it."""
    announced = getattr(tensors, "announced", None)
    return tensors[name].to("meta") if announced is None else announced(name)


def count_of(tensors: Tensors, name: str) -> int:
    """Return the number of a tensor's entries, which is not made for it."""
    return like(tensors, name).numel()


class Sliced(Deferred):
    """Deferred tensors of which any run of entries [start, stop), in row-major order, can be made by itself.

    ``cut(name, start, stop)`` makes it, on the ``device``. A tensor as a whole is the run of all its entries.
    """

    def __init__(
        self,
        like: Tensors,
        cut: Callable[[str, int, int], Tensor],
        device: torch.device | str = "cpu",
    ):
        super().__init__(like, self._whole)
        self.cut = cut
        self.device = torch.device(device)

    def _whole(self, name: str) -> Tensor:
        shape = self.like[name]
        return self.cut(name, 0, shape.numel()).view(shape.shape)


class Entries(NamedTuple):
    """A tensor whose entries are made run by run: its announcement (a meta tensor), and ``run(start, stop)`` [n]."""

    shape: Tensor
    device: torch.device
    run: Callable[[int, int], Tensor]


def entries_of(tensors: Tensors, name: str) -> Entries:
    """Return the entries of a tensor; one that cannot be sliced is made once, as a whole."""
    if isinstance(tensors, Sliced):
        return Entries(tensors.like[name], tensors.device, partial(tensors.cut, name))
    tensor = tensors[name].detach()
    flat = tensor.reshape(-1)
    return Entries(tensor.to("meta"), tensor.device, lambda start, stop: flat[start:stop])


Convert = Callable[[Tensors], dict[str, Tensor]]


def converted(state: Tensors, there: Convert, back: Convert) -> Deferred:
    """Return a state under other names, ``there(state)``, converted entry by entry.

    ``back`` inverts ``there``; both take partial states and meta tensors, as the key maps of the backbones do.
    """
    shapes = there({name: like(state, name) for name in state})

    def make(name: str) -> Tensor:
        parts = back({name: shapes[name]})
        return there({part: state[part] for part in parts})[name]

    return Deferred(shapes, make)


def save_tensors(
    path: Path | str, tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; of a :class:`Deferred` mapping one tensor at a time is in memory.

    Raises:
        ValueError: for a dtype that the format does not have, or a tensor that is not as announced.
    """
    shapes = {name: like(tensors, name) for name in tensors}

    def whole(name: str) -> Iterator[Tensor]:
        tensor, announced = tensors[name], shapes[name]
        if tensor.shape != announced.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not the announced one")
        yield tensor.detach().cpu().contiguous().flatten()

    save_pieces(path, shapes, whole, metadata)


def save_pieces(
    path: Path | str,
    shapes: Tensors,
    pieces: Callable[[str], Iterable[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file of tensors that come in pieces: runs of entries [n] on the CPU, one after the other.

    ``shapes`` announces them (meta tensors). Only one piece is in memory at a time.

    Raises:
        ValueError: for a dtype that the format does not have, or a tensor that is not as announced.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    # So that every tensor is aligned
    order = sorted(shapes, key=lambda name: -shapes[name].element_size())
    start = 0
    for name in order:
        shape = shapes[name]
        if shape.dtype not in DTYPES:
            raise ValueError(f"{name}: safetensors files hold no {shape.dtype}")
        end = start + shape.numel() * shape.element_size()
        header[name] = {
            "dtype": DTYPES[shape.dtype],
            "shape": list(shape.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _write(file, name, pieces(name), shapes[name])


def _write(file: BinaryIO, name: str, pieces: Iterable[Tensor], announced: Tensor) -> None:
    written = 0
    for piece in pieces:
        if piece.dtype != announced.dtype:
            raise ValueError(f"{name} is {piece.dtype}, announced as {announced.dtype}")
        if piece.numel():
            file.write(piece.view(torch.uint8).numpy())
        written += piece.numel()
    if written != announced.numel():
        raise ValueError(f"{name} has {written} entries, {announced.numel()} were announced")
