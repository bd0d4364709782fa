"""Which of many tensors is not finite, found with one wait for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def broken(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds a value that is not finite; None if all are finite."""
    if not tensors:
        return None
    flags = torch.stack([tensor.detach().isfinite().all() for tensor in tensors.values()])
    for name, finite in zip(tensors, flags.tolist(), strict=True):
        if not finite:
            return name
    return None
