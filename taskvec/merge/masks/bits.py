"""Boolean masks, eight entries to a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PLACES = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def packed(mask: Tensor) -> Tensor:
    """Return a mask of any shape as ceil(n / 8) bytes; the first entry is the lowest bit."""
    flat = mask.reshape(-1).to(torch.uint8)
    missing = -flat.numel() % 8
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    places = PLACES.to(mask.device)
    return (flat.view(-1, 8) * places).sum(dim=1, dtype=torch.uint8)


def unpacked(bytes_: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert :func:`packed`; bool of the given shape."""
    places = PLACES.to(bytes_.device)
    flat = (bytes_.unsqueeze(1) & places) != 0
    return flat.view(-1)[: math.prod(shape)].view(tuple(shape))
