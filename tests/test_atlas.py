"""aTLAS's properties (spec atlas 7, 22 to 39) on a small float64 tower, against explicit sums and autograd."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from atlas_world import WIDTH, Interrupted, Module, Store, Tower, given, vectors, view
from conftest import configs
from pydantic import ValidationError
from torch import nn

from taskvec.errors import UserError
from taskvec.merge.learned import choosing
from taskvec.merge.learned.atlas import Atlas
from taskvec.merge.learned.atlas_steps import _penalties, blocks_of
from taskvec.merge.learned.bases import RandomBasis
from taskvec.merge.learned.composition import Learned, recomposed
from taskvec.merge.learned.learning import Learner
from taskvec.needs import Examples, Statistics
from taskvec.protocols.base import Answer, Learning
from taskvec.protocols.selection import Rule
from taskvec.statistics.gradient import Gradient
from taskvec.training.blocks import blocks
from taskvec.training.coefficients import Coefficients
from taskvec.training.factor_coefficients import FactorCoefficients
from taskvec.training.objectives.negation import Negation
from taskvec.vectors import LowRank, TaskVector

SEEDS = pytest.mark.parametrize("seed", [3, 1234])
KINDS = [
    {"by": "tensor"},
    {"qkv": "split"},
    {"by": "vector"},
    {"by": "rows"},
    {"by": "columns"},
    {"matrices": True},
    {"parts": 3},
    {"parts": 3, "by": "vector"},
    {"parts": 5, "share_parts": True},
]
QUICK = {"steps": 6, "epochs": None, "batch_size": 16, "augment": "none", "lr": 0.05}


def coefficients(merge: Atlas, model: Tower, signed, values=None, **more) -> Coefficients:
    """The parameterisation of a merge's blocks at some coefficients."""
    cut = blocks_of(merge, model.parameters, model.layers, seed=5)
    found = Coefficients(model.parameters, [s.delta for s in signed], cut, **more)
    if values is not None:
        found.coefficients.data.copy_(
            values
            if isinstance(values, torch.Tensor)
            else torch.full_like(found.coefficients, values)
        )
    return found


def explicit(trained: Coefficients, leaf: torch.Tensor) -> dict:
    """theta_0 + the sum of all scaled vectors, as autograd sees it."""
    found = {}
    for name in trained.names:
        layout = trained.blocks.layouts[name]
        found[name] = trained.base[name]
        for row, vector in zip(leaf, trained.vectors, strict=True):
            found[name] = found[name] + vector[name] * layout.spread(row[layout.columns])
    return found


def loss_of(model: Tower, examples, weights) -> torch.Tensor:
    logits = model.logits(model.features(weights, examples.inputs), examples.head)
    return F.cross_entropy(logits, examples.targets)


