"""Parameters that differ between tensors: gradients over layers, and filters by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taskvec.errors import UserError
from taskvec.on_disk.mergekit.schema import Setting

LAYER = re.compile(r"(^|\.)(layers|layer|h|block|blocks)\.(\d+)\.")
BEFORE = ("embed", "wte", "wpe", "shared")  # in names of what stands before the layers


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to; None for what stands before or after all."""
    match = LAYER.search(name)
    return int(match[3]) if match else None


def stands_before(name: str) -> bool:
    """Return whether a tensor outside the layers stands before them."""
    return any(part in name for part in BEFORE)


def value_of(setting: Setting, name: str, depth: float) -> Any:
    """Return a setting's value for a tensor at a relative depth in [0, 1]; None where no filter matches.

    A list of numbers is interpolated linearly over the depth. Of conditions the first whose ``filter`` is part of the
    name counts; none, or ``*``, matches every name.

    Raises:
        UserError: for another form.
    """
    if isinstance(setting, bool | int | float | str):
        return setting
    if isinstance(setting, Mapping):
        setting = [dict(setting)]
    if not setting:
        raise UserError("a parameter is an empty list")
    if all(isinstance(value, int | float) for value in setting):
        return _interpolated(setting, depth)
    for condition in setting:
        if not isinstance(condition, Mapping) or not {"value"} <= set(condition) <= {
            "value",
            "filter",
        }:
            raise UserError(f"a condition has a value and a filter, got {condition!r}")
        wanted = condition.get("filter")
        if wanted in (None, "*") or wanted in name:
            return value_of(condition["value"], name, depth)
    return None


def _interpolated(points: list[float], depth: float) -> float:
    place = depth * (len(points) - 1)
    lower = int(place)
    upper = min(len(points) - 1, lower + 1)
    share = place - lower
    return (1 - share) * points[lower] + share * points[upper]
