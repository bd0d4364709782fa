"""Tensors that are made when they are asked for, and a safetensors file written one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

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

    def __contains__(self, name: object) -> bool:
        return name in self.like

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


def like(tensors: Tensors, name: str) -> Tensor:
    """Return a meta tensor of the shape and dtype of an entry, which is not made for it."""
    return tensors.like[name] if isinstance(tensors, Deferred) else tensors[name].to("meta")


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
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    # So that every tensor is aligned
    order = sorted(tensors, key=lambda name: -like(tensors, name).element_size())
    start = 0
    for name in order:
        shape = like(tensors, name)
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
            _write(file, name, tensors[name], like(tensors, name))


def _write(file: BinaryIO, name: str, tensor: Tensor, announced: Tensor) -> None:
    if (tensor.shape, tensor.dtype) != (announced.shape, announced.dtype):
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, announced as {announced.dtype}"
        )
    if tensor.numel():
        file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