# --- composition ----------------------------------------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_value_and_gradient_are_those_of_the_explicit_graph(seed, settings):
    model, examples = Tower(seed), view(seed)
    signed = vectors(model, seed)
    trained = coefficients(Atlas(**settings), model, signed)
    trained.coefficients.data.normal_()
    leaf = trained.coefficients.detach().clone().requires_grad_()
    reference = loss_of(model, examples, explicit(trained, leaf))
    found = loss_of(model, examples, trained.parameters())
    torch.testing.assert_close(found, reference)
    expected = torch.autograd.grad(reference, leaf)[0]
    own = torch.autograd.grad(found, trained.coefficients)[0]
    torch.testing.assert_close(own, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_zero_is_the_base_bit_for_bit_and_equal_coefficients_are_task_arithmetic(settings):
    model = Tower(1)
    signed = vectors(model, 1)
    for name, weights in coefficients(Atlas(**settings), model, signed).parameters().items():
        assert weights.equal(model.parameters[name])
    trained = coefficients(Atlas(**settings), model, signed, 0.3)
    total = sum(s.delta for s in signed)
    for name, weights in trained.parameters().items():
        torch.testing.assert_close(weights, model.parameters[name] + 0.3 * total[name])
    left_out = set(model.parameters) - set(trained.names)
    assert left_out == (
        {n for n, p in model.parameters.items() if p.ndim != 2} if "matrices" in settings else set()
    )


def test_one_vector_at_one_is_the_fine_tuned_model_and_the_order_of_vectors_is_free():
    model = Tower(2)
    signed = vectors(model, 2)
    (single,) = [coefficients(Atlas(), model, signed[:1], 1.0).parameters()]
    for name, weights in single.items():
        torch.testing.assert_close(weights, model.parameters[name] + signed[0].delta[name])
    values = torch.randn_like(coefficients(Atlas(), model, signed).coefficients)
    one = coefficients(Atlas(), model, signed, values).parameters()
    other = coefficients(Atlas(), model, signed[::-1], values.flip(0)).parameters()
    for name in one:
        torch.testing.assert_close(one[name], other[name])


@SEEDS
def test_slopes_at_zero_are_inner_products_and_unused_blocks_have_none(seed):
    model, examples = Tower(seed), view(seed)
    signed = vectors(model, seed)
    trained = coefficients(Atlas(), model, signed)
    own = torch.autograd.grad(loss_of(model, examples, trained.parameters()), trained.coefficients)[
        0
    ]
    leaves = {
        name: p.clone().requires_grad_() for name, p in model.parameters.items() if name != "unused"
    }
    gradient = dict(
        zip(
            leaves,
            torch.autograd.grad(loss_of(model, examples, leaves), leaves.values()),
            strict=True,
        )
    )
    found = choosing.slopes(gradient, [s.delta for s in signed], trained.blocks)
    torch.testing.assert_close(found, own)
    assert own[:, trained.blocks.layouts["unused"].first].eq(0).all()


def test_q_k_v_share_a_coefficient_unless_they_are_split():
    model = Tower(1)
    joint, split = (
        blocks_of(Atlas(qkv=how), model.parameters, model.layers, 0) for how in ("joint", "split")
    )
    assert split.count == len(model.parameters) == joint.count + 4
    assert joint.layouts["attn.q.weight"].first == joint.layouts["attn.v.weight"].first
    assert joint.layouts["attn.q.bias"].first != joint.layouts["attn.q.weight"].first
    assert "attn.q.weight+attn.k.weight+attn.v.weight" in joint.columns()


def test_parts_are_a_partition_by_seed():
    model = Tower(1)
    cut = [blocks_of(Atlas(parts=4), model.parameters, model.layers, seed) for seed in (1, 1, 2)]
    one, same, other = (found.layouts["attn.out.weight"] for found in cut)
    assert one.parts().equal(same.parts())
    assert not one.parts().equal(other.parts())
    assert one.summed(torch.ones(WIDTH, WIDTH)).sum() == WIDTH * WIDTH
    # More parts than entries
    many = blocks_of(Atlas(parts=99), model.parameters, model.layers, 0).layouts["unused"]
    assert many.summed(torch.ones(2)).sum() == 2
    alike = blocks_of(
        Atlas(parts=4, share_parts=True, qkv="split"), model.parameters, model.layers, 0
    ).layouts
    assert alike["attn.q.weight"].parts().equal(alike["attn.out.weight"].parts())


def test_one_part_is_plain_atlas():
    model = Tower(1)
    signed = vectors(model, 4)
    plain = coefficients(Atlas(), model, signed, 0.7).parameters()
    one = coefficients(Atlas(parts=1), model, signed, 0.7).parameters()
    same = coefficients(Atlas(parts=6), model, signed, 0.7).parameters()
    for name in plain:
        assert one[name].equal(plain[name])
        torch.testing.assert_close(same[name], plain[name])


def test_rows_and_columns_are_not_cut_into_parts():
    with pytest.raises(ValidationError, match="random parts"):
        Atlas(by="rows", parts=2)


def test_coefficients_alike_in_all_blocks_are_one_coefficient_a_vector():
    model = Tower(1)
    signed = vectors(model, 6)
    own = torch.tensor([[0.4], [-0.2], [1.1]], dtype=torch.float64)
    isotropic = coefficients(Atlas(by="vector"), model, signed, own).parameters()
    count = coefficients(Atlas(), model, signed).coefficients.shape[1]
    blockwise = coefficients(Atlas(), model, signed, own.expand(3, count)).parameters()
    for name, weights in isotropic.items():
        torch.testing.assert_close(blockwise[name], weights)


def test_batch_norms_keep_the_statistics_of_the_base_and_blocks_go_by_name():
    """Running statistics are no blocks; a vector's entries meet parameters by name, in whatever order they stand."""
    norm = nn.BatchNorm1d(4)  # over the four places
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    model, examples = Tower(2, norm=norm), view(2)
    statistics = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    signed = vectors(model, 2)
    turned = []
    for one in signed:
        backwards = dict(reversed(list(one.vector.items())))
        turned.append(one._replace(vector=TaskVector(backwards)))
    values = torch.randn_like(coefficients(Atlas(), model, signed).coefficients)
    trained = coefficients(Atlas(), model, turned, values)
    assert set(trained.names) == set(dict(model.module.named_parameters()))
    expected = model.features(explicit(trained, values), examples.inputs)
    for _ in range(2):
        found = model.features(trained.parameters(), examples.inputs)
        torch.testing.assert_close(found, expected)
    for name, buffer in model.module.named_buffers():
        assert buffer.equal(statistics[name])


# --- float16 parity -------------------------------------------------------------------------------------------------


@SEEDS
def test_half_precision_rounds_as_the_released_code(seed):
    """`sum([t.half() * c ...])` from 0, left to right, then added to float32 weights."""
    model = Tower(seed, torch.float32)
    signed = vectors(model, seed)
    trained = coefficients(Atlas(faithful=True), model, signed, half=True)
    trained.coefficients.data.normal_()
    leaf = trained.coefficients.detach().clone().requires_grad_()
    official = {}
    for name in trained.names:
        column = trained.blocks.layouts[name].first
        terms = [s.delta[name].half() * leaf[row, column] for row, s in enumerate(signed)]
        official[name] = sum(terms) + model.parameters[name]
    own = trained.parameters()
    for name, weights in official.items():
        assert weights.dtype == torch.float32
        assert own[name].equal(weights)
    cotangents = {name: torch.randn_like(w) for name, w in official.items()}
    expected = torch.autograd.grad(
        sum((w * cotangents[n]).sum() for n, w in official.items()), leaf
    )[0]
    found = torch.autograd.grad(
        sum((w * cotangents[n]).sum() for n, w in own.items()), trained.coefficients
    )[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# --- LoRA -----------------------------------------------------------------------------------------------------------


def lora(model: Tower, seed: int, scale: float = 2.0):
    torch.manual_seed(seed)
    found = []
    for signed in vectors(model, seed, 2):
        factors = {}
        for name in ("attn.q.weight", "attn.out.weight"):
            up, down = torch.randn(WIDTH, 2).double(), torch.randn(2, WIDTH).double()
            factors[name] = LowRank(up, down, scale)
        found.append(signed._replace(vector=TaskVector({}, factors=factors)))
    return found


def test_lora_products_are_blocks_and_add_up():
    model = Tower(1)
    signed = lora(model, 1)
    trained = coefficients(Atlas(), model, signed[:1], 1.0)
    product = signed[0].vector.factors["attn.q.weight"]
    expected = model.parameters["attn.q.weight"] + 2.0 * product.up @ product.down
    torch.testing.assert_close(trained.parameters()["attn.q.weight"], expected)


def test_lora_factors_are_bilinear_and_start_at_the_base():
    model = Tower(1)
    trained = FactorCoefficients(model.parameters, [s.vector for s in lora(model, 1)], seed=3)
    for name, weights in trained.parameters().items():
        assert weights.equal(model.parameters[name])
    ups = [name for name in trained.blocks.layouts if name.startswith("up/")]
    columns = [trained.blocks.layouts[name].first for name in ups]
    trained.coefficients.data.normal_()
    once = trained.vector()["attn.q.weight"]
    trained.coefficients.data[:, columns] *= 3
    torch.testing.assert_close(trained.vector()["attn.q.weight"], 3 * once)
    with pytest.raises(UserError, match="select=lora"):
        FactorCoefficients(model.parameters, [s.vector for s in vectors(model, 1)], seed=0)


# --- learning -------------------------------------------------------------------------------------------------------


def learned(merge: Atlas, seed: int = 3, mode: str = "standard", **more):
    """The composition of a merge on one task of the tower, and what it was given."""
    model, signed = Tower(seed), vectors(Tower(seed), seed)
    own = given(model, signed, {"t9": view(seed)}, forward=mode, **more)
    return merge.compose(model.parameters, signed, own), own


@pytest.mark.parametrize("mode", ["standard", "tangent"])
@pytest.mark.parametrize(
    "settings", [{}, {"by": "rows"}, {"parts": 4}, {"faithful": True}], ids=str
)
def test_learning_lowers_the_loss_and_the_saved_coefficients_compose_again(mode, settings):
    merge = Atlas(schedule={**QUICK, "steps": 30}, **settings)
    found, own = learned(merge, mode=mode)
    curve = found.report["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    tensors, meta = found.pack()
    again = Learned.unpack(own.model.parameters, tensors, meta)
    assert again.coefficients.equal(found.coefficients)
    signed = vectors(own.model, 3)
    if not merge.faithful:
        cut = blocks_of(merge, own.model.parameters, own.model.layers, 0)
        recomputed = recomposed(own.model.parameters, signed, cut, again.coefficients, again.meta)
        for name, delta in recomputed.items():
            torch.testing.assert_close(delta, found.direction()[name])
        with pytest.raises(UserError, match="other task vectors"):
            recomposed(own.model.parameters, signed[::-1], cut, again.coefficients, again.meta)
    outcomes, _ = own.evaluator.predictions(again, own.learning.examples, [1.0])
    assert len(outcomes[1.0]) == 1


def test_exported_weights_are_the_composed_model():
    found, own = learned(Atlas(schedule=QUICK))
    inputs = view(3).inputs
    trained = coefficients(Atlas(), own.model, vectors(own.model, 3), found.coefficients)
    composed = own.model.features(trained.parameters(), inputs)
    exported = Module().double()
    exported.load_state_dict(found.parameters(1.0))
    torch.testing.assert_close(exported(inputs), composed)


def test_the_linearised_model_is_linear_in_the_coefficients():
    model, signed = Tower(3), vectors(Tower(3), 3)
    trained = coefficients(Atlas(), model, signed)
    learner = Learner(
        given(model, signed, {"t9": view(3)}, forward="tangent"), trained, Atlas().schedule, 0
    )

    def features(values):
        trained.coefficients.data.copy_(values)
        return learner.states()("t9", view(3).inputs).detach()

    one, other = (
        torch.randn_like(trained.coefficients).data,
        torch.randn_like(trained.coefficients).data,
    )
    start = features(torch.zeros_like(one))
    torch.testing.assert_close(
        features(one + other) - start, features(one) + features(other) - 2 * start
    )


def test_a_resumed_training_is_the_undisturbed_one_and_seeds_change_it():
    merge = Atlas(schedule={**QUICK, "epochs": 4}, select="best")

    def run(store, seed=0):
        model, signed = Tower(3), vectors(Tower(3), 3)
        views = {"t9": view(3), "t8": view(4)}
        chosen = tuple(Examples(task, "val", "selection", labels=True) for task in views)
        own = given(
            model,
            signed,
            views,
            checkpoint=store,
            known=dict(zip(chosen, views.values(), strict=True)),
        )
        own.learning = Learning(
            own.objective, own.scope.learning, Rule(kind="highest_accuracy"), chosen
        )
        return merge.model_copy(update={"seed": seed}).compose(model.parameters, signed, own)

    whole = run(None)
    store = Store(after=5)
    with pytest.raises(Interrupted):
        run(store)
    again = run(store)
    assert again.coefficients.equal(whole.coefficients)
    assert again.report["validation"] == whole.report["validation"]
    assert not run(None, seed=9).coefficients.equal(whole.coefficients)
    assert len(whole.report["validation"]) == 5  # the start and four epochs
    assert max(whole.report["validation"]) == whole.report["validation"][whole.report["epoch"]]


def test_the_control_stops_negation():
    """Rule and stop: the lowest target among epochs that keep 95 % of the control, training ends below it."""
    model, signed = Tower(3), vectors(Tower(3), 3, 1)
    views = {"t9": view(3), "control": view(5)}
    chosen = tuple(Examples(task, "val", "selection", labels=True) for task in views)
    own = given(
        model,
        signed,
        views,
        objective=Negation(),
        known=dict(zip(chosen, views.values(), strict=True)),
    )
    rule = Rule(kind="lowest_target", control_threshold=0.95)
    own.learning = Learning(own.objective, own.scope.learning, rule, chosen)
    # More than can be kept: 1.9
    own.answers = {"zero_shot": Answer(selection={0.0: {"control": 2.0}})}
    stopped = Atlas(schedule={**QUICK, "epochs": 3}).compose(model.parameters, signed, own)
    assert stopped.report["epoch"] == 0
    assert stopped.coefficients.eq(0).all()
    # One epoch of 40 rows, eight of each side a step
    assert stopped.report["curve"][-1]["step"] == 5


def test_the_penalty_is_the_mean_over_blocks_of_the_norm_over_vectors():
    values = torch.tensor([[3.0, 0.0], [-4.0, 1.0]])
    for norm, expected in ((1, (7 + 1) / 2), (2, (5 + 1) / 2)):
        (penalty,) = _penalties(Atlas(penalty=0.5, penalty_norm=norm), values)
        assert penalty(0).item() == 0.5 * expected
    assert _penalties(Atlas(), values) == []


def test_few_examples_make_a_longer_epoch():
    found, _ = learned(Atlas(schedule={**QUICK, "epochs": 2, "batch_size": 64, "least": 10}))
    assert found.report["curve"][-1]["step"] == 20


# --- a budget of vectors --------------------------------------------------------------------------------------------


def test_choices_by_slope_and_block():
    slopes = torch.tensor([[0.0, 5.0, 1.0], [3.0, 0.0, -4.0], [-1.0, 1.0, 1.0]])
    assert choosing.by_slope(slopes, 2) == [1, 0]
    assert choosing.block_ranks(slopes, 2).tolist() == [[1, 0, 1], [2, 2, 0]]
    assert choosing.block_ranks(slopes, 3).sort(0).values.tolist() == [[0] * 3, [1] * 3, [2] * 3]
    features = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 0.0])]
    assert choosing.by_features(torch.tensor([1.0, 0.9]), features, 2) == [1, 0]
    assert sorted(choosing.at_random(5, 5, 0)) == list(range(5))


