"""Learned coefficients as pictures: vectors by blocks, and how large they are by depth and role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskvec.models.layers import LinearLayer
from taskvec.panel import Heat
from taskvec.training.blocks import Blocks


def pictures(
    labels: Sequence[str], coefficients: Tensor, blocks: Blocks, layers: Sequence[LinearLayer]
) -> dict[str, dict[str, Any]]:
    """Return the pictures of coefficients [n, m], each parameter's mean over its columns."""
    by_name = means(coefficients, blocks)
    columns = torch.stack(list(by_name.values()), dim=1)
    found = {"coefficients": _heat("learned coefficients", labels, list(by_name), columns.tolist())}
    sizes = by_depth(by_name, layers)
    depths = sorted({depth for own in sizes.values() for depth in own})
    if depths:
        grid = []
        for own in sizes.values():
            line = [own.get(depth, 0.0) for depth in depths]
            grid.append(line)
        shown = [str(depth) for depth in depths]
        found["by_depth"] = _heat(
            "mean size of coefficients, by role and depth", list(sizes), shown, grid
        )
    return {name: picture.data() for name, picture in found.items()}


def means(coefficients: Tensor, blocks: Blocks) -> dict[str, Tensor]:
    """Return each parameter's coefficients [n], the mean over its columns."""
    return {
        name: coefficients[:, layout.columns].mean(1) for name, layout in blocks.layouts.items()
    }


def by_depth(
    by_name: Mapping[str, Tensor], layers: Sequence[LinearLayer]
) -> dict[str, dict[int, float]]:
    """Return the mean absolute coefficient of the weights of linear layers by role and transformer block."""
    gathered: dict[tuple[str, int], list[float]] = {}
    for layer in layers:
        name = f"{layer.name}.weight"
        if layer.block is None or name not in by_name:
            continue
        size = by_name[name].abs().mean()
        together = gathered.setdefault((layer.role, layer.block), [])
        together.append(size.item())
    found: dict[str, dict[int, float]] = {}
    for (role, depth), sizes in gathered.items():
        own = found.setdefault(role, {})
        own[depth] = sum(sizes) / len(sizes)
    return found


def _heat(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]
) -> Heat:
    lines = tuple(tuple(line) for line in values)
    return Heat(title=title, rows=tuple(rows), columns=tuple(columns), values=lines)
