"""A tiny case of every component, reduced to a few numbers: what it computes, whatever its source text says.

``fixtures/canaries.json`` holds, per canary, the version of its component and the numbers. A change of numbers asks for
the next ``version`` of the component's class, and a new record:

    python tests/canaries.py --record NAME ...
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import memory
import merge_world
import torch
from torch import Tensor

from taskvec import registry
from taskvec.models.clip.backbone import ClipModel
from taskvec.models.clip.config import VisionConfig, linear_layers
from taskvec.models.clip.spaces import clip_spaces
from taskvec.models.clip.vit import VisionTransformer
from taskvec.needs import Budget, Examples, Signed, Statistics, Tuned
from taskvec.protocols.base import Answer
from taskvec.protocols.selection import Rule, choose
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Scaled

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "canaries.json"
TOLERANCE = 2e-3  # of numbers that went through Adam, whose first steps turn rounding into noise
TASKS = ("a", "b")
SMALL = {"lr": 1e-3, "steps": 4, "warmup": 1, "batch_size": 4, "weight_decay": 0.1, "seed": 0}

Numbers = dict[str, float]
CANARIES: dict[str, tuple[type | None, Callable[[], Numbers]]] = {}


def canary(name: str, component: type | None = None) -> Callable:
    """Enter a function under a name, with the class whose version it watches."""

    def enter(function: Callable[[], Numbers]) -> Callable[[], Numbers]:
        CANARIES[name] = (component, function)
        return function

    return enter


def digest(tensors: Mapping[str, Tensor]) -> Numbers:
    """Return each tensor's norm and its product with fixed weights."""
    found = {}
    for name, tensor in tensors.items():
        values = tensor.detach().double().flatten()
        weights = (
            torch.linspace(-1, 1, len(values), dtype=torch.float64)
            if len(values) > 1
            else values.new_ones(1)
        )
        found[f"{name}/norm"] = values.norm().item()
        found[f"{name}/along"] = (values * weights[: len(values)]).sum().item()
    return found


def total(tensors: Mapping[str, Tensor]) -> Numbers:
    """Return the sums of a digest over all tensors: few numbers for a whole vector."""
    parts = digest(tensors)
    norm = math.sqrt(sum(value**2 for name, value in parts.items() if name.endswith("/norm")))
    return {
        "norm": norm,
        "along": sum(value for name, value in parts.items() if name.endswith("/along")),
    }


@cache
def model(width: int = 16) -> ClipModel:
    """A CLIP image tower of two blocks, the same at every call."""
    config = VisionConfig(8, (16, 16), (8, 8), width, 2, 2, 2 * width)
    torch.manual_seed(width)
    made = ClipModel(VisionTransformer(config), [0.5] * 3, [0.25] * 3)
    described = clip_spaces(config).of(list(made.parameters))
    made.backbone = SimpleNamespace(
        linear_layers=lambda: linear_layers(config),
        spaces=lambda: described.axes,
        observed=lambda: described.observed,
        gives=frozenset({"zero_shot_heads"}),
    )
    return made


@cache
def views() -> dict[str, memory.Memory]:
    """Twelve images of each task, with labels and a head."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for task in TASKS:
        images = torch.randint(0, 256, (12, 3, 16, 16), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 3, (12,), generator=generator)
        head = torch.randn(3, 8, generator=generator)
        found[task] = memory.Memory(images, labels, head)
    return found


@cache
def vectors() -> dict[str, TaskVector]:
    """A small random vector of each task."""
    generator = torch.Generator().manual_seed(6)
    found = {}
    for task in TASKS:
        deltas = {}
        for name, weight in model().parameters.items():
            deltas[name] = 0.02 * torch.randn(weight.shape, generator=generator)
        found[task] = TaskVector(deltas)
    return found


# Fine-tuning


def tuned(kind: str, **settings: Any) -> Callable[[], Numbers]:
    """Return what a method learns on one task, given the other's data or curvature."""

    def numbers() -> Numbers:
        method = registry.lookup("finetune", kind).schema(**SMALL, **settings)
        method = method.resolved(
            SimpleNamespace(recipe=SimpleNamespace(drift_weight=10.0, **SMALL))
        )
        others = {"b": views()["b"]}
        if kind == "kfac":
            statistic = method.curvature.statistic
            others = {"b": lambda: collected(statistic)}
        given = memory.Given(model(), {"a": views()["a"]}, others=others)
        given.scope.backbone = model().backbone
        return total(method.learn(given).vector)

    return numbers


