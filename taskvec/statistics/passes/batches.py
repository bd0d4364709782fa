"""Examples in pieces whose activations fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from taskvec.errors import UserError
from taskvec.models.batching import Batching
from taskvec.needs import View

MOST = 64
PIXELS = 16 * 224 * 224
TOKENS = 64 * 128
EMPTY = "no examples to take statistics on; raise the budget or choose another split"

Piece = tuple[Tensor, ...]  # the inputs of one model, or of two on the same examples


def batch_size(inputs: Tensor) -> int:
    """Return how many examples go through a model at once.

    It depends on the inputs' size alone, not on what is collected: statistics that share a pass come out as they would
    alone. Images [N, 3, H, W] of 224 x 224 pixels go by 16, texts [N, L] of 128 tokens by 64.
    """
    if inputs.ndim == 4:
        fitting = PIXELS // max(1, inputs.shape[-1] * inputs.shape[-2])
    else:
        fitting = TOKENS // max(1, inputs.shape[-1])
    return max(1, min(MOST, fitting))


class Batches(Sequence[Piece]):
    """A view's examples in order, cut by their size; or those of two views of the same examples, side by side.

    ``batching`` may wish for other pieces, which :meth:`fit` cuts.
    """

    def __init__(self, *views: View, batching: Batching | None = None):
        counts = [len(view) for view in views]
        if len(set(counts)) > 1:
            raise UserError(
                f"a pair of models must see the same examples, and the views hold {counts}"
            )
        if counts[0] == 0:
            raise UserError(EMPTY)
        self.views = views
        self.batching = batching or Batching()
        first = [view.take(slice(0, 1)) for view in views]
        self.shapes = tuple(tuple(inputs.shape[1:]) for inputs in first)
        self.size = min(batch_size(inputs) for inputs in first)
        self._rows = list(views[0].batches(self.size))

    def fit(self, key: Hashable, look: Callable[[Piece], object], device: torch.device) -> None:
        """Cut the examples as ``batching`` wishes; ``look`` computes a piece in the way that ``key`` names."""

        def trial(count: int) -> None:
            rows = slice(0, count)
            look(tuple(view.take(rows) for view in self.views))

        whole = (key, self.shapes)
        self.size = self.batching.size(self.size, len(self.views[0]), whole, trial, device)
        self._rows = list(self.views[0].batches(self.size))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Piece:
        rows = self._rows[index]
        return tuple(view.take(rows) for view in self.views)


def regrouped(pieces: Iterable[Piece], size: int | None) -> Iterator[Piece]:
    """Yield the same examples in groups of ``size``, the last one smaller; None leaves them as they are cut."""
    if size is None:
        yield from pieces
        return
    held: Piece = ()
    for piece in pieces:
        if held:
            both = zip(held, piece, strict=True)
            piece = tuple(torch.cat(parts) for parts in both)
        count = len(piece[0])
        whole = count - count % size
        for first in range(0, whole, size):
            yield tuple(part[first : first + size] for part in piece)
        held = tuple(part[whole:] for part in piece) if whole < count else ()
    if held:
        yield held
