"""How many examples go through a model at once where that changes no result: evaluation and statistics.

``auto`` doubles the number on a CUDA device, with the real computation on the heaviest examples, until the device runs
out of memory or the next doubling would take more than ``SHARE`` of what is free. On another device it takes as many
examples as keep the largest output of a layer below ``LARGEST`` bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

FIRST, MOST = 16, 4096
SHARE = 0.8
LARGEST = 32 << 20  # half of what freed memory is kept for (graph/workspace.py)

Wish = int | Literal["auto"] | None
Trial = Callable[[int], object]


class Fit(NamedTuple):
    """A number of examples that fit, and whether more may."""

    size: int
    more: bool


class Batching:
    """The wish, and what was found for each way of computing; a wish of None takes the usual sizes."""

    def __init__(self, wish: Wish = None):
        self.wish = wish
        self._found: dict[Hashable, Fit] = {}

    def size(
        self, usual: int, most: int, key: Hashable, trial: Trial, device: torch.device | str
    ) -> int:
        """Return how many of ``most`` examples to take at once; ``trial(n)`` computes n of the heaviest.

        What is found holds for all calls of one ``key``: a way of computing on examples of one shape.
        """
        if self.wish is None:
            return usual
        if self.wish != "auto":
            return self.wish
        most = max(1, min(most, MOST))
        known = self._found.get(key, Fit(0, more=True))
        if known.more and known.size < most:
            known = fitting(trial, known.size, most, torch.device(device))
            self._found[key] = known
        return min(known.size, most)


def fitting(trial: Trial, known: int, most: int, device: torch.device) -> Fit:
    """Return how many examples, up to ``most``, fit on a device; ``known`` ones do."""
    # Compiled programs would be made for sizes that nobody asks for again
    with torch.compiler.set_stance("force_eager"):
        if device.type == "cuda":
            return _doubled(trial, known, most, device)
        widest = _largest_output(trial)
    size = min(MOST, max(1, LARGEST // max(1, widest)))
    return Fit(size, more=False)


def _doubled(trial: Trial, known: int, most: int, device: torch.device) -> Fit:
    """Double from ``known`` examples on while the device holds them."""
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved(device)
    fits, size = known, min(most, max(FIRST, 2 * known))
    while fits < most:
        try:
            trial(size)
            torch.cuda.synchronize(device)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return _halved(trial, size) if fits == 0 else Fit(fits, more=False)
        fits = size
        taken = torch.cuda.memory_reserved(device) - reserved
        free, _ = torch.cuda.mem_get_info(device)
        if 2 * taken > SHARE * (free + taken):
            return Fit(fits, more=False)
        size = min(most, 2 * size)
    return Fit(fits, more=True)


def _halved(trial: Trial, size: int) -> Fit:
    """Halve a number that did not fit until one does; a single example that does not is the caller's error."""
    while size > 1:
        size //= 2
        try:
            trial(size)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        return Fit(size, more=False)
    return Fit(1, more=False)


def _largest_output(trial: Trial) -> int:
    """Return the bytes of the largest output of a module for one example."""
    sizes = [0]

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                sizes.append(leaf.nbytes)

    with _at_every_module(note):
        trial(1)
    return max(sizes)


@contextmanager
def _at_every_module(hook: Callable) -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
