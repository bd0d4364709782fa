"""The CUDA devices that the jobs of a sweep may use: those that this process was given."""

from __future__ import annotations

import os
from collections.abc import Sequence

from taskvec.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
NAMED = ("GPU-", "MIG-")


def inherited() -> tuple[str, ...] | None:
    """Return the devices that ``CUDA_VISIBLE_DEVICES`` grants (numbers, UUIDs, MIG names), None where it is not set."""
    text = os.environ.get(VISIBLE)
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return tuple(name for name in names if name)


def chosen(asked: Sequence[int | str]) -> tuple[str, ...]:
    """Return the names for ``CUDA_VISIBLE_DEVICES`` of the devices that a sweep asks for.

    Where the variable is set, a sweep chooses among its devices: by their names (a UUID by its first characters), or
    by position, from 0, where these names are no numbers.

    Raises:
        UserError: if a device is not among them.
    """
    granted = inherited()
    names = [str(device) for device in asked]
    if granted is None:
        return tuple(names)
    return tuple(_among(granted, name) for name in names)


def _among(granted: Sequence[str], name: str) -> str:
    if name in granted:
        return name
    if name.isdecimal():
        return _at(granted, name)
    if name.startswith(NAMED):
        prefixed = [device for device in granted if device.startswith(name)]
        if len(prefixed) == 1:
            return prefixed[0]
    raise UserError(_missing(granted, name))


def _at(granted: Sequence[str], name: str) -> str:
    """Return the device at a position; where devices are called by numbers, a number is a name.

    Raises:
        UserError: if there is none.
    """
    position = int(name)
    numbered = all(device.isdecimal() for device in granted)
    if numbered or position >= len(granted):
        raise UserError(_missing(granted, name))
    return granted[position]


def _missing(granted: Sequence[str], name: str) -> str:
    listed = ", ".join(granted) or "none"
    return f"sweep.devices: {name} is not among the devices of {VISIBLE} ({listed}), which this command got"
