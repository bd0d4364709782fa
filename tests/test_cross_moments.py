"""Cross-moments of two models on the same examples, against naive hooks, resizing by hand, and layers' algebra."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from test_curvature import Text, Tower, texts
from test_statistics import CLOSE, Images, Sentences, moved
from torch import Tensor
from torch.func import functional_call

from taskvec.errors import UserError
from taskvec.models.clip.spaces import clip_spaces
from taskvec.statistics.collect import collect
from taskvec.statistics.cross_moments import CrossMoments
from taskvec.statistics.cross_value import CrossMoment, through
from taskvec.statistics.passes.pairing import paired, resize_grid, resize_line
from taskvec.statistics.passes.tokens import Tokens

EXACT = CrossMoments(precision="float64", grams=True)
# 3 x 3 patches and 12 channels
WIDE = {"image_size": 12, "patch_size": 4, "width": 12, "head_width": 6}


def observed(model: Tower) -> dict[str, tuple[str, str]]:
    """Return a tower's spaces, with one more that is seen where another is."""
    return clip_spaces(model.config).of(model.parameters).observed | {
        "also": ("blocks.1.attn.k", "input")
    }


@pytest.fixture(scope="module")
def towers() -> tuple[Images, Images]:
    pair = Images(), Images(**WIDE)
    for model in pair:
        model.observed = observed(model)
    return pair


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(5, 3, 12, 12, generator=generator, dtype=torch.float64)
    return F.interpolate(large, size=(8, 8), mode="bilinear"), large


def cut(pair: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(side.split(size) for side in pair), strict=True))


def activations(model, weights, inputs: Tensor) -> dict[str, Tensor]:
    """Return [N, L, d] of every space, by naive hooks on a functional call."""
    seen: dict[str, Tensor] = {}

    def look(space: str, side: str):
        def hook(_, inputs, output):
            values = (inputs[0] if side == "input" else output).detach()
            seen[space] = values.unsqueeze(1) if values.ndim == 2 else values

        return hook

    handles = [
        model.module.get_submodule(module).register_forward_hook(look(space, side))
        for space, (module, side) in model.observed.items()
    ]
    functional_call(model.module, weights, model.prepare(inputs))
    for handle in handles:
        handle.remove()
    return seen


def resized(values: Tensor) -> Tensor:
    """Resize 2 x 2 patches behind a class token to 3 x 3, as the formula says: bilinear, corners not aligned."""
    if values.shape[1] == 1:
        return values
    line = torch.tensor([[1, 0], [0.5, 0.5], [0, 1]], dtype=torch.float64)
    patches = torch.kron(line, line) @ values[:, 1:]
    return torch.cat([values[:, :1], patches], dim=1)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_moments_equal_naive_ones(size: int, towers, images):
    weights = tuple(moved(model) for model in towers)
    (found,) = collect(towers, cut(images, size), [EXACT], parameters=weights)
    own, other = (activations(*parts) for parts in zip(towers, weights, images, strict=True))
    assert set(found.spaces) == own.keys() == other.keys() and not found.left_out
    for space in found.spaces:
        a, b = resized(own[space]).flatten(0, 1), other[space].flatten(0, 1)
        moment = found.moment(space, *weights)
        assert (
            moment.rows
            == len(a)
            == len(b)
            == (5 if space in ("projection.in", "embedding") else 50)
        )
        for value, expected in zip(
            (moment.cross, moment.source, moment.target, moment.squares, *moment.grams),
            (
                a.T @ b,
                a.sum(0),
                b.sum(0),
                torch.stack([a.square().sum(), b.square().sum()]),
                a.T @ a,
                b.T @ b,
            ),
            strict=True,
        ):
            torch.testing.assert_close(value, expected, **CLOSE)


def test_distinct_spaces_are_summed_once(towers, images):
    """q, k and v share their input with the norm's output; outputs of layers follow from their inputs."""
    (found,) = collect(towers, [images], [CrossMoments()])
    assert found.aliases["also"] == "blocks.1.attn.in"
    roles = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.fc", "mlp.proj")
    assert set(found.derived) == {
        *(f"blocks.{n}.{role}" for n in (0, 1) for role in roles),
        "embedding",
    }
    assert found.derived["blocks.0.attn.v"][0] == "blocks.0.attn.in"
    tensors, _ = CrossMoments().pack(found)
    summed = {name.rpartition("/")[0] for name in tensors if name.endswith("/cross")}
    inner = {
        f"blocks.{n}.{space}"
        for n in (0, 1)
        for space in ("attn.in", "attn.heads", "mlp.in", "mlp.hidden")
    }
    assert summed == inner | {"residual", "ln_pre", "projection.in"}


