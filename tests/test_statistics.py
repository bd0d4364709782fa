"""Moments, gradients and Fisher information from shared passes, against naive hooks and autograd loops."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from test_curvature import EXACT, Text, Tower, same, texts
from torch import Tensor
from torch.func import functional_call

from taskvec.data.views import View
from taskvec.errors import UserError
from taskvec.needs import Examples, Statistics, Tuned
from taskvec.statistics import symmetric
from taskvec.statistics.base import Accumulator, Statistic
from taskvec.statistics.collect import Batches, batch_size, collect
from taskvec.statistics.cross_moments import CrossMoments
from taskvec.statistics.fisher import Fisher
from taskvec.statistics.gradient import Gradient
from taskvec.statistics.input_moments import InputMoments
from taskvec.statistics.settings import CurvatureSettings
from taskvec.statistics.spectrum import Spectrum
from taskvec.vectors import TaskVector

MOMENTS = InputMoments(precision="float64")
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


class Scoring:
    """Class scores by a linear head [C, d]."""

    def logits(self, features: Tensor, head: Tensor, parameters=None) -> Tensor:
        return features @ head.T


class Images(Scoring, Tower):
    """The tower with a head."""


class Sentences(Scoring, Text):
    """The text model with a head."""


@pytest.fixture(scope="module")
def tower() -> Images:
    return Images()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(7, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def head() -> Tensor:
    return 3 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.tensor([0, 3, 1, 1, 2, 0, 3])


def moved(model, scale: float = 0.1) -> dict[str, Tensor]:
    """Return theta_0 + tau for a random tau."""
    generator = torch.Generator().manual_seed(4)
    drawn = {
        n: torch.randn(w.shape, generator=generator, dtype=w.dtype)
        for n, w in model.parameters.items()
    }
    return {name: weight + scale * drawn[name] for name, weight in model.parameters.items()}


def hooked(model, weights, inputs: Tensor, layers: list[str]) -> dict[str, Tensor]:
    """Return the inputs of layers [..., d], by naive hooks on a functional call."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.module.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.__setitem__(name, inputs[0].detach())
        )
        for name in layers
    ]
    functional_call(model.module, weights, model.prepare(inputs))
    for handle in handles:
        handle.remove()
    return seen


def test_moments_at_a_vector_equal_naive_hooks(tower: Images, images: Tensor):
    weights, names = moved(tower), [layer.name for layer in tower.layers]
    (found,) = collect(tower, images.split(3), [MOMENTS], parameters=weights)
    for name, inputs in hooked(tower, weights, images, names).items():
        rows = inputs.flatten(0, -2)
        moment = found[name]
        assert moment.rows == len(rows) == (7 if name == "projection" else 7 * tower.config.tokens)
        torch.testing.assert_close(moment.gram, rows.T @ rows, **CLOSE)
        torch.testing.assert_close(moment.total, rows.sum(0), **CLOSE)
    torch.testing.assert_close(found["projection"].second() * 7, found["projection"].gram)
    assert set(found) == set(names)
    assert found.sources["blocks.1.attn.v"] == "blocks.1.attn.q" and found.sources[
        "blocks.1.attn.out"
    ].endswith("out")
    tensors, _ = MOMENTS.pack(found)
    assert not any("attn.k" in name or "attn.v" in name for name in tensors)


def test_moments_do_not_depend_on_batches_and_padding():
    model, lengths = Text(), [2, 5, 3, 4]
    (whole,) = collect(model, [texts(lengths, 5)], [MOMENTS])
    pieces = [texts(lengths, 8)[i : i + 1, :length] for i, length in enumerate(lengths)]
    for batches in ([texts(lengths, 8)], texts(lengths, 6).split(3), pieces):
        (cut,) = collect(model, batches, [MOMENTS])
        for name, moment in cut.items():
            torch.testing.assert_close(moment.gram, whole[name].gram, **CLOSE)
            torch.testing.assert_close(moment.total, whole[name].total, **CLOSE)
    assert [whole[layer].rows for layer in ("first", "second", "head")] == [14, 14, 4]


