"""Rows stored as shards, written one at a time and memory-mapped when read, and the shards that stay on a device."""

from __future__ import annotations

import math
import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.vectors.deferred import Deferred, like

INPUTS = "inputs"
ROWS, BYTES = 4096, 64 << 20  # the most of one shard
PATIENCE = 1000  # takes for which an unused shard keeps its place on the device

Rows = Iterator[Tensor]


def sharded(
    start: Callable[[], Rows], count: int, shape: Sequence[int], beside: Mapping[str, Tensor]
) -> Deferred:
    """Return ``count`` uint8 rows of a shape in shards, each made when it is looked at, and further tensors ``beside``.

    A single shard is called ``inputs``, several ``inputs/00000``, ``inputs/00001``, .... ``start`` starts the rows from
    the first one. Shards asked for in their order, as a writer does, are cut from one such pass, with one shard in
    memory; any other order starts a new pass.
    """
    row_bytes = math.prod(shape)
    size = max(1, min(ROWS, BYTES // row_bytes))
    announced: dict[str, Tensor] = {}
    for number, first in enumerate(range(0, count, size)):
        name = INPUTS if count <= size else f"{INPUTS}/{number:05d}"
        length = min(size, count - first)
        announced[name] = torch.empty(length, *shape, dtype=torch.uint8, device="meta")
    cutter = _Cutter(start, announced)

    def make(name: str) -> Tensor:
        return beside[name] if name in beside else cutter.make(name)

    others = {name: tensor.to("meta") for name, tensor in beside.items()}
    return Deferred(announced | others, make)


class _Cutter:
    """One pass over rows, cut into shards."""

    def __init__(self, start: Callable[[], Rows], announced: Mapping[str, Tensor]):
        self.start, self.announced = start, announced
        self.order = list(announced)
        self.next = 0
        self.rows = start()

    def make(self, name: str) -> Tensor:
        """Return the shard of a name."""
        number = self.order.index(name)
        if number < self.next:
            self.next = 0
            self.rows = self.start()
        while self.next < number:
            self._shard()
        return self._shard()

    def _shard(self) -> Tensor:
        name = self.order[self.next]
        wanted = self.announced[name]
        # a mapping of its own goes back to the system when it is freed; from the heap, where the images that are being
        # decoded lie in between, shard after shard would come from new memory
        memory = mmap.mmap(-1, wanted.nbytes)
        shard = torch.frombuffer(memory, dtype=wanted.dtype).view(wanted.shape)
        for place in range(len(shard)):
            shard[place] = next(self.rows)
        self.next += 1
        if self.next == len(self.order):
            next(self.rows, None)  # lets the pass end what it holds open
        return shard


class Shards:
    """Rows [N, ...] in tensors of equal length but the last, usually memory-mapped; on the CPU."""

    def __init__(self, parts: Sequence[Tensor]):
        self.parts = list(parts)
        self.size = max(1, len(self.parts[0]))
        self.count = sum(len(part) for part in self.parts)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Shards:
        """Return the rows of a decoded split."""
        return cls([tensors[name] for name in shard_names(tensors)])

    def __len__(self) -> int:
        return self.count

    def part(self, number: int) -> Tensor:
        """Return a shard."""
        return self.parts[number]

    def take(
        self, rows: Tensor, device: str = "cpu", part: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """Return a copy of rows [n] int64 as one tensor [n, ...] on a device.

        ``part`` gives a shard by its number from another place.
        """
        part = part or self.part
        first = self.parts[0]
        found = torch.empty(len(rows), *first.shape[1:], dtype=first.dtype, device=device)
        # grouped by shard and ascending inside: each shard is looked up once, the file is read forwards
        ascending, places = rows.sort()
        owners = ascending.div(self.size, rounding_mode="floor")
        numbers, counts = owners.unique_consecutive(return_counts=True)
        pieces = zip(ascending.split(counts.tolist()), places.split(counts.tolist()), strict=True)
        for number, (own, place) in zip(numbers.tolist(), pieces, strict=True):
            source = part(number)
            inside = own - number * self.size
            taken = source[inside.to(source.device)]
            found[place.to(device)] = taken.to(device)
        return found

    def lengths(self) -> Tensor | None:
        """Return the number of tokens of each row of token ids [N] int64; None for images."""
        if self.parts[0].ndim != 2:
            return None
        found = []
        for part in self.parts:
            real = part >= 0
            found.append(real.sum(1))
        return torch.cat(found)

    def to(self, device: str, limit: int | Resident | None = None) -> Shards | OnDevice:
        """Return rows that are taken onto a device; see :meth:`taskvec.data.views.View.to`."""
        if isinstance(limit, Resident):
            return OnDevice(self, limit)
        if torch.device(device).type == "cpu":
            return self  # the system's page cache keeps what is used
        return OnDevice(self, Resident(device, limit))


class _Entry(NamedTuple):
    """A shard where it is stored and on the device, and the take in which it was last used."""

    stored: Tensor
    moved: Tensor
    used: int


class Resident:
    """The shards that stay on a device, at most ``limit`` bytes of them (None: without a limit).

    A shard that finds no room takes that of the least recently used ones, unless they were used within the last
    ``PATIENCE`` takes: a pass over more than fits, in order or shuffled, would otherwise move every shard at every
    step for a few of its rows.
    """

    def __init__(self, device: str, limit: int | None = None):
        self.device, self.limit = device, limit
        self.bytes = 0
        self.takes = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def shard(self, stored: Tensor) -> Tensor:
        """Return a shard on the device if it has or finds room there, else as it is."""
        # the key is an address; the entry holds the shard itself, so that no other one can come to lie there
        key = id(stored)
        entry = self._entries.pop(key, None)
        if entry is None:
            if not self._make_room(stored.nbytes):
                return stored
            self.bytes += stored.nbytes
            entry = _Entry(stored, stored.to(self.device), 0)
        self._entries[key] = entry._replace(used=self.takes)
        return entry.moved

    def _make_room(self, wanted: int) -> bool:
        """Drop old shards until ``wanted`` bytes fit; none where that cannot be reached."""
        if self.limit is None:
            return True
        room = self.limit - self.bytes
        old = []
        for key, entry in self._entries.items():
            if room >= wanted or self.takes - entry.used <= PATIENCE:
                break
            old.append(key)
            room += entry.stored.nbytes
        if room < wanted:
            return False
        for key in old:
            entry = self._entries.pop(key)
            self.bytes -= entry.stored.nbytes
        return True


class OnDevice:
    """Rows that are taken onto a device."""

    def __init__(self, shards: Shards, resident: Resident):
        self.shards, self.resident = shards, resident

    def __len__(self) -> int:
        return len(self.shards)

    def part(self, number: int) -> Tensor:
        """Return a shard, on the device where it has room."""
        stored = self.shards.part(number)
        return self.resident.shard(stored)

    def take(self, rows: Tensor) -> Tensor:
        """Return a copy of rows [n] int64 on the device."""
        self.resident.takes += 1
        return self.shards.take(rows, self.resident.device, self.part)

    def lengths(self) -> Tensor | None:
        """Return the number of tokens of each row, on the CPU."""
        return self.shards.lengths()

    def to(self, device: str, limit: int | Resident | None = None) -> Shards | OnDevice:
        """Return the rows for another device."""
        return self.shards.to(device, limit)


def shard_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a decoded split's shards, in order."""
    return sorted(name for name in tensors if name.split("/")[0] == INPUTS)


def row_count(tensors: Mapping[str, Tensor]) -> int:
    """Return how many rows a decoded split has, without making them."""
    count = 0
    for name in shard_names(tensors):
        count += like(tensors, name).shape[0]
    return count
