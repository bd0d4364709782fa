"""Drift penalties against dense matrices, brute-force drift and worked numbers; merging over tasks, and the store."""

from __future__ import annotations

import json
import weakref
from functools import partial

import pytest
import torch
from memory import Given, Memory
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from test_curvature import EXACT, Text, Tower, curvature, gram, jacobian, joined, same, texts
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from taskvec.finetune.kfac import Kfac
from taskvec.finetune.tau_jp import TauJp
from taskvec.models.base import Model
from taskvec.models.layers import LinearLayer
from taskvec.statistics.blocks import Diagonal, Eigen, Full, Kronecker
from taskvec.statistics.curvature_value import Curvature, exact_sum, merge
from taskvec.statistics.settings import CurvatureSettings
from taskvec.training.batches import generator
from taskvec.training.regularisers import drift, penalty, quadratic, regulariser
from taskvec.training.schedule import PenaltySettings


@pytest.fixture(scope="module")
def tower() -> Tower:
    return Tower()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def tau(tower: Tower) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    drawn = {
        name: torch.randn(w.shape, generator=generator, dtype=torch.float64)
        for name, w in tower.parameters.items()
    }
    return {name: delta.requires_grad_() for name, delta in drawn.items()}


def positive(size: int) -> Tensor:
    root = torch.randn(size, size, dtype=torch.float64)
    return root @ root.T


def dense(block) -> Tensor:
    """Return a block as the matrix of row-major vec."""
    if isinstance(block, Kronecker):
        return torch.kron(block.gradients, block.inputs)
    if isinstance(block, Eigen):
        vectors = torch.kron(block.left, block.right)
        return vectors @ block.values.flatten().diag() @ vectors.T
    return block.matrix if isinstance(block, Full) else block.values.flatten().diag()


def blocks() -> dict:
    torch.manual_seed(0)
    bases = [torch.linalg.qr(positive(size)).Q for size in (4, 3)]
    values = torch.rand(3, 4, dtype=torch.float64)
    return {
        "kronecker": Kronecker(positive(4), positive(3)),
        "eigen": Eigen(*bases, values),
        "diagonal": Diagonal(values),
        "full": Full(positive(5)),
    }


@pytest.mark.parametrize("kind", list(blocks()))
def test_quadratic_form(kind: str):
    block = blocks()[kind]
    matrix, delta = dense(block), torch.randn(block.shape, dtype=torch.float64, requires_grad=True)
    value = quadratic(block, delta)
    torch.testing.assert_close(value, delta.flatten() @ matrix @ delta.flatten())
    (found,) = torch.autograd.grad(value, delta)
    torch.testing.assert_close(found.flatten(), 2 * matrix @ delta.flatten())
    assert torch.autograd.gradcheck(lambda x: quadratic(block, x), delta)
    assert value >= 0 and quadratic(block, torch.zeros_like(delta)) == 0
    torch.testing.assert_close(quadratic(block, 3 * delta), 9 * value)
    torch.testing.assert_close(block.trace(), matrix.trace())
    with pytest.raises(ValueError, match="layer: a change of shape"):
        quadratic(block, torch.zeros(2, 2), "layer")


def test_kronecker_gradient_is_two_b_dw_a():
    block = blocks()["kronecker"]
    delta = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    value = quadratic(block, delta)
    torch.testing.assert_close(value, (block.gradients @ delta @ block.inputs @ delta.T).trace())
    value.backward()
    torch.testing.assert_close(delta.grad, 2 * block.gradients @ delta @ block.inputs)


@pytest.mark.parametrize("structure", ["kfac", "ekfac", "diag_ggn"])
def test_penalty_is_the_sum_over_blocks(structure: str, tower: Tower, images: Tensor, tau: dict):
    found = curvature(
        tower, images.split(2), tower.layers, EXACT.model_copy(update={"structure": structure})
    )
    expected = torch.zeros((), dtype=torch.float64)
    for name, block in found.layers.items():
        delta = tau[f"{name}.weight"]
        if name != "projection":
            delta = torch.cat([delta, tau[f"{name}.bias"].unsqueeze(1)], 1)
        term = delta.flatten() @ dense(block) @ delta.flatten()
        expected = expected + (0.1 * term if name == "projection" else term)
    for name, block in found.vectors.items():
        expected = expected + 10 * tau[name] @ dense(block) @ tau[name]
    value = penalty(found, tau, full_scale=10, projection_scale=0.1)
    torch.testing.assert_close(value, expected)
    wanted = torch.autograd.grad(expected, list(tau.values()), allow_unused=True)
    got = torch.autograd.grad(value, list(tau.values()), allow_unused=True)
    for name, a, b in zip(tau, wanted, got, strict=True):
        assert (b is None) == (name in found.untracked)
        if b is not None:
            torch.testing.assert_close(a, b)


