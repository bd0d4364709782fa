"""Activations and gradients as examples x tokens x channels, with padding that never counts. Pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 2**22  # numbers in the largest temporary of per-example weight gradients


class Tokens(NamedTuple):
    """``values`` [N, R, d] of N examples; ``real`` [N, R] bool says which tokens are no padding, None: all."""

    values: Tensor
    real: Tensor | None = None

    def rows(self) -> Tensor:
        """Return the real tokens of all examples [rows, d]."""
        if self.real is None:
            return self.values.flatten(0, 1)
        return self.values[self.real]

    def zeroed(self) -> Tensor:
        """Return the values [N, R, d] with zeros at padding."""
        if self.real is None:
            return self.values
        padding = ~self.real.unsqueeze(-1)
        return self.values.masked_fill(padding, 0)

    def sum(self) -> Tensor:
        """Return the sum over each example's real tokens [N, d]."""
        return self.zeroed().sum(1)

    def mean(self) -> Tensor:
        """Return the mean over each example's real tokens [N, d]."""
        if self.real is None:
            return self.sum() / self.values.shape[1]
        return self.sum() / self.real.sum(1, keepdim=True)

    def apart(self) -> list[Tensor]:
        """Return each example's real tokens [R_n, d]."""
        if self.real is None:
            return list(self.values)
        examples = zip(self.values, self.real, strict=True)
        return [values[real] for values, real in examples]


def tokens_of(values: Tensor, examples: int, real: Tensor | None, dtype: torch.dtype) -> Tokens:
    """Read a module's [N, d], [N, L, d] or [N, heads and L, d] as tokens, each head one.

    A single token per example (a pooled state, a decoder's start) is real. Per-head norms are not masked: their two
    inner dimensions come in either order, and gradients at padding are zero.

    Raises:
        ValueError: if the shape fits neither the batch nor the mask ``real`` [N, L].
    """
    values = values.detach().to(dtype)
    if values.ndim < 2 or len(values) != examples:
        raise ValueError(
            f"its shape {list(values.shape)} does not begin with the {examples} examples"
        )
    if values.ndim == 2:
        return Tokens(values.unsqueeze(1))
    if real is None or values.ndim > 3 or values.shape[1] == 1:
        return Tokens(values.flatten(1, -2))
    if values.shape[1] != real.shape[1]:
        raise ValueError(f"it has {values.shape[1]} tokens, the batch's token mask {real.shape[1]}")
    return Tokens(values, real.to(values.device))


def add_squares(total: Tensor, gradients: Tensor, inputs: Tensor) -> None:
    """Add sum_n (sum_r g_nr a_nr^T)^2, elementwise, to ``total`` [out, in] in place.

    ``gradients`` [N, R, out] and ``inputs`` [N, R, in] hold zeros at padding. At most CHUNK numbers (or one example's
    [out, in]) of the per-example matrices exist at a time; with R = 1 none does.
    """
    if gradients.shape[1] == 1:
        total.addmm_(gradients[:, 0].square().T, inputs[:, 0].square())
        return
    examples = max(1, CHUNK // total.numel())
    pieces = zip(gradients.split(examples), inputs.split(examples), strict=True)
    for g, a in pieces:
        products = torch.bmm(g.mT, a)
        total += products.square_().sum(0)


def probe(
    seed: int,
    stream: int,
    first: int,
    count: int,
    width: int,
) -> Tensor:
    """Return standard normal rows [count, width] float32 of examples ``first``, ...: row i depends on its number alone.

    So a sum over examples does not depend on how they are batched.
    """
    generator = torch.Generator()
    rows = torch.empty(count, width)
    for offset, row in enumerate(rows):
        generator.manual_seed(_mix(seed, stream, first + offset))
        torch.randn(width, generator=generator, out=row)
    return rows


def _mix(*numbers: int) -> int:
    """Return a 32-bit seed (torch's CPU generator uses no more) that differs between neighbouring numbers."""
    value = 0
    for number in numbers:  # the finaliser of MurmurHash3, once per number
        value = _times(value ^ number, 0x9E3779B1)
        value = _times(value ^ value >> 16, 0x85EBCA6B)
        value = _times(value ^ value >> 13, 0xC2B2AE35)
        value ^= value >> 16
    return value


def _times(value: int, factor: int) -> int:
    return value * factor & 0xFFFFFFFF
