"""Gradient checkpointing: the inside of every block is computed again on the way back instead of being kept.

Chen et al., Training deep nets with sublinear memory cost, arXiv 1604.06174. Weights enter a model through
``functional_call``, which has put the base's back when the gradients are computed; so each block keeps the tensors that
it saw on the way forward and is recomputed with those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from taskvec.models.layers_torch import transformed


class _Original(nn.Module):
    """A block under its original forward, to which ``functional_call`` can give other weights."""

    def __init__(self, block: nn.Module, forward: Callable) -> None:
        super().__init__()
        self.block, self.original = block, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block."""
        return self.original(*args, **kwargs)


@contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """Recompute the blocks of a module, the members of its outermost lists, in every backward pass inside.

    Raises:
        ValueError: if the module has no list of blocks.
    """
    blocks = list(_blocks(module))
    if not blocks:
        raise ValueError(f"{type(module).__name__} has no list of blocks whose gradients could be checkpointed")
    for block in blocks:
        block.forward = _checkpointed(block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _checkpointed(block: nn.Module, forward: Callable) -> Callable:
    original = _Original(block, forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or transformed():
            return forward(*args, **kwargs)
        named = (*block.named_parameters(remove_duplicate=False), *block.named_buffers(remove_duplicate=False))
        seen: dict[str, Tensor] = {f"block.{name}": tensor for name, tensor in named}

        def again(*inner: Any, **settings: Any) -> Any:
            return functional_call(original, seen, inner, settings)

        # Nothing is drawn at random in a block: models compute as at evaluation.
        return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
