"""Which of many tensors is not finite, found with one wait for the device."""

from __future__ import annotations

import torch

from taskvec.vectors import Tensors


def broken(tensors: Tensors) -> str | None:
    """Return the name of the first tensor that holds a value that is not finite; None if all are finite."""
    if not tensors:
        return None
    flags = torch.stack([tensor.detach().isfinite().all() for tensor in tensors.values()])
    for name, finite in zip(tensors, flags.tolist(), strict=True):
        if not finite:
            return name
    return None
