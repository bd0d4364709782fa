"""Random bits that are a function of (seed, parameter name, vector, place): the same in any order and on any device.

Entries are numbered in row-major order. Each block of 2^16 of them has a key of 64 bits, a hash of seed, name, vector
and block; an entry's 32 bits are two rounds of an integer mixer over its number within the block and the key.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**16


class Stream(NamedTuple):
    """Which random numbers: those of a seed, for one vector's delta of one parameter."""

    seed: int
    name: str
    vector: int


def random_bits(
    stream: Stream, start: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the random int32 numbers, uniform over all of them, of the entries start, ..., start + count - 1."""
    parts = []
    place, end = start, start + count
    while place < end:
        block, first = divmod(place, BLOCK)
        length = min(BLOCK - first, end - place)
        numbers = torch.arange(first, first + length, dtype=torch.int32, device=device)
        parts.append(_mixed(numbers, *_keys(stream, block)))
        place += length
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32, device=device)


def uniform(stream: Stream, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return uniform float32 numbers in [0, 1) of some entries, multiples of 2^-24."""
    bits = random_bits(stream, start, count, device)
    return ((bits >> 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def chosen(
    stream: Stream, probability: float, start: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return which entries are chosen when each is with a probability (to 2^-32), independently; bool [count]."""
    if probability >= 1:
        return torch.ones(count, dtype=torch.bool, device=device)
    bound = round(probability * 2**32) - 2**31
    return random_bits(stream, start, count, device) < bound


def _keys(stream: Stream, block: int) -> tuple[int, int]:
    text = f"{stream.seed}/{stream.vector}/{block}/{stream.name}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    first = int.from_bytes(digest[:4], "little", signed=True)
    second = int.from_bytes(digest[4:], "little", signed=True)
    return first, second


def _mixed(numbers: Tensor, first: int, second: int) -> Tensor:
    """Mix int32 numbers in place: products modulo 2^32 and shifted bits, two rounds with a key before each."""
    numbers ^= first
    _round(numbers)
    numbers ^= second
    return _round(numbers)


def _round(numbers: Tensor) -> Tensor:
    # The shift of signed numbers repeats the sign bit; the masks make it a shift of unsigned ones.
    numbers ^= (numbers >> 16) & 0xFFFF
    numbers *= 0x7FEB352D
    numbers ^= (numbers >> 15) & 0x1FFFF
    numbers *= -0x7B935975  # 0x846CA68B as a signed number
    numbers ^= (numbers >> 16) & 0xFFFF
    return numbers
