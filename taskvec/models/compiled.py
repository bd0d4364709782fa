"""A model whose forward pass is compiled, with its weights as inputs: one program serves every composition.

A program is made for each way of calling it (with gradients or without, in which dtypes) at the first batch, and one
more when the size of a batch or the length of its texts changes, which then serves all sizes. It computes the same
formula, and rounds in another order where it fuses operations.
"""

from __future__ import annotations

import copy
import os
import shutil
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call

from taskvec.errors import UserError

if TYPE_CHECKING:
    from taskvec.models.base import Model

PROGRAMS = 64  # of all models in a process; beyond that PyTorch would stop compiling
REMEDY = "use compute.compile=false"


def compiled(model: Model, backend: str = "inductor") -> Model:
    """Return the model with a compiled :meth:`~taskvec.models.base.Model.call`; weights and module are shared.

    It is for the model itself: transforms (``torch.func``), hooks and blocks that were wrapped want the original.
    """
    torch._dynamo.config.recompile_limit = PROGRAMS
    fast = copy.copy(model)
    fast.call = _Compiled(model, backend)
    return fast


class _Compiled:
    """The value of a model's module, compiled; every call names every weight, so that all calls look alike."""

    def __init__(self, model: Model, backend: str):
        self.base = model.parameters
        module = model.module

        def forward(weights: dict[str, Tensor], arguments: tuple) -> Any:
            return functional_call(module, weights, arguments)

        self.program = torch.compile(forward, backend=backend)

    def __call__(self, parameters: Mapping[str, Tensor], *arguments: Any) -> Any:
        """Return the module's value with some weights in place of the base's.

        Raises:
            UserError: if it cannot be compiled.
        """
        weights = {**self.base, **parameters}
        try:
            return self.program(weights, arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"compute.compile: the model cannot be compiled ({reason}); {REMEDY}"
            ) from error


def check_compiler(device: str) -> None:
    """Check that what ``torch.compile`` writes can be built for a device: C++ on the CPU, Triton and C on CUDA.

    Raises:
        UserError: naming what is missing.
    """
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"compute.compile: not on {kind}; {REMEDY}")
    if kind == "cuda" and find_spec("triton") is None:
        raise UserError(f"compute.compile: Triton is missing (`pip install triton`); {REMEDY}")
    names = ("g++", "clang++") if kind == "cpu" else ("gcc", "clang", "cc")
    variable = "CXX" if kind == "cpu" else "CC"
    chosen = os.environ.get(variable)
    wanted = (chosen,) if chosen else names
    if not any(shutil.which(name) for name in wanted):
        language = "C++" if kind == "cpu" else "C"
        missing = " or ".join(wanted)
        raise UserError(
            f"compute.compile: no {language} compiler ({missing}) on the PATH; install one, or {REMEDY}"
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise UserError(
            f"compute.compile: Python's headers are missing ({header}; Debian's python3-dev); {REMEDY}"
        )
