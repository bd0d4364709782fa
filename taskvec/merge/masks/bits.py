"""Boolean masks, eight entries to a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PLACES = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def packed(mask: Tensor) -> Tensor:
    """Return a mask of any shape as ceil(n / 8) bytes; the first entry is the lowest bit."""
    flat = mask.reshape(-1)
    count = math.ceil(len(flat) / 8)
    padded = torch.zeros(8 * count, dtype=torch.uint8, device=mask.device)
    padded[: len(flat)] = flat
    valued = padded.view(count, 8) * PLACES.to(mask.device)
    return valued.sum(dim=1, dtype=torch.uint8)


def unpacked(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert :func:`packed`; bool of the given shape."""
    places = PLACES.to(bits.device)
    found = (bits.unsqueeze(1) & places) != 0
    entries = math.prod(shape)
    return found.view(-1)[:entries].view(tuple(shape))
