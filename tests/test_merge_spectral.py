"""Merges of matrices against straightforward float64 SVDs, and the identities of each (spec merging 2)."""

from __future__ import annotations

import pytest
import torch
from merge_world import close, draw, given_for, merged, signed

from taskvec.merge.sparse.ties import Ties
from taskvec.merge.spectral.cart import Cart
from taskvec.merge.spectral.interference import quadratic
from taskvec.merge.spectral.iso_c import IsoC
from taskvec.merge.spectral.iso_cts import IsoCts
from taskvec.merge.spectral.knots import Knots
from taskvec.merge.spectral.linalg import joined, leading_svd, polar
from taskvec.merge.spectral.tsv import Tsv
from taskvec.merge.spectral.wudi import Wudi
from taskvec.merge.task_arithmetic import TaskArithmetic
from taskvec.vectors import LowRank, TaskVector

SHAPES = {
    "wide.weight": (14, 33),
    "tall.weight": (31, 12),
    "square.weight": (20, 20),
    "b": (14,),
    "conv": (4, 3, 2, 2),
}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2]


@pytest.fixture(params=[5, 77])
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def base(seed: int) -> dict:
    return draw(900 + seed, SHAPES)


@pytest.fixture
def deltas(seed: int) -> list[dict]:
    return [draw(seed + number, SHAPES) for number in range(4)]


def svd(matrix):
    return torch.linalg.svd(matrix, full_matrices=False)


def plain_polar(matrix):
    left, _, right = svd(matrix)
    return left @ right


def the_same(found: dict, expected: dict, deltas: list[dict], tolerance: float = 1e-9) -> None:
    """Assert the expected matrices, and the mean of everything else."""
    others = {
        name: sum(delta[name] for delta in deltas) / len(deltas)
        for name in SHAPES
        if name not in expected
    }
    close(found, expected | others, tolerance)


# Linear algebra


def test_gram_svd_and_polar_equal_lapack(deltas):
    for name in MATRICES:
        matrix = deltas[0][name]
        left, values, right = leading_svd(matrix)
        torch.testing.assert_close(values, torch.linalg.svdvals(matrix), rtol=1e-10, atol=0)
        torch.testing.assert_close((left * values) @ right, matrix, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            polar(matrix, 1e-6).factor, plain_polar(matrix), rtol=0, atol=1e-9
        )
        top = leading_svd(matrix, 5)
        reference = svd(matrix)
        expected = (reference[0][:, :5] * reference[1][:5]) @ reference[2][:5]
        torch.testing.assert_close((top.left * top.values) @ top.right, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-9])
def test_small_singular_values_are_exact_or_left_out(seed, smallest):
    left, _ = torch.linalg.qr(draw(seed, {"w": (25, 10)})["w"])
    right, _ = torch.linalg.qr(draw(seed + 1, {"w": (30, 10)})["w"])
    values = torch.logspace(0, torch.tensor(smallest).log10().item(), 10, dtype=torch.float64)
    matrix = (left * values) @ right.T
    found = leading_svd(matrix)
    torch.testing.assert_close(found.values, values, rtol=1e-6, atol=0)
    torch.testing.assert_close(joined([found]), matrix, rtol=0, atol=1e-12)
    single = leading_svd(matrix.float())  # what float32 cannot tell from zero counts as zero
    assert len(single.values) == int((values > 1.2e-6).sum())
    assert leading_svd(torch.zeros(3, 4)).values.numel() == 0
    assert (polar(torch.zeros(3, 4).double(), 1e-6).factor == 0).all()


# TSV


def test_tsv_is_the_formula(base, deltas):
    expected = {}
    for name in MATRICES:
        rank = min(SHAPES[name]) // 4
        parts = [svd(delta[name]) for delta in deltas]
        left = torch.cat([part[0][:, :rank] for part in parts], 1)
        values = torch.cat([part[1][:rank] for part in parts])
        right = torch.cat([part[2][:rank] for part in parts], 0)
        expected[name] = (plain_polar(left) * values) @ plain_polar(right)
    the_same(merged(Tsv(), base, deltas), expected, deltas)
    single = [{name: tensor.float() for name, tensor in delta.items()} for delta in deltas]
    the_same(merged(Tsv(), base, single), expected, single, 1e-6)