def test_slopes_of_groups_are_those_of_all_vectors_together():
    model = Tower(1)
    signed = vectors(model, 1, 5)
    cut = blocks_of(Atlas(), model.parameters, model.layers, 0)
    gradient = {name: torch.randn_like(p) for name, p in model.parameters.items()}
    deltas = [s.delta for s in signed]
    together = choosing.slopes(gradient, deltas, cut)
    apart = torch.cat(
        [choosing.slopes(gradient, deltas[:2], cut), choosing.slopes(gradient, deltas[2:], cut)]
    )
    assert together.equal(apart)


@pytest.mark.parametrize("choose", ["random", "gradient", "gradient_blockwise"])
def test_a_budget_of_all_vectors_keeps_them_all_and_a_smaller_one_learns(choose):
    model, signed = Tower(3), vectors(Tower(3), 3)
    examples = Examples("t9", "val", "learning", labels=True)
    gradient = {name: torch.randn_like(p) for name, p in model.parameters.items()}
    known = {Statistics(Gradient(), examples): SimpleNamespace(mean=gradient)}
    for budget, rows in ((3, 3), (2, 2)):
        own = given(model, signed, {"t9": view(3)}, known=known)
        merge = Atlas(budget=budget, choose=choose, schedule=QUICK)
        assert set(merge.needs(own.scope)) <= known.keys()
        assert merge.compose(model.parameters, signed, own).coefficients.shape[0] == rows


