"""State of an unfinished training on disk: parameters, moments, step and curve, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskvec.vectors import weights_hash

log = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoint:
    """One safetensors file in ``folder``, with a checksum of its own, written at most every ``every`` seconds."""

    def __init__(self, folder: Path, every: float):
        self.path = folder / "training.safetensors"
        self.every = every
        self.last = time.monotonic()

    def restore(self, trainable: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> tuple[int, list[dict]]:
        """Load the state into parameters and optimiser and return (steps done, curve); (0, []) if there is none."""
        try:
            state, step, curve = self._read(trainable)
        except FileNotFoundError:
            return 0, []
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            log.warning("checkpoint %s cannot be read (%s); training starts again", self.path, error)
            return 0, []
        for name, parameter in trainable.items():
            with torch.no_grad():
                parameter.copy_(state[f"parameter/{name}"])
            moments = {key: state[f"{key}/{name}"].to(parameter.device) for key in MOMENTS if f"{key}/{name}" in state}
            if moments:  # none if the parameter never had a gradient
                optimiser.state[parameter] = {"step": torch.tensor(float(step)), **moments}
        log.info("training resumes at step %d", step)
        return step, curve

    def _read(self, trainable: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int, list[dict]]:
        """Return state, steps done and curve.

        Raises:
            ValueError: if the content is not as written, or a tensor has not the shape of its parameter.
        """
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        header = json.loads(metadata["taskvec"])
        if _digest(state, metadata["taskvec"]) != metadata["sha256"]:
            raise ValueError("its checksum is wrong")
        for name, parameter in trainable.items():
            if state[f"parameter/{name}"].shape != parameter.shape:
                raise ValueError(f"{name} has another shape")
        return state, header["step"], header["curve"]

    def save_if_due(
        self, step: int, trainable: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, curve: list[dict]
    ) -> None:
        """Write the state if ``every`` seconds have passed since the last time."""
        if time.monotonic() - self.last < self.every:
            return
        state = {f"parameter/{name}": p.detach() for name, p in trainable.items()}
        for name, parameter in trainable.items():
            moments = optimiser.state.get(parameter, {})  # none if the parameter never had a gradient
            state |= {f"{key}/{name}": tensor for key, tensor in moments.items() if key in MOMENTS}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        text = json.dumps({"step": step, "curve": curve})
        save_file(state, temporary, metadata={"taskvec": text, "sha256": _digest(state, text)})
        os.replace(temporary, self.path)
        self.last = time.monotonic()


def _digest(state: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{weights_hash(state)}{text}".encode()).hexdigest()