@pytest.mark.parametrize("width", [1, 255, 256, 257, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_sums_unfold_to_the_whole_matrix(width: int, dtype: torch.dtype):
    rows = torch.randn(40, width, dtype=dtype)
    folded = symmetric.zeros(width, rows)
    for part in rows.split(17):
        symmetric.add_products(folded, part)
    exact = rows.double().T @ rows.double()
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-11}[dtype]
    found = symmetric.unfolded(folded, width)
    torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)
    assert folded.numel() <= width * (width + symmetric.STRIP) / 2


def test_products_are_float32_and_sums_float64():
    """1 + 2^-30 summed: a float32 sum would lose the small one."""
    model = Text(linear=True)
    inputs = texts([1, 1], 1)
    inputs[..., :3] = torch.tensor([1.0, 0, 0]).double()
    inputs[1, :, 0] = 2.0**-15
    (found,) = collect(model, inputs.split(1), [InputMoments()])
    assert found["first"].gram.dtype == torch.float64 and found["first"].gram[0, 0] == 1 + 2.0**-30


@pytest.mark.filterwarnings("ignore")
def test_a_projection_that_is_also_applied_to_positions(tmp_path):
    """DeBERTa v3 calls query and key a second time, on relative positions: those are no rows of the data."""
    from test_language_models import built, token_rows

    family = built("deberta_v3", tmp_path)
    family.model.layers = family.backbone.linear_layers()
    inputs = token_rows()
    (found,) = collect(family.model, inputs.split(3), [InputMoments()])
    assert not found.untracked
    assert {found[layer].rows for layer in found} == {int((inputs >= 0).sum())}
    attention = "deberta.encoder.layer.0.attention.self"
    shared = {found.sources[f"{attention}.{name}"] for name in ("key_proj", "value_proj")}
    assert len(shared) == 1
    twice = collect(Text(twice=True), [texts([2, 3], 3)], [MOMENTS])[0]
    assert twice.untracked == {"second": "it is called 2 times per pass"}


def losses(model, weights, inputs, head, labels) -> Tensor:
    logits = model.logits(model.features(weights, inputs, head), head, weights)
    return F.cross_entropy(logits, labels, reduction="none")


def leaves(weights) -> dict[str, Tensor]:
    return {name: weight.clone().requires_grad_() for name, weight in weights.items()}


def gradient_of(value: Tensor, weights, *, keep: bool = False) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(weights.values()), allow_unused=True, retain_graph=keep)
    return {
        n: torch.zeros_like(weights[n]) if g is None else g
        for n, g in zip(weights, found, strict=True)
    }


def test_gradient_equals_autograd(tower: Images, images: Tensor, head: Tensor, labels: Tensor):
    weights = leaves(moved(tower))
    parts = losses(tower, weights, images, head, labels)
    each = [gradient_of(part, weights, keep=True) for part in parts]
    settings = {"parameters": moved(tower), "head": head, "labels": labels}
    for votes, batches in ((False, [images]), (False, images.split(2)), (True, images.split(4))):
        (found,) = collect(tower, batches, [Gradient(votes=votes)], **settings)
        assert found.examples == 7 and found.mean.keys() == tower.parameters.keys()
        for name, mean in found.mean.items():
            stacked = torch.stack([one[name] for one in each])
            torch.testing.assert_close(mean, stacked.mean(0), **CLOSE)
            # Softmax does not see it: its gradient is rounding
            if votes and "attn.k.bias" not in name:
                assert torch.equal(found.votes[name], stacked.sign().sum(0).int())
    assert all(weight.grad is None for weight in tower.module.parameters())


def test_gradient_of_a_regression_and_of_words(tower: Images, images: Tensor, head: Tensor):
    """One output and scores: the squared error. Several outputs and scores: the nearest class."""
    scores = torch.tensor([0.2, 1.4, 2.6, 0.9, 3.3, 1.0, 0.0], dtype=torch.float64)
    weights = leaves(tower.parameters)
    predicted = tower.features(weights, images) @ head[0]
    expected = gradient_of((predicted - scores).square().mean(), weights)
    (found,) = collect(tower, images.split(3), [Gradient()], head=head[:1], labels=scores)
    for name, mean in found.mean.items():
        torch.testing.assert_close(mean, expected[name], **CLOSE)
    (words,) = collect(tower, [images], [Gradient()], head=head, labels=scores)
    (classes,) = collect(tower, [images], [Gradient()], head=head, labels=scores.round().long())
    same_tensors(words.mean, classes.mean)


