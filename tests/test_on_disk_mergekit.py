"""mergekit recipes: each method against its formula under mergekit's convention, gradients, filters, slices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
import yaml
from test_checkpoints import IDS, model
from test_on_disk import near, written

from taskvec.checkpoints import reading
from taskvec.cli import main
from taskvec.errors import UserError
from taskvec.on_disk import plan as planning
from taskvec.on_disk.mergekit.methods import METHODS
from taskvec.on_disk.mergekit.recipe import request_of_recipe
from taskvec.on_disk.run import carry_out
from taskvec.vectors.noise import Stream, chosen

SETTINGS = {"adapter": None, "device": "cpu", "shard_bytes": 2e9, "tokenizer": None}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A base and two models near it."""
    root = tmp_path_factory.mktemp("recipes")
    base = model("llama")
    base.save_pretrained(root / "base")
    for number, name in enumerate("ab"):
        near(base, number, 0.5).save_pretrained(root / name)
    return root


def run(recipe: str, models: Path, out: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """Carry a recipe out whose models are named as they are in the folder."""
    data = yaml.safe_load(recipe)
    path = out.with_suffix(".yaml")
    text = yaml.safe_dump(located(data, models))
    path.write_text(text)
    request = request_of_recipe(path, out, seed, SETTINGS)
    carry_out(planning.plan_of(request))
    return written(out)


def located(data, models: Path):
    """Return a recipe with the models' names as paths."""
    if isinstance(data, dict):
        return {key: located(value, models) for key, value in data.items()}
    if isinstance(data, list):
        return [located(value, models) for value in data]
    return str(models / data) if data in ("base", "a", "b") else data


def tensors(models: Path, name: str) -> dict[str, torch.Tensor]:
    return dict(reading.open_checkpoint(str(models / name)).tensors)


def check(found: dict[str, torch.Tensor], expected, tolerance: float = 1e-6) -> None:
    """Compare every tensor with ``expected(name)``."""
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected(name), rtol=0, atol=tolerance, msg=name)


LINEAR = """
models:
  - model: a
    parameters: {weight: 1.0}
  - model: b
    parameters: {weight: 0.5}
merge_method: linear
dtype: float32
"""
TIES = """
models:
  - model: base
  - model: a
    parameters: {density: 0.5, weight: 0.6}
  - model: b
    parameters: {density: 0.3, weight: 0.9}
merge_method: ties
base_model: base
parameters: {normalize: true, int8_mask: true}
dtype: float32
"""
DARE = """
models:
  - model: a
    parameters: {density: 0.6, weight: 0.7}
  - model: b
    parameters: {density: 0.4, weight: 0.8}
merge_method: dare_ties
base_model: base
parameters: {int8_mask: true}
dtype: bfloat16
out_dtype: float32
"""


@pytest.mark.parametrize("normalize", [True, False])
def test_linear(normalize, models, tmp_path):
    recipe = LINEAR + f"parameters: {{normalize: {str(normalize).lower()}}}\n"
    found = run(recipe, models, tmp_path / "out")
    a, b = tensors(models, "a"), tensors(models, "b")
    total = 1.5 if normalize else 1.0
    check(found, lambda name: (a[name] + 0.5 * b[name]) / total)


def elected(deltas: list[torch.Tensor], weights: list[float], normalize: bool) -> torch.Tensor:
    """Return mergekit's consensus by its formula: what has the sign of the weighted sum (a zero counts as plus)."""
    weighted = torch.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)])
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = weighted.sign() == sign
    total = (weighted * agree).sum(0)
    if not normalize:
        return total
    scale = torch.tensor(weights).view(-1, *[1] * (weighted.ndim - 1))
    divisor = (scale * agree).sum(0)
    return total / torch.where(divisor == 0, 1, divisor)


