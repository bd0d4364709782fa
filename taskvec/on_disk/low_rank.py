"""A merged model as an adapter again: the leading singular directions of every delta, and what they leave out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from taskvec.checkpoints import beside
from taskvec.checkpoints.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ROOT, A, B
from taskvec.checkpoints.writing import UNLIMITED, Weights, write_folder
from taskvec.errors import UserError
from taskvec.on_disk import heads
from taskvec.on_disk.plan import Plan
from taskvec.on_disk.stream import Stream

TRANSPOSED = ("gpt2",)  # families whose layers store [in, out]


@dataclass
class LowRankAdapter:
    """Factors by module, tensors that are no product, and the squares of what was kept and left out."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    whole: float = 0.0
    lost: float = 0.0

    @property
    def error(self) -> float:
        """||tau - B A||_F / ||tau||_F over all matrices."""
        return sqrt(self.lost / self.whole) if self.whole else 0.0


def write_adapter(plan: Plan, stream: Stream, rank: int) -> LowRankAdapter:
    """Write an adapter of a rank in place of the merged model, and return it with its error.

    Raises:
        UserError: without a base, on which it would stand.
    """
    if plan.inputs.base is None:
        raise UserError("--adapter: an adapter stands on a model; give base=MODEL")
    turned = (plan.inputs.reference.config or {}).get("model_type") in TRANSPOSED
    found = LowRankAdapter()
    for name, delta in _deltas(plan, stream):
        if delta.ndim == 2 and not name.endswith(heads.BY_TOKEN):
            as_written = delta.T if turned else delta
            _add(found, name.removesuffix(".weight"), as_written, rank)
        elif delta.any():
            found.saved.append(name)
            found.tensors[ROOT + name] = plan.inputs.base[name] + delta
    config = _config(plan, found, rank, turned)
    files = {ADAPTER_CONFIG: json.dumps(config, indent=2).encode(), beside.CARD: plan.card()}
    stem = ADAPTER_WEIGHTS[0].removesuffix(".safetensors")
    weights = Weights.of({name: tensor.contiguous() for name, tensor in found.tensors.items()})
    write_folder(plan.request.out, weights, files, stem=stem, limit=UNLIMITED)
    return found


def _deltas(plan: Plan, stream: Stream) -> Iterator[tuple[str, Tensor]]:
    """Yield every merged delta that may not be zero, as a whole."""
    for name, shape in plan.sources.base.like.items():
        if not plan.sources.changed(name):
            continue
        merged = torch.cat(list(stream.merged(name))).view(shape.shape)
        yield name, (merged - plan.sources.base[name]).cpu()


def _add(found: LowRankAdapter, module: str, delta: Tensor, rank: int) -> None:
    """Add the leading part of one delta [out, in]."""
    wide = delta.double()
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    kept = min(rank, len(values))
    scaled = left[:, :kept] * values[:kept]
    found.tensors[f"{ROOT}{module}.{B}"] = scaled.to(delta.dtype)
    found.tensors[f"{ROOT}{module}.{A}"] = right[:kept].to(delta.dtype)
    found.ranks[module] = kept
    energy = values.square()
    whole = energy.sum().item()
    lost = energy[kept:].sum().item()
    found.errors[module] = sqrt(lost / whole) if whole else 0.0
    found.whole += whole
    found.lost += lost


def _config(plan: Plan, found: LowRankAdapter, rank: int, turned: bool) -> dict[str, object]:
    """Return what peft reads: a scale of one everywhere."""
    smaller = {module: own for module, own in found.ranks.items() if own != rank}
    modules = sorted({name.rpartition(".")[0] for name in found.saved})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": beside.shown(plan.inputs.reference.name),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": sorted(found.ranks),
        "modules_to_save": modules or None,
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "bias": "none",
    }
