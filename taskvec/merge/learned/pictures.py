"""Learned coefficients as pictures: vectors by blocks, and how large they are by depth and role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from taskvec.models.layers import LinearLayer
from taskvec.panel import Heat
from taskvec.training.blocks import Blocks


def pictures(
    labels: Sequence[str], coefficients: Tensor, blocks: Blocks, layers: Sequence[LinearLayer]
) -> dict[str, dict[str, Any]]:
    """Return the pictures of coefficients [n, m], each parameter's mean over its columns."""
    by_name = means(coefficients, blocks)
    names = list(by_name)
    rows = [[by_name[name][row].item() for name in names] for row in range(len(labels))]
    found = {"coefficients": _heat("learned coefficients", labels, names, rows)}
    sizes = by_depth(by_name, layers)
    if sizes:
        depths = sorted({depth for own in sizes.values() for depth in own})
        grid = [[own.get(depth, 0.0) for depth in depths] for own in sizes.values()]
        shown = [str(depth) for depth in depths]
        found["by_depth"] = _heat("mean size of coefficients, by role and depth", list(sizes), shown, grid)
    return {name: picture.data() for name, picture in found.items()}


def means(coefficients: Tensor, blocks: Blocks) -> dict[str, Tensor]:
    """Return each parameter's coefficients [n], the mean over its columns."""
    return {name: coefficients[:, layout.columns].mean(1) for name, layout in blocks.layouts.items()}


def by_depth(by_name: Mapping[str, Tensor], layers: Sequence[LinearLayer]) -> dict[str, dict[int, float]]:
    """Return the mean absolute coefficient of the weights of linear layers by role and transformer block."""
    gathered: dict[str, dict[int, list[float]]] = {}
    for layer in layers:
        name = f"{layer.name}.weight"
        if layer.block is None or name not in by_name:
            continue
        size = by_name[name].abs().mean().item()
        gathered.setdefault(layer.role, {}).setdefault(layer.block, []).append(size)
    found: dict[str, dict[int, float]] = {}
    for role, depths in gathered.items():
        found[role] = {depth: sum(sizes) / len(sizes) for depth, sizes in depths.items()}
    return found


def _heat(title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> Heat:
    lines = tuple(tuple(line) for line in values)
    return Heat(title=title, rows=tuple(rows), columns=tuple(columns), values=lines)