def test_layers_that_did_not_move_add_nothing(tower: Tower, images: Tensor, tau: dict):
    found = curvature(tower, [images], tower.layers, EXACT)
    full = {name: torch.zeros_like(delta) for name, delta in tau.items()}
    for kinds in (
        ("attn.q.weight",),
        ("attn.q.bias",),
        ("attn.q.weight", "attn.q.bias"),
        ("ln_1.weight",),
    ):
        part = {name: delta for name, delta in tau.items() if name.endswith(kinds)}
        torch.testing.assert_close(penalty(found, part), penalty(found, full | part))
    assert (
        penalty(found, {})
        == 0
        == penalty(found, {"positional_embedding": tau["positional_embedding"]})
    )
    with pytest.raises(ValueError, match=r"projection: a change of shape \[8, 6\]"):
        penalty(found, {"projection.weight": tau["projection.weight"].T})


def test_drift_is_the_quadratic_form_of_the_exact_ggn(tower: Tower, images: Tensor, tau: dict):
    jacobians = jacobian(tower, images)
    full = torch.cat([jacobians[name].flatten(2) for name in tau], dim=2)
    vector = torch.cat([delta.flatten() for delta in tau.values()])
    value = drift(tower, tau, images)
    torch.testing.assert_close(value, vector @ gram(full) @ vector)
    value.backward()
    torch.testing.assert_close(
        torch.cat([d.grad.flatten() for d in tau.values()]), 2 * gram(full) @ vector
    )


def test_one_layer_at_a_time_the_penalty_is_the_drift():
    """In a deep linear net KFAC-reduce is exact block by block, whatever the lengths of the examples."""
    model, inputs = Text(linear=True), texts([2, 6, 3], 6)
    found = curvature(model, [inputs], model.layers, EXACT.model_copy(update={"sharing": "reduce"}))
    for layer in ("first", "second", "head"):
        part = {
            name: torch.randn_like(w)
            for name, w in model.parameters.items()
            if name.startswith(layer)
        }
        torch.testing.assert_close(penalty(found, part), drift(model, part, inputs))
        exact = gram(joined(model, jacobian(model, inputs), layer))
        torch.testing.assert_close(dense(found.layers[layer]), exact)


class Product(nn.Module):
    """Tokens [N, L, 3] -> sum of sin(a) * b over tokens [N, 2], a and b linear, in one layer or in two."""

    def __init__(self, fused: bool):
        super().__init__()
        weight, bias = torch.arange(12.0).cos().reshape(4, 3), torch.arange(4.0)
        parts = zip([weight], [bias]) if fused else zip(weight.split(2), bias.split(2))  # noqa: B905
        self.parts = nn.ModuleList()
        for rows, shift in parts:
            self.parts.append(nn.Linear(3, len(rows)))
            self.parts[-1].weight.data, self.parts[-1].bias.data = rows.clone(), shift.clone()
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        a, b = torch.cat([part(tokens) for part in self.parts], dim=-1).chunk(2, dim=-1)
        return (a.sin() * b).sum(1)


def test_fused_and_split_layers_have_the_same_factors():
    class Plain(Model):
        def prepare(self, inputs: Tensor) -> tuple[Tensor]:
            return (inputs,)

    inputs = torch.randn(4, 5, 3, dtype=torch.float64)
    fused, split = (
        curvature(
            Plain(Product(kind)),
            [inputs],
            [LinearLayer(f"parts.{i}", "fc") for i in range(count)],
            EXACT,
        )
        for kind, count in ((True, 1), (False, 2))
    )
    whole = fused.layers["parts.0"]
    for index, rows in enumerate((slice(2), slice(2, 4))):
        part = split.layers[f"parts.{index}"]
        torch.testing.assert_close(part.gradients, whole.gradients[rows, rows])
        torch.testing.assert_close(part.inputs, whole.inputs)


def test_to_another_precision_keeps_what_is_shared(tower: Tower, images: Tensor, tau: dict):
    found = curvature(tower, [images], tower.layers, EXACT)
    single = found.to("cpu", torch.float32)
    assert single.layers["blocks.0.attn.q"].inputs is single.layers["blocks.0.attn.k"].inputs
    moved = {name: delta.float() for name, delta in tau.items()}
    torch.testing.assert_close(
        penalty(single, moved).double(), penalty(found, tau), rtol=1e-5, atol=0
    )