def trimmed(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Return a delta's max(1, floor(density n)) largest entries."""
    count = max(1, int(density * delta.numel()))
    kept = torch.zeros(delta.numel())
    places = delta.abs().flatten().topk(count).indices
    kept[places] = delta.flatten()[places]
    return kept.view_as(delta)


def test_ties_with_a_density_for_each_model(models, tmp_path):
    found = run(TIES, models, tmp_path / "out")
    base, a, b = (tensors(models, name) for name in ("base", "a", "b"))

    def expected(name: str) -> torch.Tensor:
        deltas = [trimmed(a[name] - base[name], 0.5), trimmed(b[name] - base[name], 0.3)]
        return base[name] + elected(deltas, [0.6, 0.9], normalize=True)

    check(found, expected)


def test_dare_ties_with_a_seed(models, tmp_path):
    found = run(DARE, models, tmp_path / "out", seed=11)
    base, a, b = (tensors(models, name) for name in ("base", "a", "b"))

    def dropped(name: str, position: int, delta: torch.Tensor, density: float) -> torch.Tensor:
        mask = chosen(Stream(11, name, position), density, 0, delta.numel()).view_as(delta)
        kept = delta * mask
        return kept * (delta.abs().sum() / kept.abs().sum())

    def expected(name: str) -> torch.Tensor:
        deltas = [
            dropped(name, 0, a[name] - base[name], 0.6),
            dropped(name, 1, b[name] - base[name], 0.4),
        ]
        return base[name] + elected(deltas, [0.7, 0.8], normalize=False)

    check(found, expected)
    other = run(DARE, models, tmp_path / "other", seed=12)
    assert not torch.equal(other["lm_head.weight"], found["lm_head.weight"])


def test_gradients_and_filters(models, tmp_path):
    recipe = """
models:
  - model: a
    parameters:
      weight:
        - filter: self_attn
          value: [0, 0.5, 1]
        - filter: mlp
          value: 0.25
        - value: 0.75
merge_method: task_arithmetic
base_model: base
parameters: {lambda: 0.5}
"""
    found = run(recipe, models, tmp_path / "out")
    base, a = tensors(models, "base"), tensors(models, "a")

    def weight(name: str) -> float:
        if "self_attn" in name:
            return 0.0 if "layers.0" in name else 1.0
        return 0.25 if "mlp" in name else 0.75

    check(found, lambda name: base[name] + 0.5 * weight(name) * (a[name] - base[name]))


def test_slerp_between_the_base_and_a_model(models, tmp_path):
    recipe = """
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: base, layer_range: [0, 2]}
merge_method: slerp
base_model: base
parameters: {t: [{filter: mlp, value: 0.2}, {value: 0.7}]}
"""
    found = run(recipe, models, tmp_path / "out")
    base, a = tensors(models, "base"), tensors(models, "a")

    def expected(name: str) -> torch.Tensor:
        t = 0.2 if "mlp" in name else 0.7
        left, right = base[name].double(), a[name].double()
        cosine = (left.flatten() @ right.flatten()) / (left.norm() * right.norm())
        angle = torch.arccos(cosine.clamp(-1, 1))
        if cosine.abs() > 0.9995:
            return ((1 - t) * left + t * right).float()
        parts = torch.sin((1 - t) * angle) * left + torch.sin(t * angle) * right
        return (parts / torch.sin(angle)).float()

    check(found, expected)


def test_slices_of_layers_follow_each_other(models, tmp_path):
    recipe = """
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 2]}]
merge_method: passthrough
dtype: float32
"""
    found = run(recipe, models, tmp_path / "out")
    a, b = tensors(models, "a"), tensors(models, "b")
    for name, tensor in found.items():
        if "layers.2." in name:
            assert torch.equal(tensor, b[name.replace("layers.2.", "layers.1.")])
        elif "layers." in name or "embed" in name:
            assert torch.equal(tensor, a[name])
        else:
            assert torch.equal(tensor, b[name])
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert network.config.num_hidden_layers == 3
    assert network.generate(IDS, max_new_tokens=2, do_sample=False).shape == (1, 8)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_is_named_runs(method, models, tmp_path):
    own = "" if method == "passthrough" else "  - {model: b, parameters: {weight: 0.4}}\n"
    recipe = (
        f"merge_method: {method}\nmodels:\n  - {{model: a, parameters: {{weight: 0.6}}}}\n{own}"
    )
    if method == "passthrough":
        recipe = recipe.replace("weight", "scale")
    if METHODS[method].on_base:
        recipe += "base_model: base\n"
    if method == "slerp":
        recipe = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.3}\n"
    if method in ("karcher", "model_stock", "sce"):
        recipe = recipe.replace(", parameters: {weight: 0.6}", "").replace(
            ", parameters: {weight: 0.4}", ""
        )
    if method.startswith("della"):
        recipe = recipe.replace("weight: 0", "density: 0.5, weight: 0")
    found = run(recipe, models, tmp_path / "out")
    assert all(tensor.isfinite().all() for tensor in found.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"merge_method": "arcee_fusion"}, "arcee_fusion is not covered"),
        ({"modules": {"x": {}}}, "modules is not covered"),
        ({"parameters": {"rank": 3}}, "parameter rank of ties"),
        ({"dtype": "float8"}, "float8"),
        ({"base_model": None}, "needs base_model"),
        (
            {"tokenizer": {"source": "base", "tokens": {"x": {}}}},
            "tokenizer.tokens: is not covered",
        ),
        ({"models": None}, "either models or slices"),
        ({"unknown": 1}, "unknown: is not covered"),
        ({"models": [{"model": "a"}]}, "weight is missing"),
        ({"models": [{"model": "a", "parameters": {"weight": 1, "density": 0}}]}, "greater than 0"),
    ],
)
def test_what_a_recipe_says_that_we_lack_is_named(change, said, models, tmp_path):
    data = yaml.safe_load(TIES) | change
    with pytest.raises(UserError, match=said):
        run(
            yaml.safe_dump({k: v for k, v in data.items() if v is not None}),
            models,
            tmp_path / "out",
        )


def test_the_command_reads_a_recipe(models, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(located(yaml.safe_load(TIES), models)))
    assert main(["merge", "--mergekit", str(path), f"out={tmp_path}/out"]) == 0
    assert "mergekit's ties" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "merge_method: ties" in card
    assert str(models) not in card
    for words, said in [([], "out=FOLDER is missing"), (["out=x", "alpha=2"], "recipe's to say")]:
        assert main(["merge", "--mergekit", str(path), *words]) == 2
        assert said in capsys.readouterr().err
