"""State of an unfinished training on disk: parameters, moments, step and curve, replaced atomically."""

from __future__ import annotations

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

log = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoint:
    """One safetensors file in ``folder``, written at most every ``every`` seconds."""

    def __init__(self, folder: Path, every: float):
        self.path = folder / "training.safetensors"
        self.every = every
        self.last = time.monotonic()

    def restore(self, trainable: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> tuple[int, list[dict]]:
        """Load the state into parameters and optimiser and return (steps done, curve); (0, []) if there is none."""
        try:
            with safe_open(self.path, "pt") as file:
                header = json.loads(file.metadata()["taskvec"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except FileNotFoundError:
            return 0, []
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            log.warning("checkpoint %s cannot be read (%s); training starts again", self.path, error)
            return 0, []
        for name, parameter in trainable.items():
            with torch.no_grad():
                parameter.copy_(state[f"parameter/{name}"])
            moments = {key: state[f"{key}/{name}"].to(parameter.device) for key in MOMENTS}
            optimiser.state[parameter] = {"step": torch.tensor(float(header["step"])), **moments}
        log.info("training resumes at step %d", header["step"])
        return header["step"], header["curve"]

    def save_if_due(
        self, step: int, trainable: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, curve: list[dict]
    ) -> None:
        """Write the state if ``every`` seconds have passed since the last time."""
        if time.monotonic() - self.last < self.every:
            return
        state = {f"parameter/{name}": p.detach() for name, p in trainable.items()}
        for name, parameter in trainable.items():
            state |= {f"{key}/{name}": optimiser.state[parameter][key] for key in MOMENTS}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        text = json.dumps({"step": step, "curve": curve})
        save_file({n: t.cpu().contiguous() for n, t in state.items()}, temporary, metadata={"taskvec": text})
        os.replace(temporary, self.path)
        self.last = time.monotonic()