def test_values_are_views_of_stored_tensors(towers, images, tmp_path):
    (value,) = collect(towers, [images], [EXACT])
    tensors, meta = EXACT.pack(value)
    save_file(tensors, tmp_path / "value.safetensors")
    with safe_open(tmp_path / "value.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    again = EXACT.unpack(stored, meta)
    weights = [model.parameters for model in towers]
    assert again.moment("ln_pre", *weights).cross.data_ptr() == stored["ln_pre/cross"].data_ptr()
    for space in value.spaces:
        assert torch.equal(again.moment(space, *weights).cross, value.moment(space, *weights).cross)


def random_moment(
    a: int, b: int, rows: int = 40, grams: bool = True
) -> tuple[CrossMoment, Tensor, Tensor]:
    first, second = (1 + torch.randn(rows, width, dtype=torch.float64) for width in (a, b))
    squares = torch.stack([first.square().sum(), second.square().sum()])
    kept = (first.T @ first, second.T @ second) if grams else None
    return (
        CrossMoment(first.T @ second, first.sum(0), second.sum(0), squares, rows, kept),
        first,
        second,
    )


@pytest.mark.parametrize("biased", [True, False])
def test_moments_of_outputs_follow_from_those_of_inputs(biased: bool):
    moment, a, b = random_moment(3, 5)
    weights = [torch.randn(*shape, dtype=torch.float64) for shape in ((4, 3), (6, 5))]
    layers = [(weight, weight[:, 0] + 1 if biased else None) for weight in weights]
    found = through(moment, *layers)
    x, y = (F.linear(rows, *layer) for rows, layer in zip((a, b), layers, strict=True))
    torch.testing.assert_close(found.cross, x.T @ y)
    torch.testing.assert_close(found.source, x.sum(0))
    torch.testing.assert_close(found.target, y.sum(0))
    torch.testing.assert_close(found.grams[1], y.T @ y)
    torch.testing.assert_close(found.squares, torch.stack([x.square().sum(), y.square().sum()]))
    light = through(random_moment(3, 5, grams=False)[0], *layers)
    assert light.squares is None and light.centred().squares is None
    with pytest.raises(ValueError, match="needs the squares of the rows"):
        light.residual(torch.eye(4, 6))


@pytest.mark.parametrize(("a", "b"), [(3, 5), (5, 3)])
def test_centred_moments_and_residuals(a: int, b: int):
    moment, first, second = random_moment(a, b)
    centred = moment.centred()
    x, y = first - first.mean(0), second - second.mean(0)
    for found, expected in (
        (centred.cross, x.T @ y),
        (centred.grams[0], x.T @ x),
        (centred.grams[1], y.T @ y),
    ):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(centred.squares, torch.stack([x.square().sum(), y.square().sum()]))
    u, _, v = torch.linalg.svd(moment.cross, full_matrices=False)
    torch.testing.assert_close(moment.residual(u @ v), (first @ u @ v - second).square().sum())
    torch.testing.assert_close(centred.residual(u @ v), (x @ u @ v - y).square().sum())
    light = CrossMoment(moment.cross, moment.source, moment.target, moment.squares, moment.rows)
    if a < b:
        torch.testing.assert_close(light.residual(u @ v), moment.residual(u @ v))
    else:
        with pytest.raises(ValueError, match="grams=true"):
            light.residual(u @ v)


def test_pairing_by_hand():
    grid = torch.tensor([9.0, 0, 1, 2, 3]).reshape(1, 5, 1)
    torch.testing.assert_close(
        resize_grid(grid, 10).flatten(), torch.tensor([9, 0, 0.5, 1, 1, 1.5, 2, 2, 2.5, 3])
    )
    torch.testing.assert_close(
        resize_grid(grid[:, 1:], 9).flatten(), torch.tensor([0, 0.5, 1, 1, 1.5, 2, 2, 2.5, 3])
    )
    assert resize_grid(grid, 9) is None
    torch.testing.assert_close(resize_line(grid[0, 1:3], 3).flatten(), torch.tensor([0, 0.5, 1]))
    ones = torch.ones(2, 5, 3)
    assert torch.equal(resize_grid(ones, 17), torch.ones(2, 17, 3)) and torch.equal(
        resize_line(ones[0], 7), torch.ones(7, 3)
    )
    source = Tokens(grid, torch.tensor([[True, True, True, False, False]]))
    target = Tokens(torch.arange(4.0).reshape(1, 4, 1), torch.tensor([[True, True, False, False]]))
    for how, expected in {
        "cls": ([9], [0]),
        "mean": ([10 / 3], [0.5]),
        "interpolate": ([6.75, 0.75], [0, 1]),  # 3 real tokens to 2: at 1/4 and 7/4
        "interpolate2d": ([6.75, 0.75], [0, 1]),
    }.items():
        for rows, values in zip(paired(source, target, how), expected, strict=True):
            torch.testing.assert_close(rows.flatten(), torch.tensor(values, dtype=torch.float32))
    alike = paired(source, Tokens(2 * grid, source.real), "interpolate2d")
    assert alike[0].flatten().tolist() == [9, 0, 1] and alike[1].flatten().tolist() == [18, 0, 2]


@pytest.mark.parametrize("align", ["interpolate", "mean", "cls"])
def test_padding_never_counts(align: str):
    """Texts of other lengths in the two models, padded by any amount and cut into any batches."""
    pair = Text(), Text(linear=True)
    for model in pair:
        model.observed = {
            name: (name, side)
            for name, side in (("first", "output"), ("second", "input"), ("head", "input"))
        }
    statistic = CrossMoments(precision="float64", align=align)
    short, long = [2, 5, 3, 4], [4, 5, 6, 1]

    def moments(widths: tuple[int, int], size: int):
        inputs = texts(short, widths[0]), texts(long, widths[1], seed=1)
        return statistic.pack(collect(pair, cut(inputs, size), [statistic])[0])

    tight, meta = moments((5, 6), 4)
    assert meta["rows"] == {
        "first": {"interpolate": 16}.get(align, 4),
        "head": 4,
        "second": meta["rows"]["first"],
    }
    for widths, size in (((8, 8), 4), ((6, 8), 1), ((7, 7), 3)):
        tensors, other = moments(widths, size)
        assert other == meta
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, tight[name], **CLOSE)


