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
    by position, from 0, where these names are no numbers. Where it is not, among those of the machine.

    Raises:
        UserError: if a device is not among them.
    """
    names = [str(device) for device in asked]
    if not names:
        return ()
    granted = inherited()
    if granted is None:
        return tuple(_on_this_machine(name, count()) for name in names)
    return tuple(_among(granted, name) for name in names)


def count() -> int:
    """Return how many CUDA devices this machine has."""
    import torch

    return torch.cuda.device_count()


def _on_this_machine(name: str, devices: int) -> str:
    """Return a device's number or name.

    Raises:
        UserError: if there is no such number; what devices are called, their driver alone knows.
    """
    numbered = name.isdecimal() and int(name) < devices
    if numbered or (devices and name.startswith(NAMED)):
        return name
    raise UserError(f"sweep.devices: {name} is not among this machine's {devices} CUDA devices")


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
