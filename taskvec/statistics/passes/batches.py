"""Examples in pieces whose activations fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from taskvec.errors import UserError
from taskvec.needs import View

MOST = 64
PIXELS = 16 * 224 * 224
TOKENS = 64 * 128

Piece = tuple[Tensor, ...]  # the inputs of one model, or of two on the same examples


def batch_size(inputs: Tensor) -> int:
    """Return how many examples go through a model at once.

    It depends on the inputs' size alone, not on what is collected: statistics that share a pass come out as they would
    alone. Images [N, 3, H, W] of 224 x 224 pixels go by 16, texts [N, L] of 128 tokens by 64.
    """
    image = inputs.ndim == 4
    positions = inputs.shape[-1] * (inputs.shape[-2] if image else 1)
    budget = PIXELS if image else TOKENS
    return max(1, min(MOST, budget // max(1, positions)))


class Batches(Sequence[Piece]):
    """A view's examples in order, cut by their size; or those of two views of the same examples, side by side."""

    def __init__(self, *views: View):
        if len({len(view) for view in views}) > 1:
            counts = " and ".join(str(len(view)) for view in views)
            raise UserError(f"a pair of models must see the same examples, and the views hold {counts}")
        if not len(views[0]):
            raise UserError("no examples to take statistics on; raise the budget or choose another split")
        self.views = views
        self.size = min(batch_size(view.take(slice(0, 1))) for view in views)
        self._rows = list(views[0].batches(self.size))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Piece:
        return tuple(view.take(self._rows[index]) for view in self.views)


def regrouped(pieces: Iterable[Piece], size: int | None) -> Iterator[Piece]:
    """Yield the same examples in groups of ``size``, the last one smaller; None leaves them as they are cut."""
    if size is None:
        yield from pieces
        return
    held: Piece = ()
    for piece in pieces:
        if held:
            piece = tuple(torch.cat(parts) for parts in zip(held, piece, strict=True))
        count = len(piece[0])
        whole = count - count % size
        for first in range(0, whole, size):
            yield tuple(part[first : first + size] for part in piece)
        held = tuple(part[whole:] for part in piece) if whole < count else ()
    if held:
        yield held