def same_tensors(first, second, **tolerance: float) -> None:
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], **(tolerance or {"rtol": 0, "atol": 0})
        )


def fisher_loop(
    model, weights, inputs, head, labels, outcome: str, batch: int
) -> dict[str, Tensor]:
    """The formulas of the spec, one group of examples at a time."""
    weights = leaves(weights)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for first in range(0, len(inputs), batch):
        rows = slice(first, first + batch)
        logits = model.features(weights, inputs[rows], head) @ head.T
        scores = logits - logits.logsumexp(1, keepdim=True)
        p = scores.exp().detach()
        if outcome == "root":
            parts = [((p**0.5 * scores).sum(), 1.0)]
        elif outcome == "every":
            parts = [(scores[0, c], float(p[0, c])) for c in range(len(head))]
        else:
            parts = [(F.nll_loss(scores, labels[rows], reduction="sum"), 1.0)]
        for value, weight in parts:
            for name, gradient in gradient_of(value, weights, keep=True).items():
                total[name] += weight * gradient**2
    return {name: value / len(inputs) for name, value in total.items()}


@pytest.mark.parametrize("cut", [1, 3, 7])
@pytest.mark.parametrize(
    ("outcome", "batch"), [("root", 1), ("root", 3), ("every", 1), ("label", 1), ("label", 2)]
)
def test_fisher_equals_the_formula(outcome: str, batch: int, cut: int, tower, images, head, labels):
    weights = moved(tower)
    statistic = Fisher(outcome=outcome, batch=batch)
    granted = labels if statistic.labels else None
    (found,) = collect(
        tower, images.split(cut), [statistic], parameters=weights, head=head, labels=granted
    )
    same_tensors(found, fisher_loop(tower, weights, images, head, labels, outcome, batch), **CLOSE)


def test_signed_fisher_is_unbiased(tower: Images, images: Tensor, head: Tensor):
    (exact,) = collect(tower, [images], [Fisher(outcome="every")], head=head)
    drawn = collect(
        tower,
        [images],
        [Fisher(outcome="signed", batch=7, seed=seed) for seed in range(300)],
        head=head,
    )
    biased = collect(tower, [images], [Fisher()], head=head)[0]
    for name in ("projection.weight", "blocks.0.mlp.fc.weight"):
        mean = torch.stack([one[name] for one in drawn]).mean(0)
        assert (
            (mean - exact[name]).norm()
            < 0.15 * exact[name].norm()
            < (biased[name] - exact[name]).norm()
        )
    assert all(
        not torch.equal(a["projection.weight"], b["projection.weight"])
        for a, b in pairwise(drawn[:4])
    )


def test_fisher_of_one_output_and_what_is_refused(tower: Images, images: Tensor, head: Tensor):
    """The squared error is the log-likelihood of a Gaussian of variance 1/2: F = 2 f'^2."""
    weights = leaves(tower.parameters)
    predicted = [tower.features(weights, image) @ head[0] for image in images.split(1)]
    squares = [gradient_of(value.sum(), weights)["projection.weight"] ** 2 for value in predicted]
    (found,) = collect(tower, [images], [Fisher()], head=head[:1])
    torch.testing.assert_close(
        found["projection.weight"], 2 * torch.stack(squares).mean(0), **CLOSE
    )
    with pytest.raises(ValueError, match="set batch=1"):
        Fisher(outcome="every", batch=2)


def counted(model) -> tuple[list[bool], object]:
    """Return a list that notes each forward pass of the model, and whether it builds a graph."""
    passes: list[bool] = []
    return passes, model.module.register_forward_hook(
        lambda _, inputs, output: passes.append(output.requires_grad)
    )


