"""Permutations of units that bring one model's weights closest to another's, without data (TransFusion).

Exchanging the units of a space in every tensor that reads or writes it leaves a network's function as it is. Spaces
that must be exchanged alike form one group: all that is added to the residual stream; the hidden units of an MLP; the
attention of a block, whose heads may change places and, within a head, its channels. Group by group the permutation
that maximises sum <theta_B, P theta_A> is found exactly, the others held fixed, until none changes (Ainsworth et al.
2023, algorithm 1; Rinaldi et al. 2025 for the two levels of heads).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from taskvec.models.layers import Heads
from taskvec.transform.alignment.transport import Axes

Tensors: TypeAlias = Mapping[str, Tensor]
# By space: unit i of the target is unit permutation[i] of the source
Permutations: TypeAlias = dict[str, Tensor]

SWEEPS = 100  # of all groups, at most; a handful suffices


class Group(NamedTuple):
    """Spaces that are permuted together."""

    kind: Literal["units", "heads"]
    name: str


# The end of a space's name -> the group it is permuted with: the one stream of all blocks, or a group of its block.
_STREAM = (
    "residual", "ln_pre", "attn.in", ".out", "attn.out_norm", "cross.in", "mlp.in", "mlp.proj", "mlp.proj_norm",
    "ls_1", "ls_2", "projection.in", "final", "relative", "conv",
)  # fmt: skip
_HIDDEN = ("mlp.fc", "mlp.gate", "mlp.up", "mlp.hidden")
_QUERY_KEY = ("q", "k", "pos_q", "pos_k")
_BY_HEAD = ("q", "pos_q", "heads")  # the others have one slice for each group of heads


def group_of(space: str) -> Group | None:
    """Return the group of a space, None for those that keep their order (image features, which fixed heads read)."""
    if space.endswith(_STREAM):
        return Group("units", "residual")
    for role in _HIDDEN:
        if space.endswith(role):
            block = space.removesuffix(role)
            return Group("units", f"{block}mlp")
    path, _, member = space.rpartition(".")
    if path.endswith(("attn", "cross")) and member in (*_QUERY_KEY, "v", "heads"):
        return Group("heads", path)
    return None


def permute(tensor: Tensor, axes: Axes, permutations: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor with every axis in the order of its space's permutation."""
    for axis, space in enumerate(axes):
        if space in permutations:
            order = permutations[space].to(tensor.device)
            tensor = tensor.index_select(axis, order)
    return tensor


def match(source: Tensors, target: Tensors, axes: Mapping[str, Axes], heads: Heads) -> Permutations:
    """Return the permutation of each space that carries the source's weights closest to the target's."""
    search = _Search(source, target, axes)
    groups = search.groups()
    for _ in range(SWEEPS):
        changed = False
        for group, spaces in groups.items():
            found = (
                _units(search, spaces)
                if group.kind == "units"
                else _attention(search, spaces, heads)
            )
            for space, order in found.items():
                changed |= not torch.equal(order, search.permutations[space])
            search.permutations.update(found)
        if not changed:
            break
    return search.permutations


@dataclass
class _Search:
    """Two models' weights, and the permutations found so far."""

    source: Tensors
    target: Tensors
    axes: Mapping[str, Axes]

    def __post_init__(self) -> None:
        self.readers: dict[str, list[tuple[str, int]]] = {}
        self.permutations: Permutations = {}
        for name, spaces in self.axes.items():
            for axis, space in enumerate(spaces):
                if space is None or group_of(space) is None:
                    continue
                self.readers.setdefault(space, []).append((name, axis))
                length = self.source[name].shape[axis]
                self.permutations[space] = torch.arange(length)

    def groups(self) -> dict[Group, list[str]]:
        """Return the spaces of each group, the residual stream first: pixels, words and positions anchor it."""
        groups: dict[Group, list[str]] = {Group("units", "residual"): []}
        for space in self.readers:
            groups.setdefault(group_of(space), []).append(space)
        return {group: spaces for group, spaces in groups.items() if spaces}

    def similarity(self, space: str) -> Tensor:
        """Return the inner product of each unit of the target with each of the source [n, n], other axes permuted."""
        total = torch.zeros((), dtype=torch.float64)
        for name, axis in self.readers[space]:
            others = {other: order for other, order in self.permutations.items() if other != space}
            moved = permute(self.source[name], self.axes[name], others)
            total = total + _rows(self.target[name], axis) @ _rows(moved, axis).mT
        return total


