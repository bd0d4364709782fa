"""Predictions of compositions, one by one and along a grid; what a grid costs; and what is not finite."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from memory import Memory, evaluator, need
from torch import Tensor, nn
from world import COUNTS, FAST, TASKS

from taskvec.errors import NotFinite
from taskvec.models.base import Model
from taskvec.training import walk
from taskvec.training.linearise import jvp_features
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Composition, PerTask, Scaled, Summed

SEEDS = pytest.mark.parametrize("seed", [3, 1234])
GRID = (0.0, 0.3, 1.0, 1.5)


class Words(nn.Module):
    """Embedded words [N, L], padded with -1, to tanh features of every word, and of their mean."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 5)
        self.hidden = nn.Linear(5, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.hidden(self.table(inputs.clamp(min=0).long())))


class Reader(Model):
    """A model of words in float64 with a linear head, which gives the probability of texts too."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        super().__init__(Words().double())
        self.most = 0  # examples in a batch

    def prepare(self, inputs: Tensor) -> tuple[Tensor]:
        self.most = max(self.most, len(inputs))
        return (inputs,)

    def features(self, parameters, inputs: Tensor, head: Tensor | None = None) -> Tensor:
        real = (inputs >= 0).unsqueeze(-1)
        return (super().features(parameters, inputs) * real).sum(1) / real.sum(1)

    def logits(self, features: Tensor, head: Tensor, parameters=None) -> Tensor:
        return features @ head.to(features).T

    def token_states(self, parameters, inputs: Tensor) -> Tensor:
        return super().features(parameters, inputs)

    def token_log_probs(self, states: Tensor, inputs: Tensor, parameters=None) -> Tensor:
        embedding = (parameters or {}).get("table.weight", self.parameters["table.weight"])
        found = (states[:, :-1] @ embedding[:, :4].T).log_softmax(-1)
        following = inputs[:, 1:]
        chosen = found.gather(2, following.clamp(min=0).long().unsqueeze(2))[..., 0]
        return torch.where(following >= 0, chosen, 0.0)


def texts(seed: int, size: int = 23, classes: int = 3) -> Memory:
    """Texts of different lengths, in no order."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 20, (size, 7), generator=generator, dtype=torch.int32)
    lengths = torch.randint(2, 8, (size, 1), generator=generator)
    head = torch.randn(classes, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, classes, (size,), generator=generator)
    return Memory(torch.where(torch.arange(7) < lengths, inputs, -1), targets, head)


def vector(model: Model, seed: int, names=None) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name in names or model.parameters:
        drawn[name] = torch.randn(
            model.parameters[name].shape, generator=generator, dtype=torch.float64
        )
    return TaskVector(drawn)


def classes(model: Model, view: Memory, weights) -> Tensor:
    """The predicted class of every example, one at a time."""
    found = [
        model.features(weights, view.inputs[i : i + 1]) @ view.head.T for i in range(len(view))
    ]
    return torch.cat(found).argmax(1)


@SEEDS
def test_every_coefficient_is_the_model_with_its_weights(seed, monkeypatch):
    monkeypatch.setattr(walk, "TEXTS", 4)
    model, views = Reader(seed), {"a": texts(seed), "b": texts(seed + 1, 9, 5)}
    tau = vector(model, seed)
    ask, needs = evaluator(model, views)
    found, excluded = ask.predictions(Scaled(model.parameters, tau), needs, GRID)
    assert not excluded and list(found) == list(GRID)
    assert model.most == 4
    for alpha in GRID:
        for at in needs:
            weights = tau.apply_to(model.parameters, alpha)
            assert torch.equal(found[alpha][at], classes(model, views[at.task], weights))
    assert not torch.equal(found[0.0][needs[0]], found[1.0][needs[0]])


