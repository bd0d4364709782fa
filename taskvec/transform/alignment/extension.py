"""A source with fewer blocks than the target, extended to the target's depth (theseus spec 1.6).

Blocks are inserted behind those they descend from, as copies or as averages with the following block. The rule is
linear in the weights, and so a task vector is extended like the weights it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import cycle, islice
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from taskvec.errors import UserError

Order = Literal["bottom_top", "top_bottom"]
Spread = Literal["spread", "clump", "spread_mod"]

IN_STACK = re.compile(r"(?P<stack>.*?)\.(?P<index>\d+)\.(?P<rest>.+)")


class Block(NamedTuple):
    """A block of the extended model: the original block it descends from, and whether it was added."""

    origin: int
    added: bool


Lineage: TypeAlias = tuple[Block, ...]


def schedule(
    depth: int, count: int, order: Order = "bottom_top", spread: Spread = "spread"
) -> list[int]:
    """Return which of ``depth`` blocks is extended, ``count`` times.

    "spread" goes through the blocks in order, again if need be, "spread_mod" without the last one, "clump" takes the
    first of the order each time.
    """
    blocks = list(range(depth))
    if spread == "spread_mod" and depth > 1:
        blocks.pop()
    if order == "top_bottom":
        blocks.reverse()
    if spread == "clump":
        blocks = blocks[:1]
    return list(islice(cycle(blocks), count))


def lineage(depth: int, picks: Iterable[int]) -> Lineage:
    """Return the extended stack of blocks: each pick adds one behind the last block that descends from it."""
    blocks = [Block(index, added=False) for index in range(depth)]
    for pick in picks:
        descendants = [position for position, block in enumerate(blocks) if block.origin == pick]
        blocks.insert(descendants[-1] + 1, Block(pick, added=True))
    return tuple(blocks)


def depths(names: Iterable[str]) -> dict[str, int]:
    """Return the number of blocks of each stack, by the path of the list they stand in."""
    found: dict[str, int] = {}
    for name in names:
        match = IN_STACK.fullmatch(name)
        if match:
            stack, index = match["stack"], int(match["index"])
            found[stack] = max(found.get(stack, 0), index + 1)
    return found


def lineages(
    source: Iterable[str], target: Iterable[str], order: Order, spread: Spread
) -> dict[str, Lineage]:
    """Return how each stack of the source grows to the target's depth; empty where all are as deep already.

    ``source`` and ``target`` are the names of all parameters.

    Raises:
        UserError: if the source has more blocks than the target.
    """
    wanted = depths(target)
    grown = {}
    for stack, depth in depths(source).items():
        there = wanted.get(stack, 0)
        if there < depth:
            raise UserError(
                f"the source has {depth} blocks in {stack} and the target {there}; vectors are carried to models that "
                "are as deep or deeper: swap source and backbone"
            )
        if there > depth:
            picks = schedule(depth, there - depth, order, spread)
            grown[stack] = lineage(depth, picks)
    return grown


class Extension:
    """The rule that makes an extended model's tensors from the original ones.

    ``names`` are those of the extended model's parameters. An added block is the mean of its origin and the block after
    it with ``average``, else a copy of its origin.
    """

    def __init__(self, grown: Mapping[str, Lineage], names: Iterable[str], *, average: bool):
        self.grown, self.names, self.average = grown, list(names), average

    def added(self, name: str) -> bool:
        """Return whether a tensor of the extended model belongs to an added block."""
        match = IN_STACK.fullmatch(name)
        if not match or match["stack"] not in self.grown:
            return False
        return self.grown[match["stack"]][int(match["index"])].added

    def parents(self, name: str) -> list[str]:
        """Return the names of the original tensors whose mean an extended tensor is."""
        match = IN_STACK.fullmatch(name)
        if not match or match["stack"] not in self.grown:
            return [name]
        blocks = self.grown[match["stack"]]
        block = blocks[int(match["index"])]
        origins = {block.origin}
        if block.added and self.average:
            last = max(other.origin for other in blocks)
            origins.add(min(block.origin + 1, last))
        return [f"{match['stack']}.{origin}.{match['rest']}" for origin in sorted(origins)]

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the extended tensors; one whose parents are all absent (zero, in a task vector) is absent too."""
        extended = {}
        for name in self.names:
            parents = self.parents(name)
            present = [tensors[parent] for parent in parents if parent in tensors]
            if present:
                extended[name] = sum(present[1:], present[0]) / len(parents)
        return extended
