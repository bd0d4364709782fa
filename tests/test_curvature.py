"""The curvature of the features against brute-force Jacobians, curvlinops and the authors' conventions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn.functional import normalize

from taskvec.models.base import Model
from taskvec.models.clip.config import linear_layers, vision_config
from taskvec.models.clip.vit import VisionTransformer
from taskvec.models.layers import LinearLayer
from taskvec.statistics.collect import collect
from taskvec.statistics.curvature import FeatureCurvature
from taskvec.statistics.curvature_value import Curvature
from taskvec.statistics.passes import tokens
from taskvec.statistics.settings import CurvatureSettings

EXACT = FeatureCurvature(probes=0, precision="float64")
SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "width": 8,
    "layers": 2,
    "head_width": 4,
    "mlp_ratio": 2.0,
}


class Tower(Model):
    """A tiny CLIP tower in float64 on float64 images."""

    def __init__(self, **vision: object):
        torch.manual_seed(0)
        self.config = vision_config({"embed_dim": 6, "vision_cfg": SMALL | vision})
        module = VisionTransformer(self.config).double()
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        super().__init__(module)
        self.layers = linear_layers(self.config)

    def prepare(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return (inputs,)

    def features(self, parameters, inputs: Tensor, head: Tensor | None = None) -> Tensor:
        return normalize(super().features(parameters, inputs), dim=-1)


class Net(nn.Module):
    """Tokens [N, L, 3] with a mask in the fourth channel -> [N, 2]; linear, or with norm and tanh; pooled or not."""

    def __init__(self, *, linear: bool, pooled: bool, twice: bool = False, tied: bool = False):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.head = (
            nn.Linear(3, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 2, bias=False),
        )
        self.norm = nn.Identity() if linear else nn.RMSNorm(4, eps=1e-3)
        self.act = nn.Identity() if linear else nn.Tanh()
        self.pooled, self.twice = pooled, twice
        if tied:
            self.other = nn.Linear(4, 4)
            self.other.weight = self.second.weight
        self.double()
        for parameter in self.parameters():
            parameter.data = torch.randn_like(parameter)

    def forward(self, values: Tensor, real: Tensor) -> Tensor:
        x = self.act(self.second(self.act(self.norm(self.first(values)))))
        if self.twice:
            x = self.second(x)
        if self.pooled:
            return self.head((x * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True))
        return self.head(x).flatten(1)


class Text(Model):
    """``Net`` as a model."""

    layers = [
        LinearLayer("first", "fc"),
        LinearLayer("second", "fc"),
        LinearLayer("head", "projection"),
    ]

    def __init__(self, **kinds: bool):
        super().__init__(Net(**{"linear": False, "pooled": True} | kinds))

    def prepare(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs[..., :3], inputs[..., 3]

    def tokens(self, inputs: Tensor) -> Tensor:
        return inputs[..., 3] > 0


def texts(lengths: list[int], longest: int, seed: int = 0) -> Tensor:
    """Return random tokens whose content depends on their place alone, then padding full of large numbers."""
    values = torch.randn(
        len(lengths), 8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    real = torch.arange(8) < torch.tensor(lengths).unsqueeze(1)
    values = torch.where(real.unsqueeze(-1), values, 1e3)
    return torch.cat([values, real.unsqueeze(-1)], dim=-1)[:, :longest]


@pytest.fixture(scope="module")
def tower() -> Tower:
    return Tower()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def curvature(
    model: Model, batches, layers, settings: FeatureCurvature, *, head: Tensor | None = None
) -> Curvature:
    """Collect one curvature at theta_0, of some layers."""
    model = copy.copy(model)
    model.layers = layers
    return collect(model, batches, [settings], head=head)[0]


def jacobian(model: Model, inputs: Tensor) -> dict[str, Tensor]:
    return jacrev(lambda parameters: model.features(parameters, inputs))(model.parameters)


def joined(model: Model, jacobians: dict[str, Tensor], layer: str) -> Tensor:
    """Return J of [W | b] as [N, features, out * (in + 1)]."""
    weight, bias = jacobians[f"{layer}.weight"], jacobians.get(f"{layer}.bias")
    return (weight if bias is None else torch.cat([weight, bias.unsqueeze(-1)], -1)).flatten(2)


def gram(jacobians: Tensor) -> Tensor:
    return torch.einsum("nci,ncj->ij", jacobians, jacobians) / len(jacobians)


def diagonal(jacobians: Tensor) -> Tensor:
    return jacobians.square().sum((0, 1)) / len(jacobians)


def same(a: Curvature, b: Curvature, tolerance: float = 1e-11) -> None:
    (first, _), (second, _) = a.pack(), b.pack()
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance)


def test_one_linear_layer_is_exact():
    class Linear(Model):
        def prepare(self, inputs: Tensor) -> tuple[Tensor]:
            return (inputs,)

    model = Linear(nn.Sequential(nn.Linear(2, 2, bias=False)).double())
    inputs = torch.tensor([[1.0, 0], [0, 2]], dtype=torch.float64)
    found = curvature(model, [inputs], [LinearLayer("0", "fc")], EXACT)
    torch.testing.assert_close(found.layers["0"].gradients, torch.eye(2, dtype=torch.float64))
    delta = torch.tensor([[1.0, 2], [3, 4]], dtype=torch.float64)
    quadratic = (delta * found.layers["0"].matmul(delta)).sum()
    assert quadratic == 45 == (inputs @ delta.T).square().sum(1).mean()


def test_a_single_image_and_token_is_exact(tower: Tower, images: Tensor):
    block = curvature(tower, [images[:1]], tower.layers, EXACT).layers["projection"]
    exact = gram(joined(tower, jacobian(tower, images[:1]), "projection"))
    torch.testing.assert_close(torch.kron(block.gradients, block.inputs), exact)


@pytest.mark.parametrize("pooled", [True, False])
def test_deep_linear_nets_are_exact(pooled: bool):
    """Expand where every token has its own output, reduce where they are averaged (Eschenhagen et al. 2023)."""
    model, inputs = Text(linear=True, pooled=pooled), texts([6] * 7, 6)
    jacobians = jacobian(model, inputs)
    for sharing in ("expand", "reduce"):
        settings = EXACT.model_copy(update={"sharing": sharing})
        found = curvature(model, inputs.split(3), model.layers, settings)
        for layer in ("first", "second"):
            kron = torch.kron(found.layers[layer].gradients, found.layers[layer].inputs)
            exact = torch.allclose(kron, gram(joined(model, jacobians, layer)), rtol=1e-9)
            assert exact == (sharing == ("reduce" if pooled else "expand"))


def test_reduce_is_exact_with_examples_of_different_length():
    model, inputs = Text(linear=True), texts([2, 5, 3, 8], 8)
    found = curvature(model, [inputs], model.layers, EXACT.model_copy(update={"sharing": "reduce"}))
    exact = gram(joined(model, jacobian(model, inputs), "second"))
    block = found.layers["second"]
    torch.testing.assert_close(torch.kron(block.gradients, block.inputs), exact)


@pytest.mark.parametrize(
    "vision", [{}, {"ls_init_value": 0.3}, {"pool_type": "avg"}, {"no_ln_pre": True}], ids=str
)
def test_full_blocks_are_exact(vision: dict, images: Tensor):
    model = Tower(**vision)
    found = curvature(model, images.split(2), model.layers, EXACT)
    jacobians = jacobian(model, images)
    expected = {
        name
        for name, weight in model.parameters.items()
        if weight.ndim == 1 and ".bias" not in name
    }
    biases = {name for name in model.parameters if ".bias" in name and "ln" in name}
    assert found.vectors.keys() == expected | biases
    for name, block in found.vectors.items():
        torch.testing.assert_close(block.matrix, gram(jacobians[name]))
    assert list(found.untracked) == ["positional_embedding", "patch_embed.weight"]


def test_any_norm_is_taken_by_its_affine_form():
    model, inputs = Text(), texts([4, 2, 6], 6)
    found = curvature(model, [inputs], model.layers, EXACT)
    torch.testing.assert_close(
        found.vectors["norm.weight"].matrix, gram(jacobian(model, inputs)["norm.weight"])
    )


def test_diagonal_is_exact(tower: Tower, images: Tensor):
    found = curvature(
        tower, images.split(2), tower.layers, EXACT.model_copy(update={"structure": "diag_ggn"})
    )
    jacobians = jacobian(tower, images)
    for name, block in found.layers.items():
        exact = gram(joined(tower, jacobians, name)).diagonal()
        torch.testing.assert_close(block.values.flatten(), exact)
    for name, block in found.vectors.items():
        torch.testing.assert_close(block.values, gram(jacobians[name]).diagonal())


def test_ekfac(tower: Tower, images: Tensor):
    settings = EXACT.model_copy(update={"structure": "ekfac"})
    found = curvature(tower, images.split(2), tower.layers, settings)
    jacobians = jacobian(tower, images)
    for name, block in found.layers.items():
        exact = gram(joined(tower, jacobians, name))
        for basis in (block.right, block.left):
            torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=basis.dtype))
        torch.testing.assert_close(block.values.sum(), exact.trace())
        vectors = torch.kron(block.left, block.right)
        torch.testing.assert_close(block.values.flatten(), (vectors.T @ exact @ vectors).diagonal())
    single = curvature(tower, [images[:1]], tower.layers, settings).layers["projection"]
    exact = gram(joined(tower, jacobian(tower, images[:1]), "projection"))
    vectors = torch.kron(single.left, single.right)
    torch.testing.assert_close(vectors @ single.values.flatten().diag() @ vectors.T, exact)


def test_per_example_gradients_stay_in_one_chunk(monkeypatch: pytest.MonkeyPatch):
    gradients, inputs = torch.randn(9, 4, 5), torch.randn(9, 4, 3)
    whole = torch.einsum("nro,nri->noi", gradients, inputs).square().sum(0)
    for chunk in (1, 30, 10**6):
        monkeypatch.setattr(tokens, "CHUNK", chunk)
        total, made = torch.zeros(5, 3), []
        product = torch.bmm

        def counted(a, b, made=made, product=product):
            made.append(a.shape[0])
            return product(a, b)

        monkeypatch.setattr(torch, "bmm", counted)
        tokens.add_squares(total, gradients, inputs)
        monkeypatch.undo()
        torch.testing.assert_close(total, whole)
        assert max(made) == min(9, max(1, chunk // 15))


def test_factors_are_symmetric_and_positive(tower: Tower, images: Tensor):
    found = curvature(tower, images.split(2), tower.layers, EXACT.model_copy(update={"probes": 1}))
    matrices = [block.matrix for block in found.vectors.values()]
    for name, block in found.layers.items():
        matrices += [block.inputs, block.gradients]
        assert (name in found.biased) == (name != "projection")
        assert name == "projection" or block.inputs[-1, -1] == 1
    for matrix in matrices:
        torch.testing.assert_close(matrix, matrix.T)
        assert torch.linalg.eigvalsh(matrix).min() > -1e-12
    q, k, v = (found.layers[f"blocks.0.attn.{kind}"] for kind in "qkv")
    assert q.inputs is k.inputs is v.inputs


@pytest.mark.parametrize("structure", ["kfac", "ekfac", "diag_ggn"])
def test_cutting_into_batches_changes_nothing(structure: str, tower: Tower, images: Tensor):
    settings = EXACT.model_copy(update={"probes": 2, "structure": structure})
    whole = curvature(tower, [images], tower.layers, settings)
    again = curvature(tower, [images], tower.layers, settings)
    assert all(
        torch.equal(tensor, again.pack()[0][name]) for name, tensor in whole.pack()[0].items()
    )
    cut = curvature(tower, images.split(2), tower.layers, settings)
    if structure == "ekfac":  # eigenvectors have free signs
        torch.testing.assert_close(whole.trace(), cut.trace())
    else:
        same(whole, cut)
    other = curvature(tower, [images], tower.layers, settings.model_copy(update={"seed": 1}))
    assert not torch.allclose(whole.trace(), other.trace())
    assert cut.examples == 5


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("structure", ["kfac", "diag_ggn"])
def test_padding_never_counts(structure: str, sharing: str):
    model, lengths = Text(), [2, 5, 3, 4]
    settings = EXACT.model_copy(update={"structure": structure, "sharing": sharing, "probes": 1})
    tight = curvature(model, [texts(lengths, 5)], model.layers, settings)
    same(tight, curvature(model, [texts(lengths, 8)], model.layers, settings))
    pieces = [texts(lengths, 8)[i : i + 1, :length] for i, length in enumerate(lengths)]
    same(tight, curvature(model, pieces, model.layers, settings))


def test_tokens_of_text_are_weighted_alike():
    model, inputs = Text(), texts([2, 5], 5)
    found = curvature(model, [inputs], model.layers, EXACT).layers["first"]
    rows = torch.cat([inputs[..., :3], torch.ones(2, 5, 1, dtype=torch.float64)], -1)[
        inputs[..., 3] > 0
    ]
    torch.testing.assert_close(found.inputs, rows.T @ rows / 7)


def test_one_probe_is_unbiased():
    model, inputs = Text(), texts([3, 4, 2], 4)
    exact = curvature(model, [inputs], model.layers, EXACT)
    for probes, seeds in ((1, 300), (3, 100)):
        drawn = [
            curvature(
                model,
                [inputs],
                model.layers,
                EXACT.model_copy(update={"probes": probes, "seed": seed}),
            )
            for seed in range(seeds)
        ]
        for name, block in exact.layers.items():
            mean = torch.stack([one.layers[name].gradients for one in drawn]).mean(0)
            assert (mean - block.gradients).norm() < 0.1 * block.gradients.norm()
        mean = torch.stack([one.vectors["norm.weight"].matrix for one in drawn]).mean(0)
        assert (mean - exact.vectors["norm.weight"].matrix).norm() < 0.1 * mean.norm()


@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
def test_the_authors_conventions(structure: str, tower: Tower, images: Tensor):
    """B times M / R and F times M for KFAC; D times M and F times M n for EKFAC (spec 3.2, 3.5)."""
    clean = EXACT.model_copy(update={"probes": 4, "structure": structure})
    ours = curvature(tower, images.split(2), tower.layers, clean)
    theirs = curvature(
        tower, images.split(2), tower.layers, clean.model_copy(update={"faithful": True})
    )
    for name, block in ours.layers.items():
        count = 1 if name == "projection" else tower.config.tokens
        if structure == "kfac":
            torch.testing.assert_close(theirs.layers[name].inputs, block.inputs)
            torch.testing.assert_close(theirs.layers[name].gradients, block.gradients * 4 / count)
        else:
            torch.testing.assert_close(theirs.layers[name].trace(), 4 * block.trace())
    for name, block in ours.vectors.items():
        factor = 4 if structure == "kfac" else 4 * len(images)
        torch.testing.assert_close(theirs.vectors[name].matrix, factor * block.matrix)
    with pytest.raises(ValueError, match="sharing=expand"):
        CurvatureSettings(faithful=True, sharing="reduce")


def test_what_is_refused_and_what_is_left_out(tower: Tower, images: Tensor):
    inputs = texts([2, 3], 3)
    twice = curvature(Text(twice=True), [inputs], Text.layers, EXACT)
    assert twice.untracked == dict.fromkeys(
        ("second.weight", "second.bias"), "it is called 2 times per pass"
    )
    tied = curvature(Text(tied=True), [inputs], Text.layers, EXACT)
    assert tied.layers.keys() == {"first", "head"}
    assert tied.untracked["second.weight"] == "it is shared by several modules"
    with pytest.raises(ValueError, match="no examples"):
        curvature(tower, [], tower.layers, EXACT)
    with pytest.raises(ValueError, match="no linear layer"):
        curvature(tower, [images], [], EXACT)
    with pytest.raises(ValueError, match="patch_embed is a Conv2d"):
        curvature(tower, [images], [LinearLayer("patch_embed", "patch")], EXACT)
    with pytest.raises(ValueError, match="does not begin with the 4 examples"):
        tokens.tokens_of(torch.zeros(8, 4, 2), 4, None, torch.float32)
    with pytest.raises(ValueError, match="3 tokens, the batch's token mask 5"):
        tokens.tokens_of(torch.zeros(4, 3, 2), 4, torch.ones(4, 5, dtype=torch.bool), torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["roberta", "deberta_v3", "t5_v1_1", "gpt2", "gemma3"])
def test_language_models(name: str, tmp_path):
    """Every block that a family has is exact, its texts of different length; a layer used twice has none."""
    from test_language_models import HEAD, built

    family = built(name, tmp_path)
    model, layers = family.model, family.backbone.linear_layers()
    inputs = torch.randint(3, 60, (4, 7), generator=torch.Generator().manual_seed(3)).int()
    inputs[1, 4:] = inputs[2, 6:] = -1
    settings = FeatureCurvature(structure="diag_ggn", probes=0)
    found = curvature(model, inputs.split(3), layers, settings, head=HEAD)
    jacobians = jacrev(lambda parameters: model.features(parameters, inputs, HEAD))(
        model.parameters
    )
    expected = {layer: diagonal(joined(model, jacobians, layer)) for layer in found.layers}
    expected |= {vector: diagonal(jacobians[vector]) for vector in found.vectors}
    for part, block in (found.layers | found.vectors).items():
        torch.testing.assert_close(block.values.flatten(), expected[part], rtol=1e-3, atol=1e-5)
    embeddings = {n for n, reason in found.untracked.items() if "kind" in reason}
    assert all(
        model.parameters[n].ndim == 2 and model.module.get_parameter(n).shape[0] != 24
        for n in embeddings
    )
    twice = {n.split(".")[-2] for n, reason in found.untracked.items() if "2 times" in reason}
    assert twice == ({"query_proj", "key_proj"} if name == "deberta_v3" else set())


class Plain(nn.Module):
    """``Net`` on tokens without padding."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, values: Tensor) -> Tensor:
        return self.net(values, torch.ones_like(values[..., 0]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(("pooled", "examples"), [(True, 4), (True, 6), (False, 4)])
def test_against_curvlinops(sharing: str, reduction: str, pooled: bool, examples: int):
    """Their c B (x) A with c = 2n under a summed squared error, 2/d under its mean over n examples and d channels."""
    curvlinops = pytest.importorskip("curvlinops")
    model, inputs = Text(pooled=pooled), texts([5] * examples, 5)
    net, values = Plain(model.module), inputs[..., :3]
    channels = net(values).shape[1]
    layers = [layer.name for layer in model.layers]
    weights = [weight for name in layers for weight in net.net.get_submodule(name).parameters()]
    for weight in weights:
        weight.requires_grad_()
    zeros = torch.zeros(2, channels, dtype=torch.float64)
    operator = curvlinops.KFACLinearOperator(
        net,
        nn.MSELoss(reduction=reduction),
        weights,
        [(batch, zeros) for batch in values.split(2)],
        fisher_type="type-2",
        kfac_approx=sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator.compute_kronecker_factors()
    for weight in weights:
        weight.requires_grad_(False)
    found = curvature(
        model, inputs.split(2), model.layers, EXACT.model_copy(update={"sharing": sharing})
    )
    constant = 2 * examples if reduction == "sum" else 2 / channels
    for layer in layers:
        factors = operator._gradient_covariances, operator._input_covariances
        theirs = torch.kron(*(factor[f"net.{layer}"] for factor in factors))
        block = found.layers[layer]
        torch.testing.assert_close(constant * torch.kron(block.gradients, block.inputs), theirs)


def test_reduce_gives_key_projections_no_curvature(tower: Tower, images: Tensor):
    """Softmax does not see the same shift of all keys, so their gradients sum to zero over the tokens."""
    reduced = curvature(
        tower, [images], tower.layers, EXACT.model_copy(update={"sharing": "reduce"})
    )
    expanded = curvature(tower, [images], tower.layers, EXACT)
    for name, block in reduced.layers.items():
        largest = block.gradients.abs().max() / expanded.layers[name].gradients.abs().max()
        assert (largest < 1e-20) == name.endswith("attn.k")
    moved = {
        name: torch.randn_like(weight)
        for name, weight in tower.parameters.items()
        if "attn.k" in name
    }
    blocks = [
        (name, reduced.layers[name.removesuffix(".weight")])
        for name in moved
        if name.endswith("weight")
    ]
    for name, block in blocks:
        joined = torch.cat([moved[name], moved[name.replace("weight", "bias")].unsqueeze(1)], 1)
        assert (joined * block.matmul(joined)).sum().abs() < 1e-20