def test_mixed_vectors_take_each_block_from_its_vector():
    model = Tower(1)
    deltas = [s.delta for s in vectors(model, 1)]
    cut = blocks("tensor", {name: p.shape for name, p in model.parameters.items()})
    source = torch.arange(cut.count) % 3
    mixed = choosing.Mixed(deltas, cut, source)
    for position, name in enumerate(model.parameters):
        assert mixed[name].equal(deltas[position % 3][name])


def test_random_bases_have_the_weights_mean_and_spread():
    weights = {"w": 3 + 0.1 * torch.randn(200, 200)}
    basis = RandomBasis(weights, 0, 5)
    assert basis["w"].equal(basis["w"])
    assert not basis["w"].equal(RandomBasis(weights, 1, 5)["w"])
    assert basis["w"].mean().item() == pytest.approx(3, abs=0.01)
    assert basis["w"].std().item() == pytest.approx(0.1, rel=0.05)


def test_pictures_are_vectors_by_parameters_and_roles_by_depth():
    found, own = learned(Atlas(schedule=QUICK))
    heat = found.report["figures"]["coefficients"]
    assert (len(heat["rows"]), len(heat["columns"])) == (3, len(own.model.parameters))
    assert found.report["figures"]["by_depth"]["rows"] == ["attn.q", "attn.k", "attn.v", "attn.out"]