def test_gradients_of_a_pair(towers, images):
    """The gradients of the labels' loss at every output, in both models, paired like activations."""
    heads = tuple(torch.randn(3, 6, dtype=torch.float64) for _ in towers)
    labels = torch.tensor([0, 2, 1, 1, 0])
    (found,) = collect(
        towers,
        cut(images, 2),
        [EXACT.model_copy(update={"of": "gradients", "align": "mean"})],
        head=heads,
        labels=labels,
    )
    assert (
        not found.derived
        and "gradients are taken at outputs" in found.left_out["blocks.0.mlp.hidden"]
    )
    means = []
    for model, head, inputs in zip(towers, heads, images, strict=True):
        seen = []
        hook = model.module.blocks[1].mlp.fc.register_forward_hook(
            lambda _, __, output, seen=seen: seen.append(output)
        )
        weights = {
            name: weight.clone().requires_grad_() for name, weight in model.parameters.items()
        }
        value = F.cross_entropy(
            model.logits(model.features(weights, inputs), head), labels, reduction="sum"
        )
        means.append(torch.autograd.grad(value, seen[0])[0].mean(1))
        hook.remove()
    moment = found.moment("blocks.1.mlp.fc", *(model.parameters for model in towers))
    torch.testing.assert_close(moment.cross, means[0].T @ means[1], **CLOSE)


def test_what_is_left_out_or_refused(towers):
    pair = Sentences(twice=True), Text()
    for model in pair:
        model.observed = {"first": ("first", "output"), "second": ("second", "input")}
    inputs = texts([2, 3], 3), texts([2, 3], 3)
    (found,) = collect(pair, [inputs], [CrossMoments()])
    assert found.left_out == {"second": "it is called 2 times per pass"} and found.spaces == [
        "first"
    ]
    pair[1].observed = {"other": ("first", "output")}
    with pytest.raises(UserError, match="no space in common"):
        collect(pair, [inputs], [CrossMoments()])
    with pytest.raises(ValueError, match="align"):
        CrossMoments(align="nearest")
    with pytest.raises(UserError, match="cross_moments takes the loss of the labels"):
        collect(towers, [(inputs[0], inputs[1])], [CrossMoments(of="gradients")])


def test_one_model_on_both_sides_is_paired_with_itself(towers, images):
    model, batch = towers[0], images[0]
    weights = moved(model)
    (found,) = collect((model, model), [(batch, batch)], [EXACT], parameters=(None, weights))
    own, other = activations(model, model.parameters, batch), activations(model, weights, batch)
    for space in found.spaces:
        moment = found.moment(space, model.parameters, weights)
        expected = own[space].flatten(0, 1).T @ other[space].flatten(0, 1)
        assert torch.allclose(moment.cross, expected, rtol=1e-9, atol=1e-9)