@SEEDS
@pytest.mark.parametrize("forward", ["standard", "tangent"])
def test_tasks_may_have_models_and_heads_of_their_own(seed, forward):
    class Adapted(PerTask):
        def readout(self, task: str) -> dict[str, Tensor]:
            return {"head": -views["a"].head} if task == "a" else {}

    model, views = Reader(seed), {task: texts(seed + i) for i, task in enumerate("abc")}
    own, shared = {"a": vector(model, seed), "b": vector(model, seed + 1)}, vector(model, seed + 2)
    composition = Adapted(model.parameters, own, shared)
    composition.forward = forward
    ask, needs = evaluator(model, views)
    found, _ = ask.predictions(composition, needs, (0.5, 1.0))
    for alpha in (0.5, 1.0):
        for at in needs:
            tau, view = alpha * own.get(at.task, shared), views[at.task]
            linear = sum(jvp_features(model, tau, view.inputs))
            features = (
                linear
                if forward == "tangent"
                else model.features(tau.apply_to(model.parameters), view.inputs)
            )
            expected = (-1 if at.task == "a" else 1) * features @ view.head.T
            assert torch.equal(found[alpha][at], expected.argmax(1))


@SEEDS
@pytest.mark.parametrize("forward", ["standard", "tangent"])
def test_each_vector_may_have_a_coefficient_of_its_own(seed, forward):
    model, views = Reader(seed), {"a": texts(seed)}
    vectors = {"a": vector(model, seed), "b": vector(model, seed + 1)}
    composition = Summed(model.parameters, vectors)
    composition.forward = forward
    ask, (at,) = evaluator(model, views)
    found, _ = ask.predictions(
        composition, [at], {"first": {"a": 0.7, "b": 0.0}, "both": {"a": 0.7, "b": -0.4}}
    )
    for key, tau in (
        ("first", 0.7 * vectors["a"]),
        ("both", 0.7 * vectors["a"] + -0.4 * vectors["b"]),
    ):
        single = Scaled(model.parameters, tau)
        single.forward = forward
        assert torch.equal(found[key][at], ask.predictions(single, [at], (1.0,))[0][1.0][at])


@pytest.mark.parametrize("outputs", [1, 4])
def test_a_regression_predicts_scores(outputs):
    model, view = Reader(1), texts(1, classes=outputs)
    view = Memory(view.inputs, torch.rand(len(view)), view.head)
    ask, (at,) = evaluator(model, {"t": view})
    found, _ = ask.predictions(Scaled(model.parameters, TaskVector({})), [at], (0.0,))
    logits = model.features({}, view.inputs) @ view.head.T
    expected = logits[:, 0] if outputs == 1 else logits.softmax(1) @ torch.arange(4.0).double()
    torch.testing.assert_close(found[0.0][at], expected)


@SEEDS
@pytest.mark.parametrize("forward", ["standard", "tangent"])
def test_surprise_is_the_likelihood_of_every_document(seed, forward, monkeypatch):
    monkeypatch.setattr(walk, "DOCUMENTS", 5)
    model, view = Reader(seed), texts(seed, 13)
    corpus, tau = Memory(view.inputs), vector(model, seed, ["hidden.weight"])
    composition = Scaled(model.parameters, tau)
    composition.forward = forward
    ask, (at,) = evaluator(model, {"c": corpus})
    found, excluded = ask.surprise(composition, at, GRID)
    assert not excluded
    for alpha in GRID:
        for row, text in zip(found[alpha], view.inputs, strict=True):
            words = text[text >= 0].tolist()
            states = model.token_states(tau.apply_to(model.parameters, alpha), text[None])[0]
            if forward == "tangent":
                ends = [
                    model.token_states(tau.apply_to(model.parameters, h), text[None])[0]
                    for h in (1e-6, -1e-6)
                ]
                states = model.token_states({}, text[None])[0] + alpha * (ends[0] - ends[1]) / 2e-6
            log_p = (states @ model.parameters["table.weight"][:, :4].T).log_softmax(-1)
            expected = -sum(log_p[i, word].item() for i, word in enumerate(words[1:]))
            assert row.tolist() == pytest.approx([expected, len(words) - 1], rel=1e-7)


