"""Sparsify and combine: selection, noise; TIES, DARE, breadcrumbs and DELLA against their formulas on flat copies."""

from __future__ import annotations

import math

import pytest
import torch
from merge_world import SHAPES, close, draw, flat, given_for, merged, signed, unflat

from taskvec.merge import pieces
from taskvec.merge.base import names_of
from taskvec.merge.scheme import foreseen
from taskvec.merge.scheme.order import Sample, Wanted
from taskvec.merge.scheme.select import select, select_together
from taskvec.merge.sparse.breadcrumbs import Breadcrumbs
from taskvec.merge.sparse.dare import Dare
from taskvec.merge.sparse.della import Della
from taskvec.merge.sparse.ties import Ties
from taskvec.merge.task_arithmetic import TaskArithmetic
from taskvec.vectors.noise import Stream, random_bits, uniform


@pytest.fixture(params=[3, 71])
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def base(seed: int) -> dict:
    return draw(1000 + seed)


@pytest.fixture
def deltas(seed: int) -> list[dict]:
    return [draw(seed + number) for number in range(4)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even these small tensors."""
    monkeypatch.setattr(pieces, "ENTRIES", 30)


# Selection


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_selection_finds_every_rank(seed: int, dtype: torch.dtype):
    numbers = torch.randn(
        400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)
    numbers[50:120] = numbers[7]  # ties
    numbers[200:230] = 0
    numbers[300:303] = torch.tensor([1e-45, 3e38, -3e38], dtype=torch.float64).to(dtype)
    ordered = numbers.sort().values
    for rank in range(0, 400, 7):
        found = select(lambda: numbers.split(33), rank)
        assert found.value == ordered[rank]
        assert found.below == int((numbers < found.value).sum())
    arrays = [numbers, -numbers]
    together = select_together(
        lambda: zip(*(a.split(50) for a in arrays), strict=True), [Wanted(0, 9), Wanted(1, 390)]
    )
    assert [found.value for found in together] == [ordered[9], -ordered[9]]
    with pytest.raises(ValueError, match="rank 400 of 400"):
        select(lambda: numbers.split(33), 400)


@pytest.mark.parametrize("kept", [9, 300, 2**20])
def test_one_pass_finds_ranks_that_a_sample_or_an_end_foresees(kept: int, seed: int, monkeypatch):
    monkeypatch.setattr(foreseen, "KEPT", kept)
    count = 20_000
    drawn = torch.randn(2, count, generator=torch.Generator().manual_seed(seed))
    drawn[0, 500:6000] = drawn[0, 3]  # ties
    drawn[1].abs_().mul_(8).round_()  # hardly anything but ties, many of them zero
    ordered = drawn.sort(dim=1).values
    looked = []

    def passing():
        looked.append(True)
        pieces = (row.split(777) for row in drawn)
        return zip(*pieces, strict=True)

    sample = Sample(lambda: [drawn[:, 5::11]], [count, count])
    ranks = (0, 5, 290, 4000, 10_000, 15_321, 19_900, 19_999)
    wanted = [Wanted(array, rank) for array in (0, 1) for rank in ranks]
    found = select_together(passing, wanted, sample)
    for (array, rank), selected in zip(wanted, found, strict=True):
        assert selected.value == ordered[array, rank]
        assert selected.below == int((drawn[array] < selected.value).sum())
    # Of few values far apart a sample may say the next one
    assert len(looked) == 1 or kept < count
    assert len(looked) <= 2
    # A sample that misleads costs passes, not correctness
    misled = Sample(lambda: [torch.full((2, 50), 1e-3)], [count, count])
    again = select_together(passing, wanted, misled)
    assert again == found


# Noise


def test_noise_is_uniform_and_a_function_of_its_place(seed: int):
    stream = Stream(seed, "a.weight", 2)
    count = 3 * 2**16 + 11
    whole = random_bits(stream, 0, count)
    assert torch.equal(random_bits(stream, 70001, 90000), whole[70001:160001])
    numbers = uniform(stream, 0, count).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    shares = torch.histc(numbers, 16, 0, 1) / count
    assert (shares * 16 - 1).abs().max() < 6 * math.sqrt(16 / count)
    for other in (
        uniform(stream, 1, count),
        uniform(stream, 2**16, count),
        uniform(Stream(seed, "a.weight", 3), 0, count),
        uniform(Stream(seed + 1, "a.weight", 2), 0, count),
        uniform(Stream(seed, "b.weight", 2), 0, count),
    ):
        correlation = torch.corrcoef(torch.stack([numbers, other.double()]))[0, 1]
        assert correlation.abs() < 5 / math.sqrt(count)
    bits = torch.stack([(whole >> place) & 1 for place in range(32)]).double().mean(1)
    assert (bits - 0.5).abs().max() < 5 * 0.5 / math.sqrt(count)


# TIES


def ties_reference(stack, thresholds, sign_of_zero, combine):
    """The formula on flat copies [T, d] whose entries below each row's threshold go."""
    kept = torch.where(stack.abs() >= thresholds, stack, 0)
    sign = kept.sum(0).sign()
    sign[sign == 0] = sign_of_zero(sign)
    chosen = torch.where(kept * sign > 0, kept, 0)
    if combine == "sum":
        return chosen.sum(0)
    if combine == "max":
        return chosen.abs().max(0).values * sign
    return chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)