def _rows(tensor: Tensor, axis: int) -> Tensor:
    """Return the slices along an axis as rows [n, rest] float64."""
    front = tensor.movedim(axis, 0)
    return front.reshape(len(front), -1).double()


def _units(search: _Search, spaces: list[str]) -> Permutations:
    similarity = sum(search.similarity(space) for space in spaces)
    order, _ = _assign(similarity)
    return dict.fromkeys(spaces, order)


def _attention(search: _Search, spaces: list[str], heads: Heads) -> Permutations:
    """Return the best exchange of key-value groups, of heads within them, and of channels within heads."""
    by_member = {space.rpartition(".")[2]: space for space in spaces}
    groups, share = heads.key_value, heads.query // heads.key_value
    similar = {}
    for member, space in by_member.items():
        per_group = share if member in _BY_HEAD else 1
        similar[member] = _blocks(search.similarity(space), groups, per_group)
    gains = torch.zeros(groups, groups, dtype=torch.float64)
    choices = {}
    for there, here in itertools.product(range(groups), repeat=2):
        of_pair = {member: blocks[there, here] for member, blocks in similar.items()}
        choices[there, here] = _best_choice(of_pair, heads)
        gains[there, here] = choices[there, here].gain
    order, _ = _assign(gains, free=heads.places)
    chosen = [(here, choices[there, here]) for there, here in enumerate(order.tolist())]
    return {space: _orders(member, chosen, heads.width) for member, space in by_member.items()}


def _blocks(similarity: Tensor, groups: int, share: int) -> Tensor:
    """Return a similarity [n, n] cut into groups, heads and channels: [group, group, share, share, width, width]."""
    width = len(similarity) // (groups * share)
    cut = similarity.reshape(groups, share, width, groups, share, width)
    return cut.permute(0, 3, 1, 4, 2, 5)


class _Choice(NamedTuple):
    """A way to put one group of heads in another's place: the order of its heads and of the channels in each."""

    gain: Tensor
    heads: Tensor  # [share]
    query_key: Tensor  # [width]
    value: Tensor  # [width]


def _best_choice(similar: Mapping[str, Tensor], heads: Heads) -> _Choice:
    """Return the best choice for one pair of groups, from the similarities of their members.

    Heads that share keys are put in order by their queries as they stand, then channels are for all of them together.
    """
    queries = similar["q"]
    order, _ = _assign(queries.diagonal(dim1=2, dim2=3).sum(-1), free=heads.places)
    paired = range(len(order)), order.tolist()
    by_kind = {"query_key": 0, "value": 0}
    for member, blocks in similar.items():
        kind = "query_key" if member in _QUERY_KEY else "value"
        of_heads = blocks[paired] if member in _BY_HEAD else blocks[0]
        by_kind[kind] = by_kind[kind] + of_heads.sum(0)
    query_key, first = _assign(by_kind["query_key"], free=heads.channels)
    value, second = _assign(by_kind["value"])
    return _Choice(first + second, order, query_key, value)


def _orders(member: str, chosen: list[tuple[int, _Choice]], width: int) -> Tensor:
    """Return the permutation of one space of attention from the chosen group, heads and channels at each place."""
    orders = []
    for group, choice in chosen:
        channels = choice.query_key if member in _QUERY_KEY else choice.value
        heads = choice.heads.tolist() if member in _BY_HEAD else [0]
        first = group * len(heads)
        for head in heads:
            orders.append((first + head) * width + channels)
    return torch.cat(orders)


def _assign(similarity: Tensor, *, free: bool = True) -> tuple[Tensor, Tensor]:
    """Return the permutation that maximises sum_i similarity[i, order[i]], and that sum; none unless ``free``."""
    from scipy.optimize import linear_sum_assignment

    if not free:
        return torch.arange(len(similarity)), similarity.trace()
    rows, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns), similarity[rows, columns].sum()
