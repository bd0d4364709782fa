"""Carrying a plan out, and what there is to report of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from taskvec.checkpoints.writing import write_file, write_folder
from taskvec.on_disk.low_rank import LowRankAdapter, write_adapter
from taskvec.on_disk.meter import Peak, keep_freed_memory
from taskvec.on_disk.plan import Plan, gigabytes

Observe = Callable[
    [int, int], None
]  # bytes of base and models that were looked at, and all that will be


@dataclass(frozen=True)
class Report:
    """How a merge went: seconds, the bytes of base and models, the peak of anonymous memory, an adapter's error."""

    seconds: float
    size: int
    peak: int | None
    adapter: LowRankAdapter | None = None

    def lines(self, out: str) -> list[str]:
        """Return the report in words."""
        speed = f"{gigabytes(self.size / max(self.seconds, 1e-9))}/s"
        memory = "not known here" if self.peak is None else gigabytes(self.peak)
        said = [
            f"{out}: {gigabytes(self.size)} of checkpoints in {self.seconds:.1f} s ({speed}), "
            f"peak of anonymous memory {memory}"
        ]
        if self.adapter is not None:
            worst = max(
                self.adapter.errors.items(), key=lambda item: item[1], default=("none", 0.0)
            )
            said.append(
                f"adapter: {self.adapter.error:.3g} of the merged delta's norm is left out, at most {worst[1]:.3g} "
                f"({worst[0]})"
            )
        return said


def carry_out(plan: Plan, observe: Observe = lambda *_: None) -> Report:
    """Merge and write; an interrupted merge goes on with the first file that is not complete.

    Raises:
        UserError: for a delta that is not finite.
    """
    total = plan.bytes_read
    plan.observe = lambda read: observe(min(read, total), total)
    request = plan.request
    keep_freed_memory()
    started = time.perf_counter()
    adapter = None
    with Peak() as peak, torch.inference_mode():
        stream = plan.stream
        if request.adapter is not None:
            adapter = write_adapter(plan, stream, request.adapter)
        elif plan.inputs.reference.kind == "file":
            write_file(request.out, stream.weights)
        else:
            write_folder(
                request.out,
                stream.weights,
                plan.beside(),
                stem=plan.stem,
                limit=plan.limit,
                identity=plan.identity(),
            )
    observe(total, total)
    seconds = time.perf_counter() - started
    return Report(seconds, plan.bytes_of_base + plan.bytes_of_models, peak.bytes, adapter)