@pytest.mark.parametrize("combine", ["sum", "mean", "max"])
@pytest.mark.parametrize("density", [0.2, 0.05, 1.0])
def test_ties_as_the_paper_and_mergelm_trim(base, deltas, combine, density):
    stack = torch.stack([flat(delta) for delta in deltas])
    stack[1, :20] = -stack[0, :20]  # entries whose sum is zero if the others trim theirs
    stack[2:, :20] = 0
    deltas = [unflat(row, base) for row in stack]
    d = stack.shape[1]

    ordered = stack.abs().sort(1).values
    number = d - int(d * density)
    thresholds = ordered[:, number - 1 : number] if number else ordered[:, :1] * 0
    expected = ties_reference(stack, thresholds, lambda sign: sign.sum().sign() or -1, combine)
    found = merged(Ties(density=density, combine=combine), base, deltas)
    close(found, unflat(expected, base))

    number = int(d * (1 - density))
    thresholds = ordered[:, number - 1 : number] if number else ordered[:, :1] * 0
    expected = ties_reference(stack, thresholds, lambda sign: sign.sum().sign(), combine)
    method = Ties(density=density, combine=combine, kept="complement", undecided="majority")
    close(merged(method, base, deltas), unflat(expected, base))


def test_ties_asks_the_majority_where_a_sum_is_zero(base):
    ones = {name: torch.ones(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    first = {name: tensor.clone() for name, tensor in ones.items()}
    second = {name: tensor.clone() for name, tensor in ones.items()}
    second["block.fc.bias"][:] = -1.0  # sums to zero there, plus elsewhere
    found = merged(Ties(density=1), base, [first, second])
    close(found, ones)
    opposite = [{name: -tensor for name, tensor in delta.items()} for delta in (first, second)]
    close(merged(Ties(density=1), base, opposite), {name: -tensor for name, tensor in ones.items()})
    plus = merged(Ties(density=1, undecided="plus"), base, opposite)
    assert (plus["block.fc.bias"] == 1).all()
    balanced = [{"scale": ones["scale"]}, {"scale": -ones["scale"]}]
    assert merged(Ties(density=1), base, balanced)["scale"] == -1  # no majority: minus
    assert merged(Ties(density=1, undecided="majority"), base, balanced)["scale"] == 0


@pytest.mark.parametrize(("weigh", "divide"), [("before", "weights"), ("after", "count")])
def test_ties_by_tensor_as_mergekit_and_peft(base, deltas, weigh, divide):
    weights = (0.5, 1.0, 2.0, 0.25)
    method = Ties(
        density=0.3,
        scope="tensor",
        kept="exact",
        undecided="plus",
        weigh=weigh,
        divide=divide,
        weights=weights,
    )
    found = merged(method, base, deltas)
    factors = torch.tensor(weights, dtype=torch.float64)[:, None]
    for name in SHAPES:
        stack = torch.stack([delta[name].reshape(-1) for delta in deltas])
        n = stack.shape[1]
        keep = stack.abs().argsort(1, descending=True)[:, : max(1, int(0.3 * n))]
        kept = torch.zeros_like(stack).scatter(1, keep, stack.gather(1, keep)) if n else stack
        voters = kept * factors if weigh == "before" else kept
        sign = torch.where(voters.sum(0) >= 0, 1.0, -1.0)
        agree = voters * sign > 0
        total = torch.where(agree, kept * factors, 0).sum(0)
        divisor = (agree * factors).sum(0) if divide == "weights" else agree.sum(0)
        expected = total / torch.where(divisor == 0, 1, divisor)
        torch.testing.assert_close(found[name].reshape(-1), expected, rtol=1e-12, atol=1e-14)


def test_ties_exact_keeps_as_many_as_asked_whatever_is_equal(base):
    equal = {name: torch.ones(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    d = flat(equal).numel()
    for density in (0.1, 0.37, 1.0):
        found = merged(Ties(density=density, kept="exact"), base, [equal])
        assert int(flat(found).sum()) == max(1, int(density * d))
    # The paper's keeps all equal ones
    assert int(flat(merged(Ties(density=0.1), base, [equal])).sum()) == d


def test_ties_is_odd_and_gives_back_one_untrimmed_vector(base, deltas):
    minus = [{name: -tensor for name, tensor in delta.items()} for delta in deltas]
    found = merged(Ties(), base, minus)
    close({name: -tensor for name, tensor in found.items()}, merged(Ties(), base, deltas))
    close(merged(Ties(density=1), base, deltas[:1]), deltas[0], 0)


# DARE


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_dare_keeps_a_binomial_number_and_is_unbiased(density, seed, monkeypatch):
    monkeypatch.setattr(pieces, "ENTRIES", 50000)
    shape = {"w": (300, 400)}
    base, delta = draw(1, shape), draw(seed, shape)
    total = torch.zeros_like(delta["w"])
    for number in range(40):
        found = merged(Dare(density=density), base, [delta], seed=number)["w"]
        kept = found != 0
        torch.testing.assert_close(found[kept], delta["w"][kept] / density)
        spread = math.sqrt(delta["w"].numel() * density * (1 - density))
        assert abs(int(kept.sum()) - delta["w"].numel() * density) < 5 * spread
        total += found
    error = ((total / 40 - delta["w"]) / delta["w"]).double()
    assert error.mean().abs() < 5 * error.std() / math.sqrt(error.numel())
    assert error.square().mean() == pytest.approx((1 - density) / density / 40, rel=0.05)


def test_dare_variants(base, deltas):
    close(merged(Dare(density=1), base, deltas), merged(TaskArithmetic(), base, deltas), 0)
    close(
        merged(Dare(density=1, consensus="elect"), base, deltas),
        merged(Ties(density=1), base, deltas),
        0,
    )
    same_norm = merged(Dare(density=0.5, rescale="l1"), base, deltas[:1], seed=4)
    for name, delta in deltas[0].items():
        if delta.numel() > 1:
            assert float(same_norm[name].abs().sum()) == pytest.approx(
                float(delta.abs().sum()), rel=1e-12
            )
    raw = merged(Dare(density=0.5, rescale="none"), base, deltas[:1], seed=4)
    assert all(((raw[name] == 0) | (raw[name] == deltas[0][name])).all() for name in raw)


@pytest.mark.parametrize(
    "method", [Dare(), Dare(consensus="elect", rescale="l1"), Della(), Della(rescale="l1")]
)
def test_random_merges_do_not_depend_on_order_or_pieces(method, base, deltas, monkeypatch):
    def run() -> dict:
        return merged(method, base, deltas, seed=9)

    first = run()
    reordered = [dict(reversed(delta.items())) for delta in deltas]
    again = merged(method, dict(reversed(base.items())), reordered, seed=9)
    assert all(torch.equal(first[name], again[name]) for name in first)
    alone = merged(method, base, [{"kernel": delta["kernel"]} for delta in deltas], seed=9)
    assert torch.equal(first["kernel"], alone["kernel"])
    monkeypatch.setattr(pieces, "ENTRIES", 10**6)
    whole = run()
    assert all(torch.allclose(first[name], whole[name], rtol=1e-14, atol=0) for name in first)
    other = merged(method, base, deltas, seed=10)
    assert not torch.equal(first["kernel"], other["kernel"])


# Breadcrumbs


@pytest.mark.parametrize(
    ("density", "outliers"), [(0.143, 0.007), (0.5, 0.2), (0.9, 0.3), (1.0, 0.0)]
)
def test_breadcrumbs_keep_the_middle(base, deltas, density, outliers):
    found = merged(Breadcrumbs(density=density, outliers=outliers), base, deltas[:1])
    for name, delta in deltas[0].items():
        entries = delta.reshape(-1)
        n, stay = len(entries), int(density * len(entries))
        go = min(int(outliers * n), n - stay)
        places = entries.abs().argsort()[n - go - stay : n - go]
        expected = torch.zeros_like(entries)
        expected[places] = entries[places]
        assert torch.equal(found[name].reshape(-1), expected)


# DELLA


def test_della_keeps_large_entries_more_often(seed, monkeypatch):
    monkeypatch.setattr(pieces, "ENTRIES", 9000)
    shape = {"w": (500, 40)}
    base, delta = draw(1, shape), draw(seed, shape)
    ranks = delta["w"].abs().argsort(1).argsort(1)
    counts, total = torch.zeros(40), torch.zeros_like(delta["w"])
    for number in range(30):
        method = Della(density=0.6, spread=0.3, consensus="sum")
        found = merged(method, base, [delta], seed=number)["w"]
        counts += torch.zeros(500, 40).scatter(1, ranks, (found != 0).float()).mean(0) / 30
        total += found / 30
    expected = 0.3 + 0.6 * torch.arange(40) / 39
    assert (counts - expected).abs().max() < 6 * math.sqrt(0.25 / 15000)
    assert counts.mean() == pytest.approx(0.6, abs=0.005)
    error = (total - delta["w"]) / delta["w"]
    assert error.mean().abs() < 5 * error.std() / math.sqrt(error.numel())


def test_della_refuses_probabilities_beyond_one():
    with pytest.raises(ValueError, match="density"):
        Della(density=0.9, spread=0.15)
    assert Della(density=1.0, spread=0.0)


def test_half_precision_is_merged_in_float32_and_rounded_once(deltas, base):
    for dtype in (torch.float16, torch.bfloat16):
        half = [{name: tensor.to(dtype) for name, tensor in delta.items()} for delta in deltas]
        wide = [{name: tensor.float() for name, tensor in delta.items()} for delta in half]
        found, expected = merged(TaskArithmetic(), base, half), merged(TaskArithmetic(), base, wide)
        assert all(torch.equal(found[name], expected[name].to(dtype)) for name in found)


def test_weights_that_do_not_fit_are_refused(base, deltas):
    vectors = signed(deltas)
    with pytest.raises(ValueError, match="merge.weights holds 2 numbers, there are 4"):
        TaskArithmetic(weights=(1.0, 2.0)).compose(base, vectors, given_for(vectors))
    assert names_of(deltas) == list(SHAPES)