def test_tsv_identities(base, deltas):
    close(merged(Tsv(), base, deltas[:1]), deltas[0], 1e-10)
    left, _ = torch.linalg.qr(draw(1, {"w": (20, 20)})["w"])
    right, _ = torch.linalg.qr(draw(2, {"w": (20, 20)})["w"])
    apart = [{"square.weight": left[:, rows] @ right[rows]} for rows in (slice(0, 8), slice(8, 13))]
    close(merged(Tsv(), base, apart), merged(TaskArithmetic(), base, apart), 1e-9)
    # 16 vectors, 12 and 14 singular values
    many = deltas + [draw(50 + number, SHAPES) for number in range(12)]
    assert merged(Tsv(), base, many)["tall.weight"].abs().max() > 0
    assert merged(Tsv(faithful=True), base, many)["tall.weight"].abs().max() == 0


def test_other_tensors_and_excluded_matrices(base, deltas):
    assert set(merged(Tsv(others="none"), base, deltas)) == set(MATRICES)
    found = merged(Tsv(others="sum", exclude=("wide*",)), base, deltas)
    total = merged(TaskArithmetic(), base, deltas)
    close(
        {name: found[name] for name in ("b", "conv", "wide.weight")},
        {n: total[n] for n in ("b", "conv", "wide.weight")},
    )


# Iso


def test_iso_c_is_the_formula_and_keeps_the_nuclear_norm(base, deltas):
    expected = {}
    for name in MATRICES:
        left, values, right = svd(sum(delta[name] for delta in deltas))
        expected[name] = values.mean() * left @ right
    found = merged(IsoC(), base, deltas)
    the_same(found, expected, deltas)
    for name in MATRICES:
        spectrum = torch.linalg.svdvals(found[name])
        assert spectrum.max() - spectrum.min() < 1e-9 * spectrum.max()
        total = torch.linalg.svdvals(sum(delta[name] for delta in deltas)).sum()
        assert float(spectrum.sum()) == pytest.approx(float(total), rel=1e-9)
    close({n: 4 * t for n, t in merged(IsoC(of="mean"), base, deltas).items() if n in MATRICES},
          {n: found[n] for n in MATRICES})  # fmt: skip


def test_iso_of_low_rank_vectors_stays_low_rank(base):
    thin = [draw(n, {"up": (20, 3), "down": (3, 20)}) for n in (1, 2)]
    deltas = [{"square.weight": (pair["up"] @ pair["down"]).float()} for pair in thin]
    spectrum = torch.linalg.svdvals(merged(IsoC(), base, deltas)["square.weight"])
    assert int((spectrum > 1e-4 * spectrum[0]).sum()) == 6


