"""Less memory for time: gradient checkpointing, and blocks that compute on a device which cannot hold the model.

Chen et al., Training deep nets with sublinear memory cost, arXiv 1604.06174. Weights enter a model through
``functional_call``, which has put the base's back when the gradients are computed; so each block keeps the tensors that
it saw on the way forward and is recomputed with those. Hooks that shard or move a module's own parameters (FSDP,
accelerate) would not see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only
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
    # Offloaded ones are recomputed
    blocks = [block for block in _blocks(module) if "forward" not in vars(block)]
    for block in blocks:
        block.forward = _checkpointed(block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def offload(module: nn.Module, device: str | torch.device) -> None:
    """Let the blocks of a module compute on ``device`` from now on, one at a time, with weights from where they are.

    Each block's weights, inputs and, on the way back, gradients are moved for its own computation only, so the device
    holds one block and its activations. Everything outside the blocks is computed where its weights are.

    Raises:
        ValueError: if the module has no list of blocks.
    """
    for block in _blocks(module):
        block.forward = _checkpointed(block, block.forward, torch.device(device))


def _blocks(module: nn.Module) -> list[nn.Module]:
    lists = list(_outermost_lists(module))
    if not lists:
        raise ValueError(f"{type(module).__name__} has no list of blocks to compute one by one")
    return [block for blocks in lists for block in blocks]


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _checkpointed(
    block: nn.Module, forward: Callable, device: torch.device | None = None
) -> Callable:
    original = _Original(block, forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        plain = not torch.is_grad_enabled() or transformed()
        if plain and device is None:
            return forward(*args, **kwargs)
        named = (
            *block.named_parameters(remove_duplicate=False),
            *block.named_buffers(remove_duplicate=False),
        )
        seen: dict[str, Tensor] = {f"block.{name}": tensor for name, tensor in named}

        def again(*inner: Any, **settings: Any) -> Any:
            if device is None:
                return functional_call(original, seen, inner, settings)
            return _elsewhere(original, seen, inner, settings, device)

        if plain:
            return again(*args, **kwargs)
        # Nothing is drawn at random in a block: models compute as at evaluation.
        return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


def _elsewhere(
    module: nn.Module,
    weights: dict[str, Tensor],
    inner: tuple,
    settings: dict[str, Any],
    device: torch.device,
) -> Any:
    """Compute on another device than the weights' own, and bring the result back."""
    home = next(iter(weights.values())).device

    def move(tree: Any, to: torch.device) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(to), tree)

    bf16 = torch.is_autocast_enabled(home.type)
    with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
        found = functional_call(
            module, move(weights, device), move(inner, device), move(settings, device)
        )
    return move(found, home)