def test_one_pass_serves_all(tower: Images, images: Tensor, head: Tensor, labels: Tensor):
    curvatures = [
        EXACT.model_copy(update={"probes": 2, "structure": s}) for s in ("kfac", "diag_ggn")
    ]
    wanted = [MOMENTS, *curvatures, Gradient()]
    settings = {"parameters": moved(tower), "head": head, "labels": labels}
    passes, handle = counted(tower)
    together = collect(tower, images.split(3), wanted, **settings)
    assert len(passes) == 1 + 3  # a look at two examples, three batches
    passes.clear()
    collect(tower, images.split(3), [MOMENTS, InputMoments()])
    assert passes == [False] * 4
    passes.clear()
    ekfac = EXACT.model_copy(update={"structure": "ekfac", "probes": 1})
    collect(tower, images.split(3), [ekfac, MOMENTS, ekfac.model_copy(update={"seed": 1})])
    assert len(passes) == 1 + 6
    passes.clear()
    collect(
        tower,
        images.split(3),
        [Gradient(votes=True), Fisher(), Fisher(outcome="label"), MOMENTS],
        **settings,
    )
    assert len(passes) == 1 + 7 + 3  # example by example, and batch by batch
    handle.remove()
    alone = [collect(tower, images.split(3), [statistic], **settings)[0] for statistic in wanted]
    same_tensors(MOMENTS.pack(together[0])[0], MOMENTS.pack(alone[0])[0])
    for number in (1, 2):
        same(together[number], alone[number], 0)
    same_tensors(together[3].mean, alone[3].mean)


def test_a_curvature_at_a_vector_is_that_of_the_moved_model(tower: Images, images: Tensor):
    weights = moved(tower)
    other = Images()
    other.module.load_state_dict(weights, strict=False)
    other.parameters = {name: weights[name] for name in other.parameters}
    (at,) = collect(tower, images.split(3), [EXACT], parameters=weights)
    (there,) = collect(other, images.split(3), [EXACT])
    same(at, there)