def test_a_search_without_gradients_lowers_the_loss_by_seed():
    pytest.importorskip("nevergrad")
    merge = Atlas(by="vector", search={"budget": 20}, schedule=QUICK)
    found, _ = learned(merge)
    losses = [point["loss"] for point in found.report["curve"]]
    assert len(losses) == 20
    assert min(losses) < losses[0]
    assert found.coefficients.abs().max() <= 1.5
    assert learned(merge)[0].coefficients.equal(found.coefficients)


def test_a_search_without_its_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("taskvec.merge.learned.search.LIBRARY", "no_such_library")
    own = given(Tower(1), vectors(Tower(1), 1), {"t9": view(1)})
    with pytest.raises(UserError, match=r"taskvec\[search\]"):
        Atlas(search={}).needs(own.scope)


# --- the authors' settings -------------------------------------------------------------------------------------------

AUTHORS = {  # lr, epochs, shape of the rate (spec 6.3)
    "addition": (1e-3, 20, "constant"),
    "negation": (5e-3, 20, "constant"),
    "few_shot": (1e-1, 10, "cosine"),
    "test_time": (1e-3, 10, "cosine"),
}


@pytest.mark.parametrize("protocol", AUTHORS)
def test_the_authors_settings(protocol):
    runs = configs(f"atlas/authors_{protocol}")
    for run in runs:
        assert run.protocol.kind == protocol
        assert run.merge.faithful
        schedule = run.merge.schedule
        assert (schedule.lr, schedule.epochs, schedule.shape) == AUTHORS[protocol]
        assert schedule.weight_decay == 0.1
        # A norm of 1 of gradients that are scaled by 65536
        assert schedule.clip_norm == 2**-16
        assert schedule.batch_size == (16 if protocol == "addition" else 128)
    if protocol == "few_shot":
        sampled = {(run.protocol.shots, run.protocol.seed) for run in runs}
        assert sampled == {(k, seed) for k in (1, 2, 4, 8, 16) for seed in range(3)}
        assert {run.protocol.select for run in runs} == {"validation"}
    if protocol == "negation":
        assert {run.protocol.control_threshold for run in runs} == {0.95}
    if protocol == "test_time":
        (run,) = runs
        assert run.merge.objective.faithful and run.protocol.select == "validation"
