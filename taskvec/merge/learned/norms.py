"""Which parameters are those of normalisation layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from taskvec.errors import UserError
from taskvec.models.layers import LinearLayer


def norm_names(
    module: nn.Module, names: Iterable[str], layers: Sequence[LinearLayer], spare: int
) -> list[str]:
    """Return the editable parameters of norms but those inside the last ``spare`` transformer blocks.

    A norm is a module whose class is named so (LayerNorm, RMSNorm, ...).

    Raises:
        UserError: if no norm is left.
    """
    blocks = sorted({layer.block for layer in layers if layer.block is not None})
    spared = blocks[-spare:] if spare else []
    inside = tuple(
        _block_prefix(layer.name, layer.block) for layer in layers if layer.block in spared
    )
    editable, found = set(names), []
    for path, child in module.named_modules():
        is_norm = type(child).__name__.endswith("Norm")
        if not is_norm or path.startswith(inside):
            continue
        for name, _ in child.named_parameters(recurse=False):
            full = f"{path}.{name}"
            if full in editable:
                found.append(full)
    if not found:
        raise UserError(f"merge=norms: all norms lie in the last {spare} blocks; lower merge.spare")
    return found


def _block_prefix(name: str, block: int) -> str:
    """Return the path of the transformer block that a layer lies in: up to and with its number, else its parent's."""
    parts = name.split(".")
    number = str(block)
    inside = parts[: parts.index(number) + 1] if number in parts else parts[:-1]
    return ".".join(inside) + "."