for kind in ("full", "linear_ft", "tangent", "kfac", "tau_jp"):
    canary(f"finetune/{kind}", registry.lookup("finetune", kind).schema)(tuned(kind))
canary("finetune/full/lora", registry.lookup("finetune", "full").schema)(
    tuned("full", select="lora", rank=2)
)

# Statistics


def collected(statistic: Any, task: str = "b") -> Any:
    """Return the value of a statistic of one model on a task."""
    from taskvec.statistics.collect import Batches, collect

    view = views()[task]
    labels = view.labels() if statistic.labels else None
    return collect(model(), Batches(view), [statistic], head=view.head, labels=labels)[0]


def statistic(kind: str, **settings: Any) -> Callable[[], Numbers]:
    """Return the digest of a statistic."""

    def numbers() -> Numbers:
        asked = registry.lookup("statistic", kind).schema(**settings)
        return total(asked.pack(collected(asked))[0])

    return numbers


STATISTICS = {
    "curvature": {},
    "curvature/ekfac": {"structure": "ekfac"},
    "curvature/diag_ggn": {"structure": "diag_ggn"},
    "input_moments": {},
    "fisher": {},
    "gradient": {},
}
for name, settings in STATISTICS.items():
    kind = name.partition("/")[0]
    canary(f"statistic/{name}", registry.lookup("statistic", kind).schema)(
        statistic(kind, **settings)
    )


@canary("statistic/cross_moments", registry.lookup("statistic", "cross_moments").schema)
def cross_moments() -> Numbers:
    from taskvec.statistics.collect import Batches, collect

    view, asked = views()["a"], registry.lookup("statistic", "cross_moments").schema()
    batches, heads = Batches(view, view), (view.head, view.head)
    value = collect((model(16), model(24)), batches, [asked], head=heads)[0]
    return total(asked.pack(value)[0])


@canary("statistic/spectrum", registry.lookup("statistic", "spectrum").schema)
def spectrum() -> Numbers:
    asked = registry.lookup("statistic", "spectrum").schema()
    on = Examples("b", "train", "calibration", budget=Budget(count=12))
    need = Statistics(asked, on)
    moments = collected(asked.moments)
    given = _Moments(model(), moments)
    return total(asked.pack(asked.made(need, given))[0])


@dataclass
class _Moments:
    """What a derived statistic is given: the moments, whatever the need."""

    model: Any
    moments: Any
    device: str = "cpu"

    @property
    def source(self) -> Any:
        return self.model

    def __getitem__(self, need: Any) -> Any:
        return self.moments


# Objectives


def objective(kind: str) -> Callable[[], Numbers]:
    """Return the loss of fixed logits."""

    def numbers() -> Numbers:
        from taskvec.training.batches import Batch

        chosen = registry.lookup("objective", kind).schema()
        logits = torch.linspace(-2, 3, 24).view(8, 3)
        labels = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])
        batch = Batch(
            torch.zeros(8, 1),
            {"a": slice(0, 5), "b": slice(5, 8)},
            {"a": labels[:5], "b": labels[5:]},
        )
        rows = {"a": logits[:5], "b": logits[5:]}
        return {"loss": chosen.loss(lambda task, inputs: rows[task], batch, {}).item()}

    return numbers


for kind in ("cross_entropy", "entropy"):
    canary(f"objective/{kind}", registry.lookup("objective", kind).schema)(objective(kind))

# Merges of vectors alone

OF_VECTORS = (
    "average", "breadcrumbs", "cart", "consensus_ta", "dare", "della", "emr", "iso_c", "iso_cts", "karcher", "knots",
    "magmax", "model_stock", "multislerp", "nuslerp", "pcb", "sce", "slerp", "tall_masks", "task_arithmetic", "ties",
    "tsv", "wudi",
)  # fmt: skip


def merged(kind: str) -> Callable[[], Numbers]:
    """Return the weights that a merge makes of two vectors."""

    def numbers() -> Numbers:
        merge = registry.lookup("merge", kind).schema(seed=3)
        base = merge_world.draw(1, dtype=torch.float32)
        deltas = [merge_world.draw(seed, dtype=torch.float32) for seed in (2, 3)]
        signed = merge_world.signed(deltas)
        composition = merge.compose(base, signed, merge_world.given_for(signed, seed=3))
        weights = composition.parameters(0.7, signed[0].tasks[0])
        return total({name: tensor for name, tensor in weights.items() if tensor.numel()})

    return numbers