@pytest.mark.parametrize("common", [0.8, 0.5, 0.0, 1.0])
def test_iso_cts_is_the_formula(base, deltas, common):
    expected = {}
    for name in MATRICES:
        size = min(SHAPES[name])
        own = min(round((size - int(size * common)) / 4), size // 4)
        shared = size - own * 4
        left, values, right = svd(sum(delta[name] for delta in deltas))
        lefts, kept, rights = [], [], []
        for delta in deltas:
            rest = delta[name] - left[:, :shared] @ left[:, :shared].T @ delta[name]
            part = svd(rest)
            lefts.append(part[0][:, :own])
            kept.append(part[1][:own])
            rights.append(part[2][:own])
        lefts, kept, rights = (
            [*lefts, left[:, :shared]],
            [*kept, values[:shared]],
            [*rights, right[:shared]],
        )
        mean = torch.cat(kept).mean()
        expected[name] = mean * plain_polar(torch.cat(lefts, 1)) @ plain_polar(torch.cat(rights, 0))
    found = merged(IsoCts(common=common), base, deltas)
    the_same(found, expected, deltas, 1e-8)
    if common == 1:
        close(found, merged(IsoC(), base, deltas), 1e-9)


# CART


def test_cart_moves_around_the_average(base, deltas):
    vectors = signed(deltas)
    composition = Cart(rank=0.2).compose(base, vectors, given_for(vectors))
    mean = {name: sum(delta[name] for delta in deltas) / 4 for name in SHAPES}
    close(composition.parameters(0.0), {name: base[name] + mean[name] for name in SHAPES})
    found = composition.parameters(1.7)
    for name in MATRICES:
        rank = max(1, round(0.2 * min(SHAPES[name])))
        total = 0
        for delta in deltas:
            left, values, right = svd(delta[name] - mean[name])
            total = total + (left[:, :rank] * values[:rank]) @ right[:rank]
        torch.testing.assert_close(
            found[name], base[name] + mean[name] + 1.7 * total, rtol=0, atol=1e-9
        )
    tensors, meta = composition.pack()
    close(Cart().restore(base, tensors, meta).parameters(1.7), found)
    one = Cart(rank=1.0).compose(base, vectors[:1], given_for(vectors[:1]))
    close(one.parameters(2.0), {name: base[name] + deltas[0][name] for name in SHAPES}, 1e-9)


# WUDI


def test_wudi_closed_form_is_stationary_and_keeps_what_does_not_interfere(base, deltas):
    found = merged(Wudi(solver="closed"), base, deltas)
    for name in MATRICES:
        problem = quadratic([delta[name] for delta in deltas])
        residual = found[name] @ problem.curvature - problem.target
        assert residual.norm() < 1e-6 * problem.target.norm()
        loss = sum(
            ((found[name] - d[name]) @ d[name].T).square().sum() / d[name].square().sum()
            for d in deltas
        )
        x = found[name].clone().requires_grad_()
        total = sum(
            ((x - d[name]) @ d[name].T).square().sum() / d[name].square().sum() for d in deltas
        )
        (slope,) = torch.autograd.grad(total, x)
        torch.testing.assert_close(total.detach(), loss)
        torch.testing.assert_close(slope, 2 * residual, rtol=0, atol=1e-9)
    the_same(
        {name: found[name] for name in SHAPES}, {name: found[name] for name in MATRICES}, deltas
    )
    right, _ = torch.linalg.qr(draw(2, {"w": (20, 20)})["w"])
    apart = [
        {"square.weight": draw(n, {"w": (20, 6)})["w"] @ right[6 * n : 6 * n + 6]} for n in range(3)
    ]
    total = merged(TaskArithmetic(), base, apart)
    close(merged(Wudi(solver="closed"), base, apart), total, 1e-6)
    close(merged(Wudi(), base, apart), total, 1e-6)
    close(merged(Wudi(solver="closed"), base, deltas[:1]), deltas[0], 1e-6)
    close(merged(Wudi(), base, deltas[:1]), deltas[0], 1e-9)


def test_wudi_descent_is_adam_on_the_loss(base, deltas):
    found = merged(Wudi(steps=25, lr=1e-2), base, deltas)
    for name in MATRICES:
        x = sum(delta[name] for delta in deltas).clone().requires_grad_()
        optimiser = torch.optim.Adam([x], lr=1e-2)
        for _ in range(25):
            optimiser.zero_grad()
            sum(
                ((x - d[name]) @ d[name].T).square().sum() / d[name].square().sum() for d in deltas
            ).backward()
            optimiser.step()
        torch.testing.assert_close(found[name], x.detach(), rtol=0, atol=1e-9)


# KnOTS


def knots_ties_reference(deltas: list[dict], names: list[str], density: float) -> dict:
    """KnOTS-TIES on flat copies: stacked SVD of each layer, TIES over all layers' blocks."""
    lefts, rows = {}, [[] for _ in deltas]
    for name in names:
        left, values, right = svd(torch.cat([delta[name] for delta in deltas], 1))
        lefts[name] = left
        for row, block in zip(rows, (values[:, None] * right).chunk(len(deltas), 1), strict=True):
            row.append(block)
    stack = torch.stack([torch.cat([block.reshape(-1) for block in row]) for row in rows])
    d = stack.shape[1]
    thresholds = stack.abs().kthvalue(d - int(d * density), dim=1, keepdim=True).values
    kept = torch.where(stack.abs() >= thresholds, stack, 0)
    chosen = torch.where(kept * kept.sum(0).sign() > 0, kept, 0)
    result = chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)
    parts = result.split([block.numel() for block in rows[0]])
    return {
        n: lefts[n] @ part.view(b.shape) for n, part, b in zip(names, parts, rows[0], strict=True)
    }