def test_schedule():
    plain = PenaltySettings(weight=2.0)
    assert [plain.strength(step) for step in range(3)] == [2, 2, 2]
    warm = PenaltySettings(weight=2.0, warmup=4)
    assert [warm.strength(step) for step in range(6)] == [0.5, 1, 1.5, 2, 2, 2]
    every = PenaltySettings(weight=2.0, cadence=3)
    assert [every.strength(step) for step in range(6)] == [6, 0, 0, 6, 0, 0]
    theirs = PenaltySettings(weight=2.0, cadence=3, faithful=True)
    assert [theirs.strength(step) for step in range(6)] == [2, 0, 0, 2, 0, 0]
    for wrong in ({"weight": -1}, {"cadence": 0}, {"warmup": -1}, {"lambda": 1}):
        with pytest.raises(ValidationError):
            PenaltySettings(**wrong)


def test_regulariser_in_a_loop():
    delta, asked = torch.tensor([2.0], requires_grad=True), []

    def value(step: int, deltas: dict) -> Tensor:
        asked.append(step)
        return quadratic(Full(torch.tensor([[3.0]])), deltas["delta"])

    term = regulariser(value, PenaltySettings(weight=0.5, cadence=2))
    gradients = []
    for step in range(4):
        term(step, {"delta": delta}).backward()
        gradients.append(delta.grad.item() if delta.grad is not None else 0)
        delta.grad = None
    assert gradients == [12, 0, 12, 0] and asked == [0, 2]
    nothing = regulariser(lambda step, deltas: torch.zeros(()), PenaltySettings(weight=1.0))
    nothing(0, {}).backward()  # nothing that is trained has a block


def scalar(a: float, b: float, f: float, examples: int, faithful: bool = False) -> Curvature:
    settings = CurvatureSettings(faithful=faithful).record()
    matrix = [torch.tensor([[float(value)]]) for value in (a, b, f)]
    layers, vectors = {"layer": Kronecker(*matrix[:2])}, {"norm.weight": Full(matrix[2])}
    return Curvature(layers, vectors, frozenset(), {"layer": "fc"}, examples, {}, settings)


def test_merging_by_hand():
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    for faithful, expected in ((True, 11.25), (False, 3.75 * 1.75)):
        tasks = [scalar(3, 1, 5, 10, faithful), scalar(4, 2, 9, 30, faithful)]
        moved = {"layer.weight": one}
        assert penalty(exact_sum(tasks), moved) == 6.75
        assert penalty(merge(tasks), moved) == penalty(merge(tasks[::-1]), moved) == expected
        assert penalty(merge(tasks), {"norm.weight": torch.ones(1)}) == 0.25 * 5 + 0.75 * 9
        assert penalty(merge(tasks[:1]), moved) == penalty(tasks[0], moved) == 3
        assert penalty(merge(tasks), {"layer.weight": none}) == 0
        assert merge(tasks).examples == 40
    assert penalty(merge(tasks, counts=[1.0, 0.0]), moved) == 3


@pytest.mark.parametrize("faithful", [False, True])
def test_identical_tasks(faithful: bool, tower: Tower, images: Tensor):
    """Merged, they give back one task's curvature; in the authors' code B is inflated by their number, F is not."""
    one = curvature(tower, [images], tower.layers, EXACT.model_copy(update={"faithful": faithful}))
    merged = merge([one] * 7)
    for name, block in one.layers.items():
        torch.testing.assert_close(
            merged.layers[name].trace(), (7 if faithful else 1) * block.trace()
        )
    for name, block in one.vectors.items():
        torch.testing.assert_close(merged.vectors[name].matrix, block.matrix)
    assert merged.layers["blocks.1.attn.q"].inputs is merged.layers["blocks.1.attn.v"].inputs
    moved = {name: torch.randn_like(weight) for name, weight in tower.parameters.items()}
    torch.testing.assert_close(penalty(exact_sum([one] * 7), moved), penalty(one, moved))


def test_merging_refuses_what_does_not_belong_together():
    task = scalar(3, 1, 5, 10)
    with pytest.raises(ValueError, match=r"differ in their settings \(faithful: False or True\)"):
        merge([task, scalar(3, 1, 5, 10, faithful=True)])
    with pytest.raises(ValueError, match="no task"):
        merge([])


