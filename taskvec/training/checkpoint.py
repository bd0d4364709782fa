"""The state of an unfinished computation on disk: one safetensors file with a checksum, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from taskvec.vectors import Tensors, save_tensors, weights_hash

log = logging.getLogger(__name__)

State = Mapping[str, Any]  # tensors and JSON values, nested in mappings


class Checkpoint:
    """One file in ``folder``, written at most every ``every`` seconds."""

    def __init__(self, folder: Path, every: float):
        self.path = folder / "training.safetensors"
        self.every = every
        self.last = time.monotonic()

    def restore(self) -> dict[str, Any] | None:
        """Return the last state saved; None if there is none, or with a warning if it cannot be read."""
        try:
            return self._read()
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            log.warning(
                "checkpoint %s cannot be read (%s); training starts again", self.path, error
            )
            return None

    def _read(self) -> dict[str, Any]:
        """Return the state.

        Raises:
            ValueError: if the content is not as written.
        """
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        text = metadata["taskvec"]
        if _digest(tensors, text) != metadata["sha256"]:
            raise ValueError("its checksum is wrong")
        return _nested(json.loads(text), tensors)

    def save_if_due(self, state: Callable[[], State]) -> None:
        """Write a state if ``every`` seconds have passed since the last time; it is made only then."""
        if time.monotonic() - self.last < self.every:
            return
        tensors: dict[str, Tensor] = {}
        text = json.dumps(_flat(state(), tensors))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        save_tensors(temporary, tensors, {"taskvec": text, "sha256": _digest(tensors, text)})
        os.replace(temporary, self.path)
        self.last = time.monotonic()


def _flat(value: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return a nested value as JSON, its tensors moved into ``tensors`` under numbers.

    Raises:
        TypeError: for a mapping whose keys are not strings, which JSON would turn into strings.
    """
    if isinstance(value, Tensor):
        number = str(len(tensors))
        tensors[number] = value.detach()
        return {"tensor": number}
    if not isinstance(value, Mapping):
        return {"value": value}
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"a checkpoint's keys are strings, got {key!r}")
    return {"mapping": {key: _flat(child, tensors) for key, child in value.items()}}


def _nested(node: Mapping[str, Any], tensors: Tensors) -> Any:
    """Invert :func:`_flat`."""
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "mapping" in node:
        return {key: _nested(child, tensors) for key, child in node["mapping"].items()}
    return node["value"]


def _digest(tensors: Tensors, text: str) -> str:
    return hashlib.sha256(f"{weights_hash(tensors)}{text}".encode()).hexdigest()