for kind in OF_VECTORS:
    canary(f"merge/{kind}", registry.lookup("merge", kind).schema)(merged(kind))

# Selection rules

CURVE = {
    0.0: {"a": 0.5, "b": 0.4, "control": 0.6},
    0.5: {"a": 0.7, "b": 0.6, "control": 0.58},
    1.0: {"a": 0.4, "b": 0.9, "control": 0.2},
}


def rule(kind: str) -> Callable[[], Numbers]:
    """Return the coefficient that a rule picks."""

    def numbers() -> Numbers:
        chosen = Rule(kind=kind, control_threshold=0.95)
        answers = {f"individual/{task}": Answer(selection={1.0: {task: 0.9}}) for task in TASKS}
        answers["zero_shot"] = Answer(selection={0.0: CURVE[0.0]})
        return {"alpha": choose(chosen, CURVE, TASKS, "control", answers)}

    return numbers


for kind in ("highest_normalised", "highest_accuracy", "lowest_target", "largest_feasible"):
    canary(f"rule/{kind}")(rule(kind))

# Questions


@dataclass
class _Asked:
    """What a question is given."""

    model: Any
    known: Mapping[Any, Any]
    answers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def evaluator(self) -> Any:
        from taskvec.training.evaluator import Evaluator

        return Evaluator(self.model, self.__getitem__)

    def __getitem__(self, need: Examples) -> Any:
        return self.known[need.task]


QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "scores": ("scores", {"targets": TASKS, "fixed": (0.0, 1.0), "grid": (0.5, 1.0)}),
    "drift": ("drift", {}),
    "kernel_regime": ("kernel_regime", {}),
    "orthogonality": ("orthogonality", {}),
    "disentanglement_maps": ("disentanglement_maps", {"grid": (0.0, 1.0), "pairs": (TASKS,)}),
    "disentanglement_matrix": ("disentanglement_matrix", {}),
}


def question(kind: str, settings: Mapping[str, Any], forward: str) -> Callable[[], Numbers]:
    """Return the numbers of an answer about two vectors."""

    def numbers() -> Numbers:
        asked = registry.lookup("question", kind).schema(**settings)
        signed = []
        for task, vector in vectors().items():
            signed.append(
                Signed(Tuned((Examples(task, "train", "learning", labels=True),)), 1.0, vector)
            )
        composition = Scaled(model().parameters, sum(vectors().values()))
        composition.forward = forward
        answer, _ = asked.answer(_Asked(model(), views()), composition, signed)
        return _leaves(answer.model_dump(exclude={"alpha"}))

    return numbers


def _leaves(value: Any, place: str = "") -> Numbers:
    if isinstance(value, bool | int | float):
        return {place: float(value)}
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    found: Numbers = {}
    for key, child in children:
        found |= _leaves(child, f"{place}/{key}")
    return found


for name, (kind, settings) in QUESTIONS.items():
    schema = registry.lookup("question", kind).schema
    for forward in ("standard", "tangent"):
        canary(f"question/{name}/{forward}", schema)(question(kind, settings, forward))


def numbers_of(name: str) -> Numbers:
    """Return a canary's numbers."""
    return CANARIES[name][1]()


def version_of(name: str) -> int:
    """Return the version of a canary's component; rules have none of their own and count with the questions."""
    component = CANARIES[name][0]
    return 1 if component is None else component.version


def agree(recorded: Numbers, found: Numbers) -> bool:
    """Return whether two sets of numbers are the same up to rounding."""
    if recorded.keys() != found.keys():
        return False
    return all(
        math.isclose(recorded[key], found[key], rel_tol=TOLERANCE, abs_tol=1e-6) for key in recorded
    )


def records() -> dict[str, Any]:
    """Return the record of each canary."""
    return json.loads(FIXTURE.read_text(encoding="utf-8")) if FIXTURE.is_file() else {}


def main() -> None:
    """Record canaries again: those named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--record", nargs="*", required=True, metavar="NAME", help="none named: every one"
    )
    names = parser.parse_args().record or list(CANARIES)
    torch.set_num_threads(1)
    known = records()
    for name in names:
        rounded = {key: float(f"{value:.9g}") for key, value in numbers_of(name).items()}
        known[name] = {"version": version_of(name), "numbers": rounded}
    kept = {name: known[name] for name in CANARIES if name in known}
    FIXTURE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
