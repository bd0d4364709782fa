"""Coefficients of vectors: one autograd function against the explicit graph, blocks, and AdaMerging end to end."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from merge_world import SHAPES, close, draw, expression, given_for, signed
from torch import Tensor, nn

from taskvec.merge.learned.adamerging import AdaMerging, AdaMergingSchedule
from taskvec.models.base import Model
from taskvec.needs import Examples
from taskvec.training import coefficients as module
from taskvec.training.blocks import Blocks, blocks, divided
from taskvec.training.coefficients import Coefficients
from taskvec.training.evaluator import Evaluator
from taskvec.training.objectives.entropy import Entropy
from taskvec.vectors import TaskVector

KINDS = ["vector", "tensor", "rows", "columns", "thirds"]


@pytest.fixture(params=[4, 55])
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def base(seed: int) -> dict:
    return draw(700 + seed)


@pytest.fixture
def vectors(seed: int) -> list[dict]:
    found = [draw(seed + number) for number in range(3)]
    del found[1]["kernel"]  # zero by declaration
    return found


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even these small tensors."""
    monkeypatch.setattr(module, "ENTRIES", 30)


def all_blocks() -> list[Blocks]:
    whole = [blocks(kind, SHAPES) for kind in KINDS]
    cut = [
        divided(blocks("tensor", SHAPES), 5, seed=3),
        divided(blocks("vector", SHAPES), 4, seed=3),
    ]
    return [
        *whole,
        *cut,
        blocks("tensor", SHAPES, matrices=True),
        blocks("rows", SHAPES, only="block.*"),
    ]


def explicit(base: dict, vectors: list[dict], chosen: Blocks, values: Tensor) -> dict[str, Tensor]:
    """Return theta on autograd's own graph."""
    found = {}
    for name, layout in chosen.layouts.items():
        total = base[name]
        for row, vector in zip(values, vectors, strict=True):
            if name in vector:
                total = total + layout.spread(row[layout.columns]) * vector[name]
        found[name] = total
    return found


@pytest.mark.parametrize("chosen", all_blocks(), ids=range(len(all_blocks())))
def test_values_and_gradients_are_those_of_the_explicit_graph(base, vectors, chosen, seed):
    trained = Coefficients(base, vectors, chosen)
    values = draw(seed, {"c": (3, chosen.count)})["c"]
    trained.leaves["coefficients"] = values.clone().requires_grad_()
    reference = values.clone().requires_grad_()
    left, right = trained.parameters(), explicit(base, vectors, chosen, reference)
    close({n: t.detach() for n, t in left.items()}, {n: t.detach() for n, t in right.items()})
    slopes = draw(seed + 1)
    for composed in (left, right):
        sum((composed[name] * slopes[name]).sin().sum() for name in composed).backward()
    torch.testing.assert_close(trained.coefficients.grad, reference.grad, rtol=1e-9, atol=1e-11)
    start = {name: (left[name] - base[name]).detach() for name in left}
    close(dict(trained.vector()), start, 1e-12)


def test_special_coefficients(base, vectors):
    chosen = blocks("tensor", SHAPES)
    assert all(
        torch.equal(t, base[n]) for n, t in Coefficients(base, vectors, chosen).parameters().items()
    )
    constant = Coefficients(base, vectors, chosen, start=0.5).vector()
    close(dict(constant), dict(sum(map(TaskVector, vectors), TaskVector({})) * 0.5), 1e-7)
    single = Coefficients(base, vectors[:1], chosen, start=1.0).vector()
    close(dict(single), vectors[0])
    unused = Coefficients(base, vectors, chosen)
    unused.parameters()["scale"].square().backward()
    column = chosen.layouts["scale"].first
    others = torch.arange(chosen.count) != column
    assert (unused.coefficients.grad[:, others] == 0).all()
    expected = torch.stack([2 * base["scale"] * vector["scale"] for vector in vectors])
    torch.testing.assert_close(
        unused.coefficients.grad[:, column].double(), expected, rtol=1e-6, atol=0
    )


def test_random_parts_are_a_partition_that_a_seed_determines():
    whole = blocks("tensor", SHAPES)
    first = divided(whole, 7, seed=1).layouts["block.fc.weight"]
    parts = first.parts()
    assert parts.min() >= 0 and parts.max() < 7 and parts.shape == (12, 9)
    again = divided(whole, 7, seed=1).layouts["block.fc.weight"]
    assert torch.equal(parts, again.parts())
    assert not torch.equal(parts, divided(whole, 7, seed=2).layouts["block.fc.weight"].parts())
    many = divided(blocks("tensor", {"w": (300, 300)}), 6, seed=0).layouts["w"].parts()
    shares = torch.bincount(many.view(-1), minlength=6) / many.numel()
    assert (shares - 1 / 6).abs().max() < 0.01
    assert (divided(whole, 1, seed=0).layouts["kernel"].parts() == 0).all()
    with pytest.raises(ValueError, match="only blocks of whole tensors"):
        divided(blocks("rows", SHAPES), 3, seed=0)