# --- what is not finite -----------------------------------------------------------------------------------------------


class Steep(Composition):
    """Weights that overflow at large coefficients."""

    def __init__(self, base, limit: float):
        self.base, self.limit = base, limit

    def parameters(self, alpha, task: str | None = None):
        value = math.inf if alpha > self.limit else float(alpha)
        return self.base | {"hidden.bias": torch.full((4,), value, dtype=torch.float64)}


@pytest.mark.parametrize("forward", ["standard", "tangent"])
def test_a_coefficient_that_overflows_is_excluded_and_the_others_count(forward):
    model, views = Reader(2), {"a": texts(2), "b": texts(3)}
    ask, needs = evaluator(model, views)
    steep, calm = Steep(model.parameters, 1.0), Steep(model.parameters, 9.0)
    steep.forward = calm.forward = forward
    found, excluded = ask.predictions(steep, needs, (0.5, 1.0, 1.5))
    expected, _ = ask.predictions(calm, needs, (0.5, 1.0))
    assert excluded == {1.5: "the merged hidden.bias is not finite"}
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[alpha][at], expected[alpha][at]) for alpha in found for at in needs
    )
    assert ask.surprise(steep, needs[0], (0.5, 1.5))[1] == excluded
    with pytest.raises(NotFinite, match=r"at alpha = 2.0 the merged hidden\.bias is not finite$"):
        ask.predictions(steep, needs, (2.0,))
    with pytest.raises(NotFinite, match="at alpha = 2.0 .* no other coefficient is better"):
        ask.predictions(steep, needs, (2.0, 3.0))


@pytest.mark.parametrize("forward", ["standard", "tangent"])
def test_logits_that_are_not_finite_name_the_task_and_are_no_class_0(forward):
    model, views = Reader(2), {"a": texts(2), "b": texts(3)}
    views["b"].head[1] = math.nan
    ask, needs = evaluator(model, views)
    composition = Scaled(model.parameters, vector(model, 2))
    composition.forward = forward
    with pytest.raises(NotFinite, match="the model's outputs on b/test are not finite"):
        ask.predictions(composition, needs, (0.0, 1.0))
    assert ask.predictions(composition, needs[:1], (0.0, 1.0))[0].keys() == {0.0, 1.0}


def test_of_a_linearised_model_only_the_base_is_left_where_the_derivative_overflows(monkeypatch):
    model, view = Reader(2), texts(2)
    tau = TaskVector({"hidden.weight": torch.full((4, 5), 1e308, dtype=torch.float64)})
    ask, (at,) = evaluator(model, {"a": view})
    composition = Scaled(model.parameters, tau)
    composition.forward = "tangent"
    found, excluded = ask.predictions(composition, [at], (0.0, 1.0))
    assert excluded == {1.0: "the model's outputs on a/test are not finite"}
    assert torch.equal(found[0.0][at], classes(model, view, {}))
    broken = Scaled(
        model.parameters, TaskVector({"hidden.bias": torch.full((4,), math.nan).double()})
    )
    broken.forward = "tangent"
    with pytest.raises(NotFinite, match=r"hidden\.bias of the task vector is not finite"):
        ask.predictions(broken, [at], (0.0, 1.0))


def test_features_that_are_not_finite_name_the_task():
    model, view = Reader(2), texts(2)
    ask, (at,) = evaluator(model, {"a": view})
    weights = {"hidden.bias": torch.full((4,), math.nan).double()}
    for refused in (
        lambda: ask.features(weights, at, slice(0, 3)),
        lambda: ask.linearised(weights, at, slice(0, 3)),
        lambda: ask.along([weights])(at, slice(0, 3)),
    ):
        with pytest.raises(NotFinite, match="a/test"):
            refused()


