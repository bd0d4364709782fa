"""How often ``taskvec merge`` reads its checkpoints: bytes read by bytes that there are, counted at every cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merge_world import given_for, signed
from safetensors.torch import load_file, save_file

from taskvec import registry
from taskvec.merge import catalogue, pieces
from taskvec.merge.base import TensorWise
from taskvec.merge.scheme import foreseen
from taskvec.on_disk import stream
from taskvec.on_disk.plan import Plan, plan_of
from taskvec.on_disk.request import Everywhere, Request
from taskvec.on_disk.run import carry_out
from taskvec.vectors import TaskVector

SHAPES = {
    "embed": (4096, 64),
    "block.weight": (96, 80),
    "block.bias": (96,),
    "kernel": (8, 3, 5, 5),
}
# One entry in 64 is looked at before the pass that selects; SCE looks twice, PCB selects twice
SAMPLES = 1 + 2 / 64


def streamed() -> list[tuple[str, str]]:
    """Return every merge that streams, by its defaults and by each framework's convention."""
    found = []
    for entry in registry.entries("merge"):
        if not entry.shipped or catalogue.passes(entry.schema) == "-":
            continue
        offered = [c.overrides for c in entry.schema.conventions if c.offered]
        deltas = [overrides for overrides in offered if "of=factors" not in overrides]
        found += [(entry.name, overrides) for overrides in dict.fromkeys(["", *deltas])]
    return found


def merge_of(name: str, overrides: str) -> TensorWise:
    schema = registry.lookup("merge", name).schema
    if name == "wudi" and "solver" not in overrides:
        return schema(steps=2)
    for convention in schema.conventions:
        if convention.overrides == overrides:
            return schema(**convention.options())
    return schema()


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A base and three models near it in bfloat16, whose rounding makes many equal magnitudes and zero sums."""
    root = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    base = {name: torch.randn(shape).bfloat16() for name, shape in SHAPES.items()}
    save_file(base | {"step": torch.tensor(3)}, root / "base.safetensors")
    for number in range(3):
        tuned = {}
        for name, tensor in base.items():
            tuned[name] = (tensor.float() + 0.05 * torch.randn(tensor.shape)).bfloat16()
        save_file(tuned | {"step": torch.tensor(3)}, root / f"model{number}.safetensors")
    return root


def planned(merge: TensorWise, places: Path, out: Path) -> Plan:
    low, high = merge.vectors
    models = [str(places / f"model{number}.safetensors") for number in range(high or 3)]
    assert len(models) >= low
    base = str(places / "base.safetensors")
    return plan_of(Request(tuple(models), out, Everywhere(merge, merge.kind), base))


def in_memory(merge: TensorWise, plan: Plan) -> dict:
    theta = {name: tensor.float() for name, tensor in load_file(plan.request.base).items()}
    theta.pop("step")
    deltas = []
    for place in plan.request.models:
        tuned = load_file(place)
        own = {name: tuned[name].float() for name in theta}
        deltas.append(TaskVector.between(theta, own))
    vectors = signed(deltas)
    return merge.compose(theta, vectors, given_for(vectors)).parameters(1.0)


@pytest.mark.parametrize(("name", "overrides"), streamed())
def test_large_tensors_are_read_three_times_at_most(name, overrides, places, tmp_path, monkeypatch):
    merge = merge_of(name, overrides)
    plan = planned(merge, places, tmp_path / "out.safetensors")
    expected = in_memory(merge, plan)
    monkeypatch.setattr(pieces, "ENTRIES", 2**14)
    monkeypatch.setattr(foreseen, "KEPT", 2**14)
    monkeypatch.setattr(stream, "HELD", 0)
    steps = []
    carry_out(plan, lambda done, total: steps.append((done, total)))
    there = plan.bytes_of_base + plan.bytes_of_models
    assert plan.passes <= 3
    assert there <= plan.read <= plan.bytes_read * SAMPLES
    assert plan.read <= 3 * SAMPLES * there
    assert steps == sorted(steps)
    assert steps[-1] == (plan.bytes_read, plan.bytes_read)
    found = load_file(plan.request.out)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor.bfloat16()), key


@pytest.mark.parametrize("name", ["breadcrumbs", "sce", "karcher", "model_stock"])
def test_a_tensor_that_is_kept_meanwhile_is_read_once(name, places, tmp_path):
    merge = merge_of(name, "")
    plan = planned(merge, places, tmp_path / "out.safetensors")
    assert merge.passes > 1
    carry_out(plan)
    there = plan.bytes_of_base + plan.bytes_of_models
    assert plan.bytes_read == plan.read == there
    assert f"{there / 1e6:.1f} MB, once" in "\n".join(plan.lines())
