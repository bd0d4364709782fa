"""``compute:``: weights in bfloat16, batches that fit, compiled models: what they change, and what they must not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import world
import world_text
from memory import Memory, evaluator
from torch._dynamo.utils import counters

from taskvec import registry
from taskvec.errors import UserError
from taskvec.models.batching import LARGEST, Batching
from taskvec.models.clip.backbone import ClipModel
from taskvec.models.clip.config import VisionConfig, linear_layers
from taskvec.models.clip.vit import VisionTransformer
from taskvec.models.compiled import check_compiler, compiled
from taskvec.statistics.collect import Batches, collect
from taskvec.statistics.fisher import Fisher
from taskvec.statistics.input_moments import InputMoments
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import PerTask, Scaled, Summed

SMALL = {
    "embed_dim": 8,
    "image_size": (12, 12),
    "patch_size": (4, 4),
    "width": 16,
    "heads": 2,
    "mlp_width": 32,
}


def clip(seed: int, layers: int = 2) -> ClipModel:
    torch.manual_seed(seed)
    config = VisionConfig(layers=layers, **SMALL)
    return ClipModel(VisionTransformer(config), (0.5,) * 3, (0.25,) * 3)


def images(count: int, *, labels: bool = True) -> Memory:
    inputs = torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8)
    targets = torch.randint(0, 5, (count,)) if labels else None
    return Memory(inputs, targets, torch.randn(5, 8))


def vector(model, seed: int, size: float = 0.1) -> TaskVector:
    torch.manual_seed(seed)
    return TaskVector(
        {name: size * torch.randn_like(weight) for name, weight in model.parameters.items()}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_text.build(tmp_path_factory.mktemp("lms"))


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Scaled, Summed, PerTask])
def test_a_composition_is_rounded_once_from_float32(kind):
    model = clip(1)
    one, two = vector(model, 2), vector(model, 3)
    made = (
        Scaled(model.parameters, one)
        if kind is Scaled
        else kind(model.parameters, {"a": one, "b": two})
    )
    exact = made.parameters(0.7, "a")
    rounded = made.rounded(torch.bfloat16, 0.7, "a")
    assert rounded.keys() == model.parameters.keys()
    for name, weight in rounded.items():
        # To the nearest, ties to even, on the bits: an independent rounding
        bits = exact[name].contiguous().view(torch.int32).long()
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
        assert torch.equal(weight.float(), nearest.int().view(torch.float32)), name


def test_predictions_are_those_of_the_rounded_module():
    model, view = clip(4), images(40)
    made = Scaled(model.parameters, vector(model, 5))
    ask, (at,) = evaluator(model, {"a": view}, rounded=True)
    found, _ = ask.predictions(made, [at], (0.0, 1.0))
    for alpha in (0.0, 1.0):
        module = copy.deepcopy(model.module)
        module.load_state_dict(made.parameters(alpha))
        module.bfloat16()
        features = module(model.prepare(view.inputs)[0].bfloat16()).float()
        logits = torch.nn.functional.normalize(features, dim=-1) @ view.head.mT
        assert torch.equal(found[alpha][at], logits.argmax(1))


@pytest.mark.parametrize("name", world_text.MODELS)
def test_every_family_predicts_with_rounded_weights(folder, name):
    registry.load_builtin()
    kind = registry.lookup("backbone", world_text.MODELS[name][0]).schema
    backbone = kind(model=f"{folder}/models/{name}", tokenizer="pkg://mini_lm_tokenizer")
    model = backbone.load("cpu")
    heads = {"encoder": torch.randn(3, model.parameters[next(iter(model.parameters))].shape[1] + 1)}
    head = heads.get(backbone.kind, torch.tensor([3, 4, 5]))
    view = Memory(torch.randint(3, 500, (10, 9), dtype=torch.int32), torch.zeros(10).long(), head)
    ask, (at,) = evaluator(model, {"a": view}, rounded=True)
    made = Scaled(model.parameters, vector(model, 1, 1e-3))
    found, excluded = ask.predictions(made, [at], (1.0,))
    assert not excluded and found[1.0][at].shape == (10,)
    if "perplexity" in backbone.gives:
        exact, _ = evaluator(model, {"a": view})
        rounded, _ = ask.surprise(made, at, (1.0,))
        plain, _ = exact.surprise(made, at, (1.0,))
        torch.testing.assert_close(rounded[1.0], plain[1.0], rtol=0.02, atol=0)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [1, 7, 64, "auto"])
def test_predictions_do_not_depend_on_the_batch(wish):
    model, view = clip(6), images(50)
    made = Scaled(model.parameters, vector(model, 7))
    usual, (at,) = evaluator(model, {"a": view})
    ask, _ = evaluator(model, {"a": view}, batching=Batching(wish))
    for forward in ("standard", "tangent"):
        made.forward = forward
        expected, _ = usual.predictions(made, [at], (0.0, 0.6))
        found, _ = ask.predictions(made, [at], (0.0, 0.6))
        assert all(torch.equal(found[alpha][at], expected[alpha][at]) for alpha in expected)


def test_statistics_do_not_depend_on_the_batch():
    model, view = clip(8), images(70)
    shown = world.view(view.inputs, view.targets, view.head)
    model.layers = linear_layers(VisionConfig(layers=2, **SMALL))
    whats = [InputMoments(), Fisher()]
    values = []
    for wish in (None, 9, "auto"):
        batches = Batches(shown, batching=Batching(wish))
        found = collect(model, batches, whats, head=view.head, labels=view.targets)
        values.append([what.pack(value)[0] for what, value in zip(whats, found, strict=True)])
    for other in values[1:]:
        for one, two in zip(values[0], other, strict=True):
            assert one.keys() == two.keys()
            for name in one:
                torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)


def test_on_a_cpu_the_largest_output_decides():
    module, tried = torch.nn.Sequential(torch.nn.Linear(4, 1024), torch.nn.Linear(1024, 2)), []

    def trial(count: int) -> None:
        tried.append(count)
        module(torch.zeros(count, 4))

    batching = Batching("auto")
    sizes = [batching.size(5, most, "key", trial, "cpu") for most in (10**6, 100, 10**6)]
    assert tried == [1]
    assert sizes == [min(4096, LARGEST // 4096), 100, min(4096, LARGEST // 4096)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_doubles_until_memory_is_short():
    tried = []

    def trial(count: int) -> None:
        tried.append(count)
        torch.empty(count << 30, dtype=torch.uint8, device="cuda")

    size = Batching("auto").size(5, 4096, "key", trial, "cuda")
    assert size in tried
    free, _ = torch.cuda.mem_get_info()
    assert size << 30 <= free < size << 32


# --- compile ----------------------------------------------------------------------------------------------------------


def test_one_program_serves_all_coefficients_and_tasks():
    model = clip(9)
    views = {"a": images(30), "b": images(30)}
    torch._dynamo.reset()
    counters.clear()
    ask, needs = evaluator(model, views, compiled=compiled(model, backend="eager"))
    plain, _ = evaluator(model, views)
    alphas = (0.0, 0.3, 0.9)
    for seed in (1, 2):
        made = Scaled(model.parameters, vector(model, seed))
        found, _ = ask.predictions(made, needs, alphas)
        expected, _ = plain.predictions(made, needs, alphas)
        for alpha in alphas:
            assert all(torch.equal(found[alpha][at], expected[alpha][at]) for at in needs)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_compiled_step_has_the_gradients_of_a_plain_one():
    model = clip(10, layers=1)
    view = images(6)
    leaves = {name: weight.clone().requires_grad_() for name, weight in model.parameters.items()}
    gradients = []
    for forward in (None, compiled(model)):
        ask, _ = evaluator(model, {"a": view}, compiled=forward)
        loss = ask.scores(view.inputs, view.head, leaves).logsumexp(1).mean()
        gradients.append(torch.autograd.grad(loss, list(leaves.values())))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)


def test_a_missing_compiler_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"no C\+\+ compiler .*compute\.compile=false"):
        check_compiler("cpu")
    with pytest.raises(UserError, match="not on mps"):
        check_compiler("mps")
