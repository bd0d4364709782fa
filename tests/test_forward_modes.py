"""Which parameters move, how leaves make weights, and the linearised forward in training and evaluation."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from memory import Given, Memory, evaluator
from torch import Tensor, nn
from torch.func import jacrev
from world import FAST

from taskvec import cli, registry
from taskvec.finetune.full import Full
from taskvec.finetune.recipe import Recipe
from taskvec.models.clip.backbone import Clip, ClipModel
from taskvec.models.clip.config import linear_layers, open_clip_config, vision_config
from taskvec.models.clip.vit import VisionTransformer
from taskvec.training import loop, walk
from taskvec.training.batches import Batches
from taskvec.training.linearise import along, jvp_features
from taskvec.training.parameterisation import Deltas, Factors, Weights
from taskvec.training.schedule import Schedule
from taskvec.training.selectors import selected
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Composition, Scaled

SEEDS = pytest.mark.parametrize("seed", [11, 402])
CONFIG = {"image_size": 8, "layers": 2, "width": 8, "head_width": 4, "patch_size": 4}
VISION = vision_config({"embed_dim": 6, "vision_cfg": CONFIG, "text_cfg": {}})
LAYERS = linear_layers(VISION)


def tower(seed: int) -> ClipModel:
    """A CLIP image tower in float64 with parameters far from their symmetric start."""
    torch.manual_seed(seed)
    module = VisionTransformer(VISION).double()
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model = ClipModel(module, [0.5] * 3, [0.25] * 3)
    model.mean, model.std = model.mean.double(), model.std.double()
    model.prepare = lambda inputs: ((inputs.double() - model.mean) / model.std,)
    model.layers = LAYERS
    return model


def view(seed: int, size: int = 10, classes: int = 3) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 8, 8), generator=generator, dtype=torch.uint8)
    head = 20 * F.normalize(torch.randn(classes, 6, generator=generator, dtype=torch.float64))
    return Memory(images, torch.randint(0, classes, (size,), generator=generator), head)


def direction(model: ClipModel, seed: int, size: float = 0.1, names=None) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    chosen = model.parameters if names is None else names
    return TaskVector(
        {
            n: size
            * torch.randn(model.parameters[n].shape, generator=generator, dtype=torch.float64)
            for n in chosen
        }
    )


def recipe(**settings) -> Recipe:
    plain = {
        "kind": "full",
        "augment": "none",
        "warmup": 2,
        "batch_size": 5,
        "lr": 1e-2,
        "steps": 4,
    }
    return Full(**plain | settings)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- which parameters move --------------------------------------------------------------------------------------------

# Parameters and tensors, attention's weights of B in spec 5.1; q, k and v are tensors of their own here
COUNTS = {
    ("ViT-B-32", "attn_w"): (28_311_552, 48),
    ("ViT-B-32", "attn_wb"): (28_311_552 + 36_864, 96),
    ("ViT-B-32", "attn_b"): (36_864, 48),
    ("ViT-B-32", "linear_w"): (84_934_656, 72),
    ("ViT-B-32", "mlp_w"): (84_934_656 - 28_311_552, 24),
    ("ViT-B-32", "mlp"): (84_934_656 - 28_311_552 + 12 * 5 * 768, 48),
    ("ViT-B-32", "full"): (87_849_216, None),
    ("ViT-B-16", "attn_w"): (28_311_552, 48),
    ("ViT-B-16", "linear_w"): (84_934_656, 72),
    ("ViT-B-16", "full"): (86_192_640, None),
    ("ViT-L-14", "attn_w"): (100_663_296, 96),
    ("ViT-L-14", "attn_wb"): (100_663_296 + 98_304, 192),
    ("ViT-L-14", "linear_w"): (301_989_888, 144),
    ("ViT-L-14", "full"): (303_966_208, None),
}


@pytest.mark.parametrize(("architecture", "select"), list(COUNTS))
def test_published_towers_have_the_papers_counts(architecture: str, select: str):
    config = vision_config(open_clip_config(architecture))
    with torch.device("meta"):
        parameters = dict(VisionTransformer(config).named_parameters())
    names = selected(select, parameters, linear_layers(config))
    parameter_count, tensors = COUNTS[architecture, select]
    assert sum(math.prod(parameters[name].shape) for name in names) == parameter_count
    assert tensors in (None, len(names))
    if select == "full":
        assert names == list(parameters)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (r"^blocks\.0\.attn\.[qk]\.weight$", ["blocks.0.attn.q.weight", "blocks.0.attn.k.weight"]),
        (r"ln_post\.", ["ln_post.weight", "ln_post.bias"]),
        (r"^(class|positional)_embedding$", ["class_embedding", "positional_embedding"]),
    ],
)
def test_a_pattern_selects_the_names_it_is_found_in(select: str, expected: list[str]):
    assert selected(select, tower(0).parameters, LAYERS) == expected


@SEEDS
@pytest.mark.parametrize("select", ["attn_w", "attn_b", "mlp", r"ln_1\.bias"])
@pytest.mark.parametrize("mode", ["standard", "tangent"])
@pytest.mark.parametrize("decay", ["zero", "base"])
def test_only_the_selected_move(seed, select, mode, decay, monkeypatch: pytest.MonkeyPatch):
    model, optimisers = tower(seed), []
    adamw = torch.optim.AdamW

    def spied(*arguments, **keywords):
        optimisers.append(adamw(*arguments, **keywords))
        return optimisers[-1]

    monkeypatch.setattr(loop.torch.optim, "AdamW", spied)
    before = {name: tensor.clone() for name, tensor in model.parameters.items()}
    settings = recipe(select=select, forward_mode=mode, decay_towards=decay, weight_decay=0.5)
    vector = settings.learn(Given(model, {"t": view(seed)}, seed=seed)).vector
    names = selected(select, model.parameters, LAYERS)
    assert list(vector) == names and 0 < len(names) < len(before)
    # Softmax ignores it
    assert all(vector[name].any() for name in names if not name.endswith("attn.k.bias"))
    assert all(torch.equal(model.parameters[name], before[name]) for name in before), (
        "theta_0 never changes"
    )
    tuned = vector.apply_to(model.parameters)
    assert all(tuned[name] is model.parameters[name] for name in before.keys() - set(names))
    (optimiser,) = optimisers
    held = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    assert [p.shape for p in held] == [before[name].shape for name in names]
    assert len(optimiser.state) <= len(names)
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters())


@SEEDS
def test_full_is_plain_fine_tuning_step_by_step(seed: int):
    model, data = tower(seed), view(seed)
    settings = recipe(steps=6, weight_decay=0.1, clip_norm=0.7)
    found = settings.learn(Given(model, {"t": data}, seed=seed))
    module = VisionTransformer(VISION).double()
    module.load_state_dict(model.module.state_dict())
    optimiser = torch.optim.AdamW(module.parameters(), lr=1.0, weight_decay=0.1)
    batches = Batches({"t": data}, batch_size=5, accumulation=1, seed=seed, crop=None)
    for step in range(6):
        (batch,) = batches.at(step)
        features = F.normalize(module((batch.inputs.double() / 255 - 0.5) / 0.25), dim=-1)
        loss = F.cross_entropy(features @ data.head.T, batch.labels["t"])
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.7)
        optimiser.param_groups[0]["lr"] = settings.rate(step, 6)
        optimiser.step()
        assert found.curve[step]["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert found.curve[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
    for name, parameter in module.named_parameters():
        close(model.parameters[name] + found.vector[name], parameter.detach(), 1e-7)


# --- how leaves make weights ------------------------------------------------------------------------------------------


@SEEDS
def test_parameterisations_start_at_the_base(seed: int):
    model = tower(seed)
    for select, decay, kind in (
        ("full", "zero", Weights),
        ("mlp", "base", Deltas),
        ("lora", "zero", Factors),
    ):
        made = recipe(select=select, decay_towards=decay, rank=2).parameterise(
            Given(model, {}, seed=seed)
        )
        assert type(made) is kind
        assert all(
            torch.equal(weight, model.parameters[name])
            for name, weight in made.parameters().items()
        )
        assert not any(delta.any() for delta in made.deltas().values())
        assert made.parameters().keys() == made.deltas().keys() <= model.parameters.keys()


@SEEDS
@pytest.mark.parametrize(("rank", "alpha"), [(1, 4.0), (3, 2.0)])
def test_low_rank_deltas_are_scaled_products(seed: int, rank: int, alpha: float):
    model = tower(seed)
    settings = recipe(select="lora", rank=rank, lora_alpha=alpha, steps=5, lr=0.05)
    vector = settings.learn(Given(model, {"t": view(seed)}, seed=seed)).vector
    assert list(vector) == selected("linear_w", model.parameters, LAYERS)
    assert all(0 < torch.linalg.matrix_rank(delta, rtol=1e-9) <= rank for delta in vector.values())
    made = Factors(model.parameters, list(vector), rank, alpha, seed)
    for name in vector:
        down, up = made.leaves[f"{name}/A"], made.leaves[f"{name}/B"]
        assert not up.any() and down.abs().max() <= 1 / math.sqrt(down.shape[1]) and down.any()
        up.data.normal_()
        close(made.deltas()[name], alpha / rank * up @ down, 1e-13)
        close(made.parameters()[name], model.parameters[name] + alpha / rank * up @ down, 1e-13)


@SEEDS
def test_low_rank_deltas_are_those_that_peft_merges(seed: int):
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    base = {name: p.detach().clone() for name, p in plain.named_parameters()}
    wrapped = peft.get_peft_model(
        plain, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"])
    )
    names = ["0.weight", "2.weight"]
    made = Factors(base, names, rank=2, alpha=6.0, seed=seed)
    state = dict(wrapped.named_parameters())
    for name in names:
        layer = name.removesuffix(".weight")
        made.leaves[f"{name}/B"].data.normal_()
        for ours, theirs in (("A", "lora_A"), ("B", "lora_B")):
            state[f"base_model.model.{layer}.{theirs}.default.weight"].data.copy_(
                made.leaves[f"{name}/{ours}"]
            )
    merged = dict(wrapped.merge_and_unload().named_parameters())
    for name in names:
        close(made.parameters()[name].detach(), merged[name].detach(), 1e-6)


@SEEDS
@pytest.mark.parametrize("towards", ["zero", "base"])
def test_what_weight_decay_pulls_to(seed: int, towards: str):
    """Without a gradient AdamW multiplies its leaves by 1 - rate * decay at every step."""
    model = tower(seed)
    made = recipe(select="mlp_w", decay_towards=towards).parameterise(Given(model, {}, seed=seed))
    offset = {name: torch.randn_like(leaf) for name, leaf in made.leaves.items()}
    start = {}
    for name, leaf in made.leaves.items():
        leaf.data += offset[name]
        start[name] = made.parameters()[name].detach().clone()

    class One:
        per_epoch, size = 1, 1

        def at(self, step: int, state) -> list:
            return [self]

    def nothing(batch: One, state) -> Tensor:
        return sum((0 * leaf).sum() for leaf in made.leaves.values())

    loop.train(
        [loop.Group(made.leaves)], nothing, One(), Schedule(lr=1e-2, weight_decay=0.5, steps=1)
    )
    for name, weight in made.parameters().items():
        target = 0 if towards == "zero" else model.parameters[name]
        close(weight.detach() - target, (start[name] - target) * (1 - 1e-2 * 0.5), 1e-12)


# --- the linearised model ---------------------------------------------------------------------------------------------


@SEEDS
def test_at_tau_zero_it_is_the_model_itself(seed: int):
    model, data = tower(seed), view(seed)
    plain = model.features(model.parameters, data.inputs)
    for vector in (TaskVector({}), 0 * direction(model, seed)):
        features, derivative = jvp_features(model, vector, data.inputs)
        close(features, plain, 1e-14)
        assert not derivative.any()
    features, derivatives = along(model, [TaskVector({})] * 2)(data.inputs, None)
    with torch.no_grad():  # as derivatives along several vectors are taken
        plain = model.features(model.parameters, data.inputs)
    assert (
        torch.equal(features, plain)
        and derivatives.shape == (2, *plain.shape)
        and not derivatives.any()
    )


@SEEDS
def test_superposition_over_vectors_and_coefficients(seed: int):
    model, data = tower(seed), view(seed)
    first, second = (
        direction(model, seed),
        direction(model, seed + 1, names=selected("attn_w", model.parameters, LAYERS)),
    )
    one, two = (jvp_features(model, tau, data.inputs)[1] for tau in (first, second))
    for a, b in ((0.3, 0.0), (1.0, 1.0), (-2.0, 0.7)):
        close(jvp_features(model, a * first + b * second, data.inputs)[1], a * one + b * two, 1e-12)


@SEEDS
def test_a_jvp_is_the_slope_and_the_product_with_the_jacobian(seed: int):
    model, data = tower(seed), view(seed, size=3)
    tau = direction(model, seed)
    _, found = jvp_features(model, tau, data.inputs)
    step = 1e-5
    ends = [model.features(tau.apply_to(model.parameters, s), data.inputs) for s in (step, -step)]
    close(found, (ends[0] - ends[1]) / (2 * step), 1e-6)
    slope = jacrev(lambda parameters: model.features(parameters, data.inputs))(
        dict(model.parameters)
    )
    expected = sum(slope[name].flatten(2) @ tau[name].flatten() for name in tau)
    close(found, expected, 1e-11)


@SEEDS
def test_several_jvps_together_are_each_alone(seed: int):
    model, data = tower(seed), view(seed)
    attention = selected("attn_w", model.parameters, LAYERS)
    taus = [
        direction(model, seed),
        direction(model, seed + 1, names=attention),
        TaskVector({}),
        direction(model, seed + 2),
    ]
    features, derivatives = along(model, taus)(data.inputs, None)
    close(features, model.features(model.parameters, data.inputs), 1e-13)
    for tau, derivative in zip(taus, derivatives, strict=True):
        close(derivative, jvp_features(model, tau, data.inputs)[1], 1e-12)


@SEEDS
def test_the_gradient_at_tau_zero_is_the_networks_own(seed: int):
    model, data = tower(seed), view(seed)
    found = {}
    for mode in ("standard", "tangent"):
        made = Deltas(model.parameters, list(model.parameters))
        deltas = made.deltas() if mode == "tangent" else None
        ask, _ = evaluator(model, {})
        logits = ask.scores(data.inputs, data.head, made.parameters(), deltas)
        found[mode] = torch.autograd.grad(
            F.cross_entropy(logits, data.targets), list(made.leaves.values())
        )
    for plain, tangent in zip(*found.values(), strict=True):
        close(tangent, plain, 1e-12)


@SEEDS
def test_tangent_training_is_gradient_descent_on_the_linearisation(seed: int):
    """Against a model whose Jacobian is computed in full and whose loss is written out."""
    model, data = tower(seed), view(seed, size=6)
    names = selected(r"^blocks\.1\.attn\.(q|out)\.weight$", model.parameters, LAYERS)
    settings = recipe(select=r"^blocks\.1\.attn\.(q|out)\.weight$", forward_mode="tangent", decay_towards="base",
                      batch_size=6, steps=5, warmup=0, weight_decay=0.2)  # fmt: skip
    found = settings.learn(Given(model, {"t": data}, seed=seed)).vector
    part = {name: model.parameters[name] for name in names}
    slope = jacrev(lambda parameters: model.features(parameters, data.inputs))(part)
    start = model.features(model.parameters, data.inputs)
    leaves = {name: torch.zeros_like(weight).requires_grad_() for name, weight in part.items()}
    optimiser = torch.optim.AdamW(leaves.values(), weight_decay=0.2)
    for step in range(5):
        features = start + sum(
            slope[name].flatten(2) @ leaf.flatten() for name, leaf in leaves.items()
        )
        loss = F.cross_entropy(F.normalize(features, dim=-1) @ data.head.T, data.targets)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        optimiser.param_groups[0]["lr"] = settings.rate(step, 5)
        optimiser.step()
    for name in names:
        close(found[name], leaves[name].detach(), 1e-7)


# --- evaluation along a grid ------------------------------------------------------------------------------------------

GRID = tuple(round(0.05 * i, 2) for i in range(21))


class Bent(Composition):
    """Weights that are not affine in alpha: tau enters squared."""

    def __init__(self, base, tau: TaskVector):
        self.base, self.tau = base, tau

    def parameters(self, alpha: float, task: str | None = None):
        return self.tau.apply_to(self.base, alpha * alpha)


def predictions(
    model: ClipModel, composition: Composition, views: dict[str, Memory], mode: str
) -> dict:
    """Predictions by coefficient and task."""
    composition.forward = mode
    ask, needs = evaluator(model, views)
    found, excluded = ask.predictions(composition, needs, GRID)
    assert not excluded
    return {
        alpha: {need.task: classes for need, classes in at.items()} for alpha, at in found.items()
    }


@SEEDS
@pytest.mark.parametrize("bent", [False, True])
def test_a_grid_is_each_coefficient_alone(seed: int, bent: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(walk, "IMAGES", 4)
    model, views = tower(seed), {"a": view(seed), "b": view(seed + 1, size=7, classes=5)}
    tau, calls = direction(model, seed, size=0.5), Counter()
    original = walk.jvp_along

    def counted(function, model, direction):
        value, derivative = original(function, model, direction)
        calls["images"] += len(value)
        return value, derivative

    monkeypatch.setattr(walk, "jvp_along", counted)
    found = predictions(model, (Bent if bent else Scaled)(model.parameters, tau), views, "tangent")
    assert calls["images"] == 17 * (len(GRID) if bent else 1), (
        "one jvp per image, however long the grid"
    )
    changed = 0
    for alpha in GRID:
        for task, data in views.items():
            scale = alpha * alpha if bent else alpha
            features = sum(jvp_features(model, scale * tau, data.inputs))
            expected = (F.normalize(features, dim=-1) @ data.head.T).argmax(1)
            assert torch.equal(found[alpha][task], expected)
            changed += (expected != found[0.0][task]).sum().item()
    assert changed > 0


@SEEDS
def test_post_hoc_of_a_model_linear_in_what_moved_is_the_model(seed: int):
    """CLIP's unit features are not linear in the projection, their direction is: predictions without the norm agree."""
    model, data = tower(seed), view(seed)
    raw = super(ClipModel, model).features
    model.features = lambda parameters, inputs, head=None: raw(parameters, inputs)
    tau = direction(model, seed, size=0.5, names=["projection.weight"])
    composition = Scaled(model.parameters, tau)
    tangent, standard = (
        predictions(model, composition, {"t": data}, mode) for mode in ("tangent", "standard")
    )
    assert all(torch.equal(tangent[alpha]["t"], standard[alpha]["t"]) for alpha in GRID)
    close(
        sum(jvp_features(model, tau, data.inputs)),
        model.features(tau.apply_to(model.parameters), data.inputs),
        1e-12,
    )
    scaled = predictions(model, Scaled(model.parameters, 0.5 * tau), {"t": data}, "tangent")
    assert torch.equal(scaled[1.0]["t"], tangent[0.5]["t"]), "(alpha, tau) is (1, alpha tau)"


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch):
    """Run overrides on the tiny world and return the result."""
    from taskvec.runner import compose, configs
    from taskvec.runner.execute import execute

    monkeypatch.setitem(os.environ, "TASKVEC_INCLUDE", str(tiny))
    configs.register_all()

    def go(*overrides: str, place: Path = outputs):
        words = [*FAST, f"outputs={place}", "protocol.grid=[0,0.5,1]", *overrides]
        outcome = execute(compose.resolve(compose.compose(words)), tuple(words))
        assert outcome.state == "done", outcome.reason
        return outcome.result

    return go