def test_knots_is_the_formula(base, deltas):
    only = [{name: delta[name] for name in MATRICES} for delta in deltas]
    close(merged(Knots(), base, only), knots_ties_reference(only, MATRICES, 0.2), 1e-6)
    plain = merged(Knots(inner="task_arithmetic"), base, deltas)
    close(plain, merged(TaskArithmetic(), base, deltas), 1e-6)
    unscaled = merged(Knots(inner="task_arithmetic", scaled=False), base, deltas)
    close(unscaled, merged(TaskArithmetic(), base, deltas), 1e-6)


def test_knots_takes_a_bias_as_a_column():
    base = draw(3, {"l.weight": (8, 5), "l.bias": (8,)})
    deltas = [draw(n, {"l.weight": (8, 5), "l.bias": (8,)}) for n in (4, 5)]
    appended = [{"l.weight": torch.cat([d["l.weight"], d["l.bias"][:, None]], 1)} for d in deltas]
    wide_base = {"l.weight": torch.zeros(8, 6, dtype=torch.float64)}
    expected = merged(Knots(), wide_base, appended)["l.weight"]
    found = merged(Knots(), base, deltas)
    close(found, {"l.weight": expected[:, :5], "l.bias": expected[:, 5]}, 1e-6)


def test_knots_of_factors_equals_knots_of_products(base, seed):
    def factors(number: int) -> dict:
        drawn = draw(seed + number, {"up": (20, 3 + number), "down": (3 + number, 20)})
        return {"square.weight": LowRank(drawn["up"], drawn["down"], 0.5)}

    vectors = [TaskVector({}, factors=factors(number)) for number in range(3)]
    products = signed([dict(vector) for vector in vectors], [1.0, -1.0, 1.0])
    kept = [old._replace(vector=vector) for old, vector in zip(products, vectors, strict=True)]
    found = Knots().compose(base, kept, given_for(kept)).direction()
    close(dict(found), dict(Knots().compose(base, products, given_for(products)).direction()), 1e-6)


# Factors


def test_factors_are_merged_with_roots_of_weights_as_peft_does(base, seed):
    names = ("square.weight", "wide.weight")
    factors = []
    for number in range(3):
        own = {}
        for name in names:
            rows, columns = SHAPES[name]
            drawn = draw(seed + number, {"up": (rows, 4), "down": (4, columns)})
            own[name] = LowRank(drawn["up"], drawn["down"], 0.5)
        factors.append(own)
    vectors = signed([{}] * 3, [1.0, 1.0, -1.0])
    vectors = [
        old._replace(vector=TaskVector({}, factors=own))
        for old, own in zip(vectors, factors, strict=True)
    ]
    weights = (1.0, 2.0, 0.5)
    found = (
        TaskArithmetic(of="factors", weights=weights)
        .compose(base, vectors, given_for(vectors))
        .direction()
    )
    for name in names:
        scales = [(0.5 * weight) ** 0.5 for weight in weights]
        parts = [own[name] for own in factors]
        up = scales[0] * parts[0].up + scales[1] * parts[1].up - scales[2] * parts[2].up
        down = sum(scale * part.down for scale, part in zip(scales, parts, strict=True))
        torch.testing.assert_close(found[name], up @ down, rtol=0, atol=1e-10)
    one = (
        Ties(of="factors", density=1.0)
        .compose(base, vectors[:1], given_for(vectors[:1]))
        .direction()
    )
    close(dict(one), {name: factors[0][name].delta() for name in names}, 1e-12)
    dense = signed([{"square.weight": draw(1, SHAPES)["square.weight"]}])
    with pytest.raises(ValueError, match="t0 holds square.weight as a whole"):
        TaskArithmetic(of="factors").compose(base, dense, given_for(dense))
    smaller = {"square.weight": LowRank(torch.ones(20, 2).double(), torch.ones(2, 20).double())}
    uneven = [vectors[0], vectors[1]._replace(vector=TaskVector({}, factors=smaller))]
    with pytest.raises(ValueError, match="the ranks of square.weight/up differ"):
        TaskArithmetic(of="factors").compose(base, uneven, given_for(uneven))