@pytest.mark.parametrize("structure", ["kfac", "ekfac", "diag_ggn"])
def test_save_and_load(structure: str, tower: Tower, images: Tensor, tmp_path):
    settings = CurvatureSettings(structure=structure).statistic
    found = curvature(tower, [images], tower.layers, settings)
    packed, header = found.pack()
    save_file(
        {name: tensor.contiguous() for name, tensor in packed.items()}, tmp_path / "c.safetensors"
    )
    header = json.loads(json.dumps(header))
    loaded = Curvature.unpack(load_file(tmp_path / "c.safetensors"), header, settings.record())
    same(found, loaded, 0)
    assert loaded.pack()[1] == header
    assert (loaded.examples, loaded.untracked, loaded.biased) == (5, found.untracked, found.biased)
    moved = {name: torch.randn(weight.shape) for name, weight in tower.parameters.items()}
    assert penalty(loaded, moved) == penalty(found, moved)
    for change in ({"seed": 1}, {"probes": 2}, {"precision": "float64"}, {"faithful": True}):
        with pytest.raises(ValueError, match=f"other settings .*{next(iter(change))}: "):
            Curvature.unpack(packed, header, settings.model_copy(update=change).record())
    if structure == "kfac":
        # Q, k, v share theirs
        assert sum("/inputs" in name and "attn" in name for name in packed) == 4
    if structure == "ekfac":
        with pytest.raises(ValueError, match="exact sum"):
            merge([found, found])


def test_what_kfac_asks_for(tower, images):
    recipe = Kfac(curvature={"examples": 10, "seed": 3, "structure": "diag_ggn"})
    first, second = recipe.needs(Given(tower, {"own": None}, others={"a": None, "b": None}).scope)
    assert (first.on.task, first.on.split, first.on.use, first.on.labels) == (
        "a",
        "train",
        "calibration",
        False,
    )
    assert (first.on.budget.count, first.on.budget.seed, first.side) == (10, 3, "target")
    assert first.what == second.what and (first.what.structure, first.what.seed) == ("diag_ggn", 3)
    half = (
        Kfac(curvature={"fraction": 0.5})
        .needs(Given(tower, {}, others={"a": None}).scope)[0]
        .on.budget
    )
    assert (half.count, half.fraction) == (None, 0.5)
    alone = Given(tower, {"own": None})
    assert (
        not recipe.needs(alone.scope) and not recipe.penalties(alone) and not recipe.frozen(alone)
    )
    found = curvature(tower, [images], tower.layers, EXACT)
    given = Given(tower, {}, others={"a": found})
    assert set(recipe.frozen(given)) == {"positional_embedding", "patch_embed.weight"}
    assert not Kfac(regularised_only=False).frozen(given)


@pytest.mark.parametrize(("cadence", "count"), [(1, 3), (7, 7), (2, 4), (3, 2)])
def test_every_other_task_has_its_turn_whatever_the_cadence(
    cadence: int, count: int, tower, images, monkeypatch
):
    views = {f"t{n}": Memory(images + n) for n in range(count)}
    recipe = TauJp(examples=3, penalty={"weight": 2.0, "cadence": cadence})
    asked = []

    def seen(model, deltas, inputs, head):
        asked.append(inputs)
        return sum(delta.sum() for delta in deltas.values())

    monkeypatch.setattr("taskvec.training.regularisers.drift", seen)
    (term,) = recipe.penalties(Given(tower, {}, seed=5, others=views))
    deltas = {"w": torch.ones(2, requires_grad=True)}
    steps = range(2 * count * cadence)
    for step in steps:
        expected = 4.0 * cadence if step % cadence == 0 else 0.0
        assert term(step, deltas).item() == expected
    wanted = []
    for turn, step in enumerate(steps[::cadence]):
        rows = torch.randint(5, (3,), generator=generator(5, -1 - step))
        wanted.append(views[f"t{turn % count}"].inputs[rows])
    assert all(torch.equal(found, rows) for found, rows in zip(asked, wanted, strict=True))


def test_cost_does_not_grow_with_the_number_of_tasks(tower, images):
    """The merged penalty of 9 tasks takes as many products as that of 2; merging holds at most three at once."""
    alive, most, costs = weakref.WeakSet(), 0, []

    def read(number: int) -> Curvature:
        nonlocal most
        part = curvature(tower, [images + number], tower.layers, EXACT)
        alive.add(part)
        most = max(most, len(alive))
        return part

    for tasks in (2, 9):
        given = Given(tower, {}, others={str(n): partial(read, n) for n in range(tasks)})
        recipe = Kfac(curvature=EXACT.record(), penalty={"weight": 3.0})
        deltas = {
            name: torch.ones(w.shape).requires_grad_() for name, w in tower.parameters.items()
        }
        assert set(recipe.frozen(given)) == set(read(0).untracked)
        (term,) = recipe.penalties(given)
        with FlopCounterMode(display=False) as counter:
            term(0, deltas).backward()
        costs.append(counter.get_total_flops())
    assert most <= 3
    assert costs[0] == costs[1] > 0
