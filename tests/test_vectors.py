"""Task vectors: the identities of their arithmetic (float64), their errors, and their files."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from taskvec.errors import UserError
from taskvec.vectors import LowRank, TaskVector, random_like, weights_hash

EPS = torch.finfo(torch.float64).eps
SHAPES = {"z.conv": (4, 3, 2, 2), "scale": (), "a.proj": (5, 7), "bias": (7,), "none": (0, 3)}


@pytest.fixture(params=[11, 4242])
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def draw(seed: int):
    """A function that returns fresh random tensors under the names of SHAPES."""
    generator = torch.Generator().manual_seed(seed)

    def tensors(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {
            n: (scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype)
            for n, s in SHAPES.items()
        }

    return tensors


def close(left, right, ulps: float = 4) -> None:
    """Assert equality within a few roundings of the largest entry, name by name."""
    assert list(left) == list(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=ulps * EPS, atol=8 * ulps * EPS)


def same(left, right) -> None:
    """Assert equality bit for bit, name by name, in order."""
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name]), name


# --- theta_0 + alpha * tau ------------------------------------------------------------------------------------------


def test_base_plus_vector_is_the_tuned_model_within_rounding(draw):
    base, tuned = draw(), draw()
    edited = TaskVector.between(base, tuned).apply_to(base, 1.0)
    assert list(edited) == list(base)
    for name, weight in edited.items():
        bound = EPS * ((tuned[name] - base[name]).abs() + tuned[name].abs())
        assert ((weight - tuned[name]).abs() <= bound).all(), name


def test_alpha_zero_is_the_base_bit_for_bit(draw):
    base = draw()
    base["bias"][0] = -0.0
    broken = TaskVector({name: torch.full_like(tensor, torch.inf) for name, tensor in base.items()})
    edited = broken.apply_to(base, 0.0)
    assert weights_hash(edited) == weights_hash(base)
    same(edited, base)


@pytest.mark.parametrize("alpha", [0.3, 1.0, -1.0, 2.5])
def test_applying_is_elementwise_and_leaves_the_base_alone(draw, alpha):
    base, tau = draw(), TaskVector(draw())
    before = weights_hash(base)
    edited = tau.apply_to(base, alpha)
    assert weights_hash(base) == before
    for name in base:
        np.testing.assert_allclose(
            edited[name], base[name].numpy() + alpha * tau[name].numpy(), rtol=4 * EPS, atol=8 * EPS
        )


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integer_entries_are_no_weights_and_stay(draw, dtype):
    base, tuned = draw(), draw()
    base["ids"], tuned["ids"] = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    tau = TaskVector.between(base, tuned)
    assert "ids" not in tau
    assert list(tau) == list(SHAPES)
    edited = tau.apply_to(base, 0.7)
    assert edited["ids"] is base["ids"]
    assert edited["ids"].dtype == dtype and not edited["ids"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_edit_keeps_the_dtype_of_the_base(draw, dtype):
    base, tau = draw(dtype), TaskVector(draw())
    edited = tau.apply_to(base, 0.5)
    assert {weight.dtype for weight in edited.values()} == {dtype}


def test_a_trained_tensor_gives_a_vector_without_graph(draw):
    base = draw()
    tuned = {name: tensor.clone().requires_grad_() for name, tensor in base.items()}
    assert not any(delta.requires_grad for delta in TaskVector.between(base, tuned).values())


# --- algebra --------------------------------------------------------------------------------------------------------


def test_addition_commutes_and_associates(draw):
    a, b, c = (TaskVector(draw()) for _ in range(3))
    same(a + b, b + a)
    close((a + b) + c, a + (b + c))


@pytest.mark.parametrize("factor", [0.1, -3, 1 / 7])
def test_scaling_distributes_on_both_sides(draw, factor):
    a, b = TaskVector(draw()), TaskVector(draw())
    close((a + b) * factor, a * factor + b * factor)
    same(factor * a, a * factor)


@pytest.mark.parametrize(
    "scalar", [2, 0.5, np.float64(0.5), np.float32(0.25), torch.tensor(0.5, dtype=torch.float64)]
)
def test_every_kind_of_scalar_scales_from_either_side(draw, scalar):
    tau = TaskVector(draw(), {"base_hash": "b"})
    expected = {name: delta * float(scalar) for name, delta in tau.items()}
    for scaled in (tau * scalar, scalar * tau):
        assert isinstance(scaled, TaskVector)
        assert scaled.metadata == tau.metadata
        same(scaled, expected)


def test_division_is_scaling_by_the_inverse(draw):
    tau = TaskVector(draw())
    close(tau / 8, tau * 0.125)


def test_negation_is_its_own_inverse_and_subtraction_adds_it(draw):
    a, b = TaskVector(draw()), TaskVector(draw())
    negated = -a
    same(-negated, a)
    same(a - b, a + (-b))
    assert not any(delta.any() for delta in (a - a).values())


def test_sum_of_one_vector_is_that_vector(draw):
    tau = TaskVector(draw())
    assert sum([tau]) is tau


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_mean_of_the_vectors_at_alpha_one_is_weight_averaging(draw, count):
    base, models = draw(), [draw() for _ in range(count)]
    vectors = [TaskVector.between(base, tuned) for tuned in models]
    average = {name: torch.stack([m[name] for m in models]).mean(0) for name in base}
    close((sum(vectors) / count).apply_to(base, 1.0), average, ulps=2 * count)
    close(sum(vectors).apply_to(base, 1 / count), average, ulps=2 * count)


def test_an_analogy_with_equal_a_and_b_gives_c(draw):
    a, c = TaskVector(draw()), TaskVector(draw())
    b = TaskVector({name: delta.clone() for name, delta in a.items()})
    same(c + (b - a), c)


def test_an_absent_entry_is_zero(draw):
    deltas = draw()
    left = TaskVector({name: deltas[name] for name in ("scale", "bias")})
    right = TaskVector({name: deltas[name] for name in ("bias", "a.proj")})
    total = left + right
    assert list(total) == ["scale", "bias", "a.proj"]
    same(total, {"scale": deltas["scale"], "bias": 2 * deltas["bias"], "a.proj": deltas["a.proj"]})
    same(
        left - right,
        {"scale": deltas["scale"], "bias": 0 * deltas["bias"], "a.proj": -deltas["a.proj"]},
    )
    base = draw()
    edited = left.apply_to(base, 0.5)
    assert list(edited) == list(base)
    assert all(edited[name] is base[name] for name in base if name not in left)


def test_a_vector_is_no_factor(draw):
    a = TaskVector(draw())
    with pytest.raises(TypeError):
        a * a
    with pytest.raises(TypeError):
        a + 1


def test_blocks_are_tensors_or_what_the_pattern_says(draw):
    tau = TaskVector(draw())
    assert tau.blocks() == {name: [name] for name in SHAPES}
    pattern = {name: "one" if "." in name else "two" for name in SHAPES}
    assert tau.blocks(pattern) == {"one": ["z.conv", "a.proj"], "two": ["scale", "bias", "none"]}


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_named(draw):
    base, extra = draw(), draw() | {"blocks.9.extra": torch.zeros(2)}
    with pytest.raises(KeyError, match=r"blocks\.9\.extra"):
        TaskVector(extra).apply_to(base)
    with pytest.raises(KeyError, match=r"blocks\.9\.extra"):
        TaskVector.between(base, extra)


def test_another_shape_is_named(draw):
    base, other = draw(), draw()
    other["a.proj"] = other["a.proj"].T
    for refused in (
        lambda: TaskVector(other).apply_to(base),
        lambda: TaskVector.between(base, other),
        lambda: TaskVector(base) + TaskVector(other),
        lambda: TaskVector(base) - TaskVector(other),
        lambda: sum([TaskVector(base), TaskVector(other)]),
    ):
        with pytest.raises(ValueError, match=r"a\.proj.*\(5, 7\).*\(7, 5\)"):
            refused()


def test_even_broadcastable_shapes_are_refused(draw):
    base, other = draw(), draw()
    other["bias"] = other["bias"][:1]
    with pytest.raises(ValueError, match="bias"):
        TaskVector(other).apply_to(base)
    with pytest.raises(ValueError, match="bias"):
        TaskVector(base) + TaskVector(other)


def test_vectors_of_different_base_weights_do_not_mix(draw):
    left = TaskVector(draw(), {"base_hash": "1111", "task": "x"})
    right = TaskVector(draw(), {"base_hash": "2222"})
    for refused in (lambda: left + right, lambda: right - left, lambda: sum([left, right])):
        with pytest.raises(ValueError, match="1111 and 2222"):
            refused()


def test_arithmetic_keeps_the_base_hash_and_drops_what_differs(draw):
    left = TaskVector(draw(), {"base_hash": "1111", "task": "x", "seed": 3})
    right = TaskVector(draw(), {"base_hash": "1111", "task": "y", "seed": 3})
    for combined in (left + right, left - right, sum([left, right])):
        assert combined.metadata == {"base_hash": "1111", "seed": 3}
    assert (-left).metadata == left.metadata


def test_a_vector_never_loads_onto_another_base(draw, tmp_path):
    path, base_hash = tmp_path / "v.safetensors", "1" * 64
    TaskVector(draw(), {"base_hash": base_hash}).save(path)
    same(TaskVector.load(path, base_hash=base_hash), TaskVector.load(path))
    with pytest.raises(UserError, match=r"v\.safetensors: .* made on other base weights \(1{12}\)"):
        TaskVector.load(path, base_hash="2" * 64)


# --- factors --------------------------------------------------------------------------------------------------------


@pytest.fixture
def low_rank(draw, seed):
    """A vector of one dense delta and one product of rank 2."""
    generator = torch.Generator().manual_seed(seed + 1)
    up, down = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 2), (2, 7))
    )
    dense = {"bias": draw()["bias"]}
    return TaskVector(dense, {"base_hash": "b", "seed": seed}, {"a.proj": LowRank(up, down, 0.5)})


def test_factors_are_multiplied_when_they_are_looked_at(low_rank, draw):
    product = low_rank.factors["a.proj"]
    assert list(low_rank) == ["bias", "a.proj"]
    torch.testing.assert_close(low_rank["a.proj"], 0.5 * product.up @ product.down)
    dense = low_rank.materialised()
    assert not dense.factors and not dense.deferred
    same(dense, low_rank)
    base = draw()
    same(low_rank.apply_to(base, 0.3), dense.apply_to(base, 0.3))
    with pytest.raises(ValueError, match=r"a\.proj is given as a delta and as factors"):
        TaskVector(dense, factors=low_rank.factors)


@pytest.mark.parametrize("factor", [-1, 0.25, np.float64(3.0)])
def test_scaling_keeps_factors_and_a_sum_does_not(low_rank, draw, factor):
    scaled = low_rank * factor
    assert scaled.factors["a.proj"].up is low_rank.factors["a.proj"].up
    close(scaled, low_rank.materialised() * factor)
    other = TaskVector(draw(), {"base_hash": "b"})
    for total in (low_rank + other, other + low_rank, low_rank + low_rank):
        assert not total.factors
    close((low_rank + low_rank).materialised(), 2 * low_rank.materialised())
    single = low_rank.to(torch.float32)
    assert (
        single["a.proj"].dtype
        == single.factors["a.proj"].up.dtype
        == single["bias"].dtype
        == torch.float32
    )


def test_a_file_keeps_factors_and_a_store_may_keep_more_beside_them(low_rank, tmp_path):
    low_rank.save(tmp_path / "v.safetensors")
    loaded = TaskVector.load(tmp_path / "v.safetensors")
    same(loaded, low_rank)
    assert loaded.factors.keys() == {"a.proj"} and loaded.factors["a.proj"].up.shape == (5, 2)
    assert loaded.metadata == low_rank.metadata
    assert load_file(tmp_path / "v.safetensors").keys() == {"bias", "up/a.proj", "down/a.proj"}
    for vector in (low_rank, loaded, loaded * 2):
        tensors, header = vector.pack()
        beside = {**tensors, "head/stripes": torch.zeros(3)}
        same(TaskVector.unpack(beside, header), vector)
    with pytest.raises(ValueError, match="format 99; this version reads format 1"):
        TaskVector.unpack(tensors, header | {"format": 99})


# --- measures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dot_and_norm_are_accumulated_in_float64(draw, dtype):
    a, b = TaskVector(draw(dtype, scale=1e3)), TaskVector(draw(dtype, scale=1e-3))
    flat = [
        np.concatenate([delta.double().numpy().ravel() for delta in v.values()]) for v in (a, b)
    ]
    assert a.dot(b).dtype == a.norm().dtype == torch.float64
    products = flat[0] * flat[1]
    assert abs(a.dot(b).item() - math.fsum(products)) <= 1e-14 * np.abs(products).sum()
    assert a.norm().item() == pytest.approx(np.linalg.norm(flat[0]), rel=1e-14)


def test_dot_takes_absent_entries_as_zero(draw):
    deltas = draw()
    part = TaskVector({"bias": deltas["bias"]})
    assert TaskVector(deltas).dot(part).item() == pytest.approx(part.dot(part).item(), rel=1e-15)
    assert part.dot(TaskVector({"scale": deltas["scale"]})).item() == 0.0
    assert TaskVector({}).norm().item() == 0.0


def test_a_random_vector_has_the_norm_of_every_tensor(draw, seed):
    tau = TaskVector(draw(torch.float32), {"base_hash": "b"})
    tau["bias"].zero_()
    drawn = random_like(tau, torch.Generator().manual_seed(seed))
    assert list(drawn) == list(tau)
    assert drawn.metadata == tau.metadata
    for name in tau:
        assert drawn[name].shape == tau[name].shape and drawn[name].dtype == tau[name].dtype
        assert drawn[name].norm().item() == pytest.approx(tau[name].norm().item(), rel=1e-5)
    same(drawn, random_like(tau, torch.Generator().manual_seed(seed)))
    turned = TaskVector({name: tau[name] for name in reversed(list(tau))})
    same(
        {name: random_like(turned, torch.Generator().manual_seed(seed))[name] for name in tau},
        drawn,
    )
    other = random_like(tau, torch.Generator().manual_seed(seed + 1))
    assert not torch.equal(drawn["a.proj"], other["a.proj"])


def test_a_random_vector_points_anywhere(seed):
    tau = TaskVector({"w": torch.randn(100, 100, generator=torch.Generator().manual_seed(seed))})
    drawn = random_like(tau, torch.Generator().manual_seed(seed + 1))
    # Five standard deviations of a cosine in 10,000 dimensions
    assert abs(tau.dot(drawn) / tau.norm() ** 2) < 5 / 100
    centred = (drawn["w"] - drawn["w"].mean()) / drawn["w"].std()
    assert abs(centred.pow(4).mean() - 3) < 5 * math.sqrt(96 / 1e4)  # the kurtosis of a Gaussian


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_file_keeps_values_order_and_metadata(draw, tmp_path, dtype):
    metadata = {"base_hash": "ü1", "seed": 3, "curve": [{"loss": 0.1, "step": 1}], "tag": None}
    tau = TaskVector(draw(dtype), metadata)
    tau.save(tmp_path / "v.safetensors")
    loaded = TaskVector.load(tmp_path / "v.safetensors")
    same(loaded, tau)
    assert loaded.metadata == metadata
    assert list(loaded) != sorted(loaded)  # the order is the vector's own


def test_views_are_saved_like_their_copies(draw, tmp_path):
    packed = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    query, key, value = packed.chunk(3)
    tau = TaskVector({"q": query, "k": key, "v": value, "t": packed.T})
    tau.save(tmp_path / "v.safetensors")
    same(TaskVector.load(tmp_path / "v.safetensors"), tau)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("writer", ["torch", "pickle", "text"])
def test_a_file_that_is_no_safetensors_is_refused_and_never_run(draw, tmp_path, writer):
    path = tmp_path / "v.safetensors"
    if writer == "torch":
        torch.save({"w": torch.zeros(2), "bomb": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()) if writer == "pickle" else b"not a vector")
    with pytest.raises(ValueError, match="v.safetensors"):
        TaskVector.load(path)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(draw, tmp_path, kept):
    path = tmp_path / "v.safetensors"
    TaskVector(draw()).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="v.safetensors"):
        TaskVector.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="absent"):
        TaskVector.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    "header", [None, {"format": "pt"}, {"taskvec": "null"}, {"taskvec": "{}"}, {"taskvec": "[1"}]
)
def test_a_safetensors_file_of_something_else_is_refused(draw, tmp_path, header):
    path = tmp_path / "v.safetensors"
    save_file(draw(), path, metadata=header)
    with pytest.raises(ValueError, match="v.safetensors.*not a task vector"):
        TaskVector.load(path)


# --- hash -----------------------------------------------------------------------------------------------------------


def test_the_hash_is_of_content_not_of_layout(draw):
    weights = draw()
    reference = weights_hash(weights)
    assert len(reference) == 64
    assert weights_hash({name: weights[name].clone() for name in reversed(weights)}) == reference
    strided = weights | {"a.proj": weights["a.proj"].T.contiguous().T}
    assert weights_hash(strided) == reference
    assert (
        weights_hash({name: tensor.clone().requires_grad_() for name, tensor in weights.items()})
        == reference
    )


def test_the_hash_sees_every_change(draw):
    weights = draw()
    nudged = weights["bias"].clone()
    nudged[-1] = math.nextafter(nudged[-1].item(), math.inf)
    minus_zero, zero = torch.tensor([-0.0]), torch.tensor([0.0])
    changed = [
        weights | {"bias": nudged},
        weights | {"a.proj": weights["a.proj"].reshape(7, 5)},
        weights | {"a.proj": weights["a.proj"].flip(0)},
        weights | {"bias": weights["bias"].float()},
        weights | {"none": torch.zeros(3, 0)},
        {("renamed" if name == "bias" else name): tensor for name, tensor in weights.items()},
        {name: tensor for name, tensor in weights.items() if name != "none"},
        weights | {"a.proj": weights["a.proj"].view(torch.int64)},
        weights | {"bias": zero},
        weights | {"bias": minus_zero},
        {},
    ]
    hashes = {weights_hash(w) for w in (weights, *changed)}
    assert len(hashes) == len(changed) + 1