# --- what else is asked -----------------------------------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("linearised", [False, True])
def test_logits_are_differentiable_in_coefficients(seed, linearised):
    model, view = Reader(seed), texts(seed)
    ask, (at,) = evaluator(model, {"a": view})
    tau = vector(model, seed)

    def loss(scale: Tensor) -> Tensor:
        direction = {name: scale * delta for name, delta in tau.items()}
        weights = {name: model.parameters[name] + delta for name, delta in direction.items()}
        logits = ask.logits(weights, at, slice(0, 9), direction if linearised else None)
        return F.cross_entropy(logits, view.targets[:9])

    assert torch.autograd.gradcheck(
        loss, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    )


@SEEDS
@pytest.mark.parametrize("block", [None, 4])
def test_derivatives_along_several_vectors_are_those_along_each(seed, block):
    model, view = Reader(seed), texts(seed)
    ask, (at,) = evaluator(model, {"a": view})
    taus = [vector(model, seed), vector(model, seed + 1, ["hidden.bias"]), vector(model, seed + 2)]
    rows = torch.tensor([7, 0, 12, 3, 9])
    features, derivatives = ask.along(taus)(at, rows, block=block)
    torch.testing.assert_close(features, ask.features({}, at, rows))
    for tau, derivative in zip(taus, derivatives, strict=True):
        start, slope = ask.linearised(tau, at, rows)
        torch.testing.assert_close(start, features)
        torch.testing.assert_close(slope, derivative)
    torch.testing.assert_close(ask.classify(features, at), ask.logits({}, at, rows))


def test_bf16_takes_products_in_bfloat16_and_is_close():
    model, view = Reader(1), texts(1, 40)
    model.module.float()
    model.parameters = {name: p.float() for name, p in model.parameters.items()}
    view = Memory(view.inputs, view.targets, view.head.float())
    scores = []
    for bf16 in (False, True):
        ask, (at,) = evaluator(model, {"a": view}, bf16=bf16)
        scores.append(ask.logits({}, at, slice(None)))
    difference = (scores[0] - scores[1].float()).abs().max()
    assert 0 < difference < 0.05


def test_a_need_that_was_not_granted_is_not_answered():
    ask, _ = evaluator(Reader(1), {"a": texts(1)})
    with pytest.raises(KeyError):
        ask.predictions(Scaled(ask.model.parameters, TaskVector({})), [need("secret")], (0.0,))


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch):
    """Run overrides in this process, and count decoded images and artefacts read."""
    from taskvec.data import images
    from taskvec.graph import store
    from taskvec.runner import compose, configs
    from taskvec.runner.execute import execute

    monkeypatch.setitem(os.environ, "TASKVEC_INCLUDE", str(tiny))
    counts: Counter[str] = Counter()

    def counted(module: object, name: str) -> None:
        original = getattr(module, name)

        def wrapper(*arguments, **keywords):
            counts[name] += 1
            return original(*arguments, **keywords)

        monkeypatch.setattr(module, name, wrapper)

    counted(images, "open_picture")
    counted(store.Store, "read")
    configs.register_all()

    def go(*overrides: str):
        counts.clear()
        words = [*FAST, f"outputs={outputs}", *overrides]
        outcome = execute(compose.resolve(compose.compose(words)), tuple(words))
        assert outcome.state == "done", outcome.reason
        return outcome.result, Counter(counts)

    return go


def test_grid_decodes_and_reads_nothing_per_alpha(run, outputs: Path):
    shutil.rmtree(outputs / "store" / "decoded")
    _, short = run("protocol.grid=[0,0.5]")
    _, long = run("protocol.grid=[0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1]")
    assert short["open_picture"] == sum(COUNTS.values()) * len(TASKS), "each image is decoded once"
    assert long["open_picture"] == 0
    _, longer = run("protocol.grid=[0,0.05,0.15,0.25,0.35,0.45,0.55,0.65,0.75,0.85,0.95,1]")
    assert longer["read"] == long["read"]