TWO = "suite.tasks=[stripes,corners]"
LIGHT = "finetune.curvature.examples=16"


@pytest.mark.parametrize(
    "words",
    [
        ("method=linear_ft",),
        ("method=tangent",),
        ("method=kfac", LIGHT),
        ("method=kfac", LIGHT, "finetune.per_task=true"),
        (
            "method=kfac",
            LIGHT,
            "finetune.curvature.structure=ekfac",
            "finetune.select=attn_w",
            "finetune.penalty.weight=1",
        ),
        (
            "method=kfac",
            LIGHT,
            "finetune.curvature.structure=diag_ggn",
            "finetune.forward_mode=standard",
        ),
        ("finetune=tau_jp", "finetune.examples=8"),
        ("protocol.post_hoc=true",),
        ("method=tangent", "protocol=negation"),
        ("finetune.select=lora", "finetune.rank=2"),
    ],
    ids=" ".join,
)
def test_runs_end_to_end(run, words: tuple[str, ...]):
    result = run(TWO, *words)
    rows = {row.row: row for row in result.rows}
    assert rows["individual"].values("accuracy") != rows["zero_shot"].values("accuracy")
    assert ("negated" if "protocol=negation" in words else "merged") in rows
    seen = {stage.kind for stage in result.stages}
    assert ("statistic" in seen) == ("method=kfac" in words)