# AdaMerging


class Small(Model):
    """Vectors in, features out: an affine map and a tanh."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)))

    def prepare(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return (inputs,)

    def logits(self, features: Tensor, head: Tensor, parameters: Any = None) -> Tensor:
        return features @ head.T


@dataclass
class Rows:
    """A view of unlabelled rows under a head."""

    inputs: Tensor
    head: Tensor
    regression: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows) -> Tensor:
        return self.inputs[rows]

    def labels(self, rows=None) -> Tensor:
        raise AssertionError("AdaMerging must not look at labels")


def world(seed: int, tangent: bool = False):
    """Return base, vectors and what AdaMerging is given on a tiny model."""
    model = Small()
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in model.parameters.items()}
    vectors = signed(
        [{n: t.float() for n, t in draw(seed + n0, shapes).items()} for n0 in range(2)]
    )
    views = {}
    for number in range(2):
        need = Examples(f"t{number}", "val", "learning")
        inputs = torch.randn(40 + number, 5, generator=generator)
        views[need] = Rows(inputs, torch.randn(3, 4, generator=generator))
    given = given_for(
        vectors, seed, model=model, known=views, learning=SimpleNamespace(examples=tuple(views))
    )
    given.objective, given.forward = Entropy(), "tangent" if tangent else "standard"
    given.evaluator = Evaluator(model, given.__getitem__)
    return model.parameters, vectors, given


def entropy(base: dict, delta: dict, given, tangent: bool) -> float:
    """Return the mean over tasks of the mean entropy of predictions."""
    total = 0.0
    for need in given.known:
        weights = {} if tangent else {name: base[name] + delta[name] for name in base}
        logits = given.evaluator.logits(weights, need, slice(None), delta if tangent else None)
        log_p = logits.log_softmax(1)
        total += float(-(log_p.exp() * log_p).sum(1).mean()) / 2
    return total


@pytest.mark.parametrize("by", ["tensor", "vector"])
@pytest.mark.parametrize("tangent", [False, True])
def test_adamerging_lowers_the_entropy_and_reloads(seed, by, tangent):
    base, vectors, given = world(seed, tangent)
    merge = AdaMerging(by=by, seed=seed, schedule=AdaMergingSchedule(lr=3e-2, steps=40))
    composition = merge.compose(base, vectors, given)
    start = {name: sum(0.3 * vector.delta[name] for vector in vectors) for name in base}
    learned = dict(composition.direction())
    assert entropy(base, learned, given, tangent) < entropy(base, start, given, tangent) - 0.02
    coefficients = composition.coefficients
    assert coefficients.shape == (2, 1 if by == "vector" else len(base))
    assert coefficients.min() >= 0 and coefficients.max() <= 1
    again = merge.restore(base, *composition.pack())
    assert torch.equal(again.coefficients, coefficients)
    assert all(
        torch.equal(again.parameters(1.0)[name], composition.parameters(1.0)[name]) for name in base
    )
    assert list(composition.report["coefficients"]) == ["t0", "t1"]
    repeated = merge.compose(base, vectors, given)
    assert torch.equal(repeated.coefficients, coefficients)
    other = merge.model_copy(update={"seed": seed + 1}).compose(base, vectors, given)
    assert not torch.equal(other.coefficients, coefficients)


def test_the_first_step_follows_the_gradient_of_the_mean_entropy(seed):
    base, vectors, given = world(seed)
    full = AdaMergingSchedule(lr=1e-3, steps=1, batch_size=64, optimiser="sgd", momentum=0)
    moved = AdaMerging(schedule=full, clamp=False).compose(base, vectors, given).coefficients
    values = torch.full_like(moved, 0.3).requires_grad_()
    chosen = blocks("tensor", {name: tensor.shape for name, tensor in base.items()})
    weights = explicit(base, [vector.delta for vector in vectors], chosen, values)
    losses = []
    for need in given.known:
        log_p = given.evaluator.logits(weights, need, slice(None)).log_softmax(1)
        losses.append(-(log_p.exp() * log_p).sum(1).mean())
    torch.stack(losses).mean().backward()
    torch.testing.assert_close((0.3 - moved) / 1e-3, values.grad, rtol=1e-2, atol=2e-4)


def test_trimmed_vectors_and_names(seed):
    base, vectors, given = world(seed)
    quick = AdaMergingSchedule(steps=1)
    found = AdaMerging(trim=0.2, schedule=quick).compose(base, vectors, given).direction()
    zero = sum(int((delta == 0).sum()) for delta in found.values())
    total = sum(delta.numel() for delta in found.values())
    assert 0.55 * total < zero < 0.7 * total  # 0.8^2
    assert expression("t0") in [vector.expression for vector in vectors]
