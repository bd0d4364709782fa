"""Rows stored as shards, written one at a time and memory-mapped when read, and the shards that stay on a device."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from taskvec.vectors.deferred import Deferred, like

INPUTS = "inputs"
ROWS, BYTES = 4096, 64 << 20  # the most of one shard
PATIENCE = 1000  # takes for which an unused shard keeps its place on the device


def sharded(
    rows: Callable[[], Iterator[Tensor]], count: int, shape: Sequence[int], beside: Mapping[str, Tensor]
) -> Deferred:
    """Return ``count`` uint8 rows of a shape in shards, each made when it is looked at, and further tensors ``beside``.

    A single shard is called ``inputs``, several ``inputs/00000``, ``inputs/00001``, .... ``rows`` starts the rows from
    the first one. Shards asked for in their order, as a writer does, are cut from one such pass, with one shard in
    memory; any other order starts a new pass.
    """
    size = max(1, min(ROWS, BYTES // math.prod(shape)))
    announced = {}
    for number, start in enumerate(range(0, count, size)):
        length = min(size, count - start)
        name = INPUTS if count <= size else f"{INPUTS}/{number:05d}"
        announced[name] = torch.empty(length, *shape, dtype=torch.uint8, device="meta")
    cutter = _Cutter(rows, announced)
    everything = announced | {name: tensor.to("meta") for name, tensor in beside.items()}
    return Deferred(everything, lambda name: beside[name] if name in beside else cutter.make(name))


class _Cutter:
    """One pass over rows, cut into shards."""

    def __init__(self, rows: Callable[[], Iterator[Tensor]], announced: Mapping[str, Tensor]):
        self.start, self.announced = rows, announced
        self.order = list(announced)
        self.next, self.rows = 0, rows()

    def make(self, name: str) -> Tensor:
        """Return the shard of a name."""
        number = self.order.index(name)
        if number < self.next:
            self.next, self.rows = 0, self.start()
        while self.next < number:
            self._shard()
        return self._shard()

    def _shard(self) -> Tensor:
        wanted = self.announced[self.order[self.next]]
        shard = torch.empty(wanted.shape, dtype=wanted.dtype)
        for place in range(len(shard)):
            shard[place] = next(self.rows)
        self.next += 1
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

    def take(self, rows: Tensor, device: str = "cpu", part: Callable[[int], Tensor] | None = None) -> Tensor:
        """Return a copy of rows [n] int64 as one tensor [n, ...] on a device.

        ``part`` gives a shard by its number from another place.
        """
        first = self.parts[0]
        found = torch.empty(len(rows), *first.shape[1:], dtype=first.dtype, device=device)
        # grouped by shard and ascending inside: each shard is looked up once, the file is read forwards
        ascending, places = rows.sort()
        owners = ascending.div(self.size, rounding_mode="floor")
        numbers, counts = owners.unique_consecutive(return_counts=True)
        start = 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            own = slice(start, start + count)
            source = self.parts[number] if part is None else part(number)
            inside = ascending[own] - number * self.size
            found[places[own].to(device)] = source[inside.to(source.device)].to(device)
            start += count
        return found

    def lengths(self) -> Tensor | None:
        """Return the number of tokens of each row of token ids [N] int64; None for images."""
        if self.parts[0].ndim != 2:
            return None
        return torch.cat([(part >= 0).sum(1) for part in self.parts])

    def to(self, device: str, limit: int | Resident | None = None) -> Shards | OnDevice:
        """Return rows that are taken onto a device; see :meth:`taskvec.data.views.View.to`."""
        if torch.device(device).type == "cpu" and limit is None:
            return self  # the system's page cache keeps what is used
        return OnDevice(self, limit if isinstance(limit, Resident) else Resident(device, limit))


class Resident:
    """The shards that stay on a device, at most ``limit`` bytes of them (None: without a limit).

    A shard that finds no room takes that of the least recently used ones, unless they were used within the last
    ``PATIENCE`` takes: a pass over more than fits, in order or shuffled, would otherwise move every shard at every
    step for a few of its rows.
    """

    def __init__(self, device: str, limit: int | None = None):
        self.device, self.limit = device, limit
        self.bytes, self.takes = 0, 0
        self._shards: OrderedDict[int, tuple[Tensor, Tensor, int]] = OrderedDict()

    def shard(self, part: Tensor) -> Tensor:
        """Return a shard on the device if it has or finds room there, else as it is."""
        known = self._shards.pop(id(part), None)
        if known is None:
            if not self._room(part.nbytes):
                return part
            self.bytes += part.nbytes
            known = (part, part.to(self.device), 0)
        # the key is an address, so the entry holds the shard itself: no other one can come to lie there
        self._shards[id(part)] = (*known[:2], self.takes)
        return known[1]

    def _room(self, wanted: int) -> bool:
        if self.limit is None:
            return True
        old = []
        room = self.limit - self.bytes
        for key, (part, _, used) in self._shards.items():
            if room >= wanted or self.takes - used <= PATIENCE:
                break
            old.append(key)
            room += part.nbytes
        if room < wanted:
            return False
        for key in old:
            self.bytes -= self._shards.pop(key)[0].nbytes
        return True


class OnDevice:
    """Rows that are taken onto a device."""

    def __init__(self, shards: Shards, resident: Resident):
        self.shards, self.resident = shards, resident

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, rows: Tensor) -> Tensor:
        """Return a copy of rows [n] int64 on the device."""
        resident = self.resident
        resident.takes += 1
        return self.shards.take(rows, resident.device, lambda number: resident.shard(self.shards.parts[number]))

    def lengths(self) -> Tensor | None:
        """Return the number of tokens of each row, on the CPU."""
        return self.shards.lengths()

    def to(self, device: str, limit: int | Resident | None = None) -> Shards | OnDevice:
        """Return the rows for another device."""
        return self.shards.to(device, limit)


def shard_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a decoded split's shards, in order."""
    return sorted(name for name in tensors if name == INPUTS or name.startswith(f"{INPUTS}/"))


def row_count(tensors: Mapping[str, Tensor]) -> int:
    """Return how many rows a decoded split has, without making them."""
    return sum(like(tensors, name).shape[0] for name in shard_names(tensors))