@pytest.mark.parametrize("method", ["tangent", "linear_ft"])
def test_what_vectors_do_inside_is_measured_end_to_end(run, method: str):
    result = run(TWO, f"method={method}", "protocol=disentanglement")
    assert {row.row for row in result.rows} == {"xi_labels", "xi_features", "xi_matrix"}
    assert set(result.maps) == {"stripes+corners", "matrix"} and result.maps["stripes+corners"][
        "grid"
    ] == [0, 0.5, 1]
    assert (
        result.maps["stripes+corners"]["features"][0][0]
        == 0
        < result.maps["stripes+corners"]["features"][2][2]
    )
    questions = "protocol.questions=[drift,kernel_regime,orthogonality]"
    result = run(TWO, f"method={method}", "protocol=analysis", questions)
    assert set(result.maps) == {"drift", "kernel_regime", "orthogonality"}
    rows = {row.row: row.values("accuracy") for row in result.rows}
    errors = next(row for row in result.rows if row.row == "relative_feature_error").values(
        "relative_feature_error"
    )
    mode = "post_hoc" if method == "tangent" else "non_linear"
    assert rows[mode] == rows["individual"], (
        "the individual models are evaluated in their own forward mode"
    )
    assert min(errors.values()) > 0


def test_an_interrupted_kfac_run_resumes_to_the_same_result(
    run, outputs: Path, tmp_path: Path, monkeypatch
):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(outputs, other)
    words = (TWO, "method=kfac", LIGHT, "finetune.checkpoint_every=0", "finetune.penalty.weight=5")
    expected = run(*words, place=other)
    original, calls = Schedule.rate, []

    def interrupting(self, step: int, total: int) -> float:
        calls.append(step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, step, total)

    monkeypatch.setattr(Schedule, "rate", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(*words)
    assert list((outputs / "store").rglob("training.safetensors"))
    resumed = run(*words)
    assert calls[4] == 3, "only the interrupted step is done again"
    assert resumed.same_as(expected)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["finetune.select=attn_x"], "unknown selector; known: full, attn_w"),
        (["finetune.select='blocks.('"], "not a regular expression"),
        (["finetune.select='^nowhere[.]'"], "selects none of the backbone's"),
        (
            ["method=tangent", "protocol.post_hoc=true"],
            "protocol.post_hoc: finetune=tangent is linear already",
        ),
        (
            ["method=kfac", "merge=weights_only"],
            "merge=weights_only takes standard vectors, and these are tangent",
        ),
        (
            ["method=tangent", "protocol=perplexed"],
            "protocol=perplexed takes standard vectors, and these are tangent",
        ),
    ],
)
def test_what_cannot_go_together_is_one_line_before_any_work(
    tiny, tmp_path, monkeypatch, capsys, words, reason
):
    (tmp_path / "own.py").write_text('''
from taskvec.merge.task_arithmetic import TaskArithmetic
from taskvec.protocols.addition import Addition
from taskvec.registry import register
from typing import Literal

@register("merge", "weights_only")
class WeightsOnly(TaskArithmetic):
    """Takes weights only."""
    kind: Literal["weights_only"] = "weights_only"
    forward_modes = frozenset({"standard"})

@register("protocol", "perplexed")
class Perplexed(Addition):
    """Takes weights only."""
    kind: Literal["perplexed"] = "perplexed"
    forward_modes = frozenset({"standard"})
''')
    monkeypatch.setitem(os.environ, "TASKVEC_INCLUDE", f"{tiny}{os.pathsep}{tmp_path / 'own.py'}")
    # What a user registers here stays here
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    loaded = []
    monkeypatch.setattr("taskvec.models.clip.backbone.Clip.load", lambda *_: loaded.append(1))
    assert cli.main([*FAST, f"outputs={tmp_path}/out", *words]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not loaded and not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    "vision", [CONFIG, CONFIG | {"pos_embed_type": "sin_cos_2d"}, CONFIG | {"ls_init_value": 0.1}]
)
def test_a_header_names_the_trainable_parameters(vision: dict, tmp_path: Path):
    config = {"model_cfg": {"embed_dim": 6, "vision_cfg": vision, "text_cfg": {}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    module = VisionTransformer(vision_config(config["model_cfg"]))
    told = Clip(architecture=str(tmp_path)).parameter_shapes()
    trained = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
    assert told == trained
