"""How a model's description is read: what is malformed, and how its images are to be prepared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from taskvec.errors import UserError

CHANNELS = 3


@contextmanager
def malformed(name: str) -> Iterator[None]:
    """Tell what goes wrong while a model's description is read as one line about the backbone.

    Raises:
        UserError: for whatever is wrong with it.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"backbone.architecture: {error}") from error
    except (TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"backbone.architecture: {name}: malformed model description ({error})"
        ) from error


def folder_preprocessing(
    file: Path, defaults: Mapping[str, Any], allowed: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return the preprocessing that a model's description names, with defaults for what it leaves out.

    Raises:
        UserError: for a mean or deviation that is none, and for a word that is not ``allowed``.
    """
    described = json.loads(file.read_text(encoding="utf-8"))
    stored = described.get("preprocess_cfg") or {}
    if not isinstance(stored, Mapping):
        raise UserError(f"{file}: preprocess_cfg must be a mapping, got {stored!r}")
    found = {key: stored.get(key, value) for key, value in defaults.items()}
    for key in found.keys() & {"mean", "std"}:
        _check_channels(file, key, found[key])
    for key in found.keys() & allowed.keys():
        if found[key] not in allowed[key]:
            known = " or ".join(allowed[key])
            raise UserError(f"{file}: {key} {found[key]!r} (only {known})")
    return found


def _check_channels(file: Path, key: str, value: Any) -> None:
    """Check a number for each channel; deviations are divided by.

    Raises:
        UserError: if it is anything else.
    """
    values = value if isinstance(value, list) else []
    numbers = [entry for entry in values if isinstance(entry, int | float) and isfinite(entry)]
    right = len(values) == len(numbers) == CHANNELS
    if right and key == "std":
        right = min(numbers) > 0
    if not right:
        rule = "three positive numbers" if key == "std" else "three numbers"
        raise UserError(f"{file}: {key} must be {rule}, got {value!r}")