def test_alpha_zero_is_the_base_and_alpha_one_the_sum(run, outputs: Path):
    result, _ = run("suite.tasks=[stripes]", "protocol.grid=[0,1]")
    rows = {row.row: row for row in result.rows}
    curve = {point["alpha"]: point["mean"] for point in result.curves["merged"]}
    at_one, individual = (
        rows[name].values("accuracy") for name in ("merged_alpha_1", "individual")
    )
    assert at_one == individual, "alpha = 1 of one vector is the tuned model"
    assert rows["individual"].mean("normalised") == 1.0
    assert set(curve) == {0.0, 1.0}


def test_result_says_what_was_seen_and_on_which_split(run):
    result, _ = run("suite.tasks=[stripes,corners]")
    assert result.data_seen["learning"] == ["corners/train", "stripes/train"]
    assert result.data_seen["selection"] == ["corners/val", "stripes/val"]
    assert result.data_seen["report"] == ["corners/test", "stripes/test"]
    merged = next(row for row in result.rows if row.row == "merged")
    assert (merged.selected_on, merged.rule) == ("val", "highest_normalised")
    assert set(merged.denominators) == {"stripes", "corners"}


def test_negation_control_and_reference_rows(run):
    result, _ = run("protocol=negation", "protocol.ascent=true")
    rows = {row.row: row for row in result.rows}
    assert list(rows) == ["zero_shot", "individual", "negated", "random", "ascent"]
    assert rows["negated"].mean("accuracy") <= rows["zero_shot"].mean("accuracy") + 0.1
    assert all(0 <= row.mean("control") <= 1 for row in rows.values())


def test_joint_training_is_a_row(run):
    result, _ = run("protocol.joint=true", "suite.tasks=[stripes,corners]")
    assert "joint" in {row.row for row in result.rows}
    assert any(stage.label == "vector stripes+corners" for stage in result.stages)


def test_tuning_on_what_a_learned_merge_sees_is_a_row(run):
    result, _ = run("protocol.tuned=true", "suite.tasks=[stripes,corners]")
    row = next(row for row in result.rows if row.row == "tuned")
    assert set(row.values("accuracy")) == {"stripes", "corners"}
    assert result.data_seen["learning"] == [
        "corners/train",
        "corners/val",
        "stripes/train",
        "stripes/val",
    ]


def test_subsets_of_a_suite(run):
    result, _ = run("protocol.subset_size=2")
    merged = [row for row in result.rows if row.row.startswith("merged/")]
    assert len(merged) == 3 and all(len(row.values("accuracy")) == 2 for row in merged)


def test_analogy_runs_on_four_tasks(run):
    roles = dict(zip("abc", TASKS, strict=True))
    words = [f"protocol.{role}={task}" for role, task in roles.items()]
    result, _ = run("protocol=analogy", "suite.tasks=[stripes,corners,colours,control]", "suite.control=null",
                    *words, "protocol.target=control")  # fmt: skip
    names = [row.row for row in result.rows]
    assert names == [
        "zero_shot",
        "individual",
        "auxiliary",
        "auxiliary_alpha_1",
        "analogy",
        "analogy_alpha_1",
    ]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precisions_run(run, precision: str):
    result, _ = run(f"compute.precision={precision}", "suite.tasks=[stripes]")
    assert result.config["compute"]["precision"] == precision
    torch.set_float32_matmul_precision("highest")


def test_rounded_weights_change_answers_alone_and_the_batch_nothing(run, outputs):
    plain, _ = run("suite.tasks=[stripes]")
    rounded, _ = run("suite.tasks=[stripes]", "compute.weights=bf16", "compute.batch=auto")
    words = ("suite.tasks=[stripes]", "compute.weights=bf16", "compute.batch=7")
    cut, _ = run(*words, f"outputs={outputs}/cut")
    assert cut.same_as(rounded)
    assert rounded.fingerprint != plain.fingerprint
    answers, others = [], []
    for result in (plain, rounded):
        answers.append({one.fingerprint for one in result.stages if one.kind == "answer"})
        others.append({one.fingerprint for one in result.stages if one.kind != "answer"})
    assert others[0] == others[1]
    assert answers[0].isdisjoint(answers[1])
