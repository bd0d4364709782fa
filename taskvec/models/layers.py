"""The names by which everything that hooks, selects or merges layers knows them."""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION_ROLES = ("attn.q", "attn.k", "attn.v", "attn.out")
MLP_ROLES = ("mlp.fc", "mlp.proj")
# Blocks; a description that says more is damaged, and would be written out layer by layer
DEEPEST = 1024


@dataclass(frozen=True)
class Heads:
    """How attention is cut into heads: ``query`` of them, ``key_value`` groups, ``width`` channels each.

    ``channels`` says whether the channels of a head's q and k may be exchanged without a change of function (rotary
    embeddings give each a place), ``places`` whether heads may (T5's position biases belong to heads, in all blocks).
    """

    query: int
    key_value: int
    width: int
    channels: bool = True
    places: bool = True


@dataclass(frozen=True)
class LinearLayer:
    """One weight matrix of a canonical model.

    ``name`` is the module's path (its weight is ``name + ".weight"``), ``role`` its function, the same in every block,
    and ``block`` the index of its transformer block, None outside the blocks.
    """

    name: str
    role: str
    block: int | None = None