@pytest.mark.parametrize(
    "statistic", [MOMENTS, EXACT, Fisher(), Gradient(votes=True)], ids=lambda s: s.kind
)
def test_values_are_views_of_stored_tensors(
    statistic: Statistic, tower, images, head, labels, tmp_path
):
    (value,) = collect(tower, images.split(3), [statistic], head=head, labels=labels)
    tensors, meta = statistic.pack(value)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        tmp_path / "value.safetensors",
    )
    with safe_open(tmp_path / "value.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    again, header = statistic.pack(statistic.unpack(stored, meta))
    assert header == meta
    same_tensors(again, tensors)
    assert all(again[name].data_ptr() == stored[name].data_ptr() for name in stored)


def test_what_is_refused(tower: Images, images: Tensor, head: Tensor, labels: Tensor):
    with pytest.raises(UserError, match="gradient takes the loss of the labels"):
        collect(tower, [images], [Gradient()], head=head)
    with pytest.raises(UserError, match="needs the task's head"):
        collect(tower, [images], [Fisher()])
    with pytest.raises(UserError, match="no examples"):
        collect(tower, [], [MOMENTS])
    with pytest.raises(TypeError, match="cross_moments is one of a pair"):
        collect(tower, [images], [CrossMoments()])
    with pytest.raises(TypeError, match="input_moments is one of one model"):
        collect((tower, tower), [(images, images)], [MOMENTS])
    broken = {name: weight.clone() for name, weight in tower.parameters.items()}
    broken["blocks.1.attn.q.weight"][0, 0] = torch.nan
    with pytest.raises(UserError, match=r"input_moments: blocks\.1\.attn\.out/gram is not finite"):
        collect(tower, [images], [MOMENTS], parameters=broken)
    with pytest.raises(
        UserError, match=r"curvature: the factors of blocks\.0\.attn\.q are not finite"
    ):
        collect(
            tower, [images], [EXACT.model_copy(update={"structure": "ekfac"})], parameters=broken
        )
    with pytest.raises(NotImplementedError, match="Spectrum is not collected"):
        collect(tower, [images], [Spectrum()])


class Peak(Accumulator):
    """The largest entry of each layer's input: what a user's own statistic looks like."""

    def __init__(self, layers):
        self.layers, self.peaks = layers, {}

    def visitors(self, side):
        def visit(name):
            return lambda tokens: self.peaks.__setitem__(
                name, max(self.peaks.get(name, 0), float(tokens.rows().max()))
            )

        return [{(layer.name, "input"): visit(layer.name) for layer in self.layers}]

    def finish(self, examples):
        return {name: torch.tensor(value) for name, value in self.peaks.items()}


class Peaks(Statistic):
    """Registered by a user."""

    kind: str = "peaks"

    def accumulator(self, *surveys):
        return Peak(surveys[0].model.layers)

    def pack(self, value):
        return value, {}

    def unpack(self, tensors, meta):
        return tensors


def test_a_statistic_of_ones_own():
    model, inputs = Text(), texts([2, 5, 3], 5)
    (found,) = collect(model, inputs.split(2), [Peaks()])
    torch.testing.assert_close(found["first"], inputs[inputs[..., 3] > 0][:, :3].max().float())


def view(inputs: Tensor) -> View:
    return View.of({"inputs": inputs}, name="task/train")


def test_batches():
    small, large = (
        torch.zeros(70, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(70, 3, 224, 224, dtype=torch.uint8),
    )
    assert [batch_size(torch.zeros(1, length)) for length in (16, 128, 512, 10**6)] == [
        64,
        64,
        16,
        1,
    ]
    assert (batch_size(small), batch_size(large)) == (64, 16)
    assert [len(piece[0]) for piece in Batches(view(small))] == [64, 6]
    pairs = Batches(view(small), view(large))
    assert [tuple(len(side) for side in piece) for piece in pairs] == [(16, 16)] * 4 + [(6, 6)]
    told = []
    model = Text()
    collect(model, texts([2, 5, 3], 5).split(2), [MOMENTS], observe=lambda *step: told.append(step))
    assert told == [(1, 2, {}), (2, 2, {})]
    with pytest.raises(UserError, match=r"\[70, 2\]"):
        Batches(view(small), view(small[:2]))
    with pytest.raises(UserError, match="no examples"):
        Batches(view(small[:0]))


@dataclass
class Granted:
    """What a derived statistic is given."""

    values: dict
    model: Images

    def __getitem__(self, need):
        return self.values[need]


@pytest.mark.parametrize("whitening", ["cov", "sqrt"])
@pytest.mark.parametrize("at", [None, Tuned((Examples("a", "train", "learning"),))])
def test_spectrum(whitening: str, at, tower: Images, images: Tensor):
    statistic = Spectrum(whitening=whitening, damping=0.01, moments=MOMENTS)
    asked = Statistics(statistic, Examples("a", "train", "calibration"), at=at)
    needs = statistic.needs(asked)
    assert needs == (Statistics(MOMENTS, asked.on, at=at), *([at] if at else []))
    vector = TaskVector.between(tower.parameters, moved(tower))
    weights = vector.apply_to(tower.parameters) if at else tower.parameters
    (moments,) = collect(tower, images.split(3), [MOMENTS], parameters=weights)
    spectra = statistic.made(asked, Granted({needs[0]: moments, at: vector}, tower))
    for layer, values in spectra.items():
        weight, moment = weights[f"{layer}.weight"], moments[layer]
        covariance = moment.gram / moment.rows + 0.01 * torch.eye(
            len(moment.total), dtype=torch.float64
        )
        factor = torch.linalg.cholesky(covariance) if whitening == "sqrt" else covariance
        torch.testing.assert_close(
            values, torch.linalg.svd(weight @ factor).S, rtol=1e-9, atol=1e-12
        )
    assert spectra.keys() == set(moments)


def test_settings_of_a_curvature():
    settings = CurvatureSettings(structure="ekfac", probes=3, seed=5, examples=40)
    assert settings.statistic.record() == settings.model_dump(exclude={"examples", "fraction"})
    assert (settings.budget.count, settings.budget.fraction, settings.budget.seed) == (40, None, 5)
    share = CurvatureSettings(fraction=0.3).budget
    assert (share.count, share.fraction) == (None, 0.3)
