"""PAVE's mathematics against independent references in float64, on fresh random layers (spec section 3)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import configs

from taskvec.errors import UserError
from taskvec.transform.subspace import linalg
from taskvec.transform.subspace.faithful import damped, purified
from taskvec.transform.subspace.low_end import leading, low_end
from taskvec.transform.subspace.projection import prune, without
from taskvec.transform.subspace.ranks import allocate, greedy, rounded_rank

SHAPES = [(12, 20), (20, 12), (16, 16)]


def layer(outputs: int, inputs: int, rows: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight and the second moment of input rows whose channels differ in scale and mean."""
    scales = torch.logspace(-1, 1, inputs, dtype=torch.float64)
    x = torch.randn(rows, inputs, dtype=torch.float64) * scales + torch.randn(inputs)
    return torch.randn(outputs, inputs, dtype=torch.float64), x.mT @ x / rows


def explicit(weight: torch.Tensor, moment: torch.Tensor, rank: int) -> torch.Tensor:
    """Return SVD_r(W C) C^-1, the definition."""
    left, values, right = torch.linalg.svd(weight @ moment, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank] @ torch.linalg.inv(moment)


def kept(weight: torch.Tensor, moment: torch.Tensor, rank: int, **options: object) -> torch.Tensor:
    return without(weight, weight, prune(weight, moment, rank, **options).directions)


def removed(weight: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    return weight - without(weight, weight, directions)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 5, 11, 12])
def test_projection_is_the_truncated_product_times_the_inverse(shape, rank):
    weight, moment = layer(*shape)
    found = kept(weight, moment, rank)
    torch.testing.assert_close(found, explicit(weight, moment, rank), rtol=0, atol=1e-6)
    damped_moment = moment + 0.3 * torch.eye(shape[1], dtype=torch.float64)
    torch.testing.assert_close(
        kept(weight, moment, rank, damping=0.3),
        explicit(weight, damped_moment, rank),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_ratio_one_scale_plain_covariance_and_repetition(shape):
    weight, moment = layer(*shape)
    full = min(shape)
    assert torch.equal(kept(weight, moment, full), weight)
    torch.testing.assert_close(
        kept(weight, 70 * moment, 7), kept(weight, moment, 7), rtol=0, atol=1e-6
    )
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    truncated = (left[:, :7] * values[:7]) @ right[:7]
    plain = 2 * torch.eye(shape[1], dtype=torch.float64)
    torch.testing.assert_close(kept(weight, plain, 7), truncated)
    once = kept(weight, moment, 7)
    torch.testing.assert_close(
        explicit(once, moment, 7), once, rtol=0, atol=1e-6
    )  # the layer has rank 7 now, so that the definition may be applied to it again
    assert torch.linalg.matrix_rank(once, rtol=1e-9) == 7


@pytest.mark.parametrize("shape", SHAPES)
def test_error_and_energy_are_the_discarded_spectrum(shape):
    weight, moment = layer(*shape)
    spectrum = torch.linalg.svdvals(weight @ moment)
    pruned = prune(weight, moment, 6)
    difference = removed(weight, pruned.directions) @ moment
    torch.testing.assert_close(difference.square().sum(), spectrum[6:].square().sum())
    torch.testing.assert_close(torch.linalg.matrix_norm(difference, 2), spectrum[6])
    assert pruned.energy == pytest.approx(
        float(spectrum[6:].square().sum() / spectrum.square().sum())
    )
    energies = [prune(weight, moment, rank).energy for rank in range(min(shape) + 1)]
    assert energies == sorted(energies, reverse=True)
    assert energies[0] == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_root_whitening_is_the_best_for_the_outputs(shape):
    weight, moment = layer(*shape)
    by_root = prune(weight, moment, 6, whitening="sqrt")
    by_covariance = prune(weight, moment, 6)
    lower = torch.linalg.cholesky(moment)
    spectrum = torch.linalg.svdvals(weight @ lower)
    assert by_root.error == pytest.approx(
        float(spectrum[6:].square().sum() / spectrum.square().sum())
    )
    assert by_root.error <= by_covariance.error
    # The discarded spectrum of W C is not the outputs' error
    assert by_covariance.error > 1.01 * by_covariance.energy
    left, _, _ = torch.linalg.svd(weight @ lower, full_matrices=False)
    expected = left[:, 6:] @ left[:, 6:].mT @ weight
    torch.testing.assert_close(removed(weight, by_root.directions), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(48, 48), (24, 48), (48, 24)])
def test_float64_holds_where_float32_loses_the_small_directions(shape):
    weight, moment = layer(*shape)
    outliers = 1e4 * torch.ones(4, 4, dtype=torch.float64)
    moment[:4, :4] += outliers
    rank = min(shape) - 2
    single = torch.linalg.svd(weight.float() @ moment.float(), full_matrices=False)
    left, _, _ = torch.linalg.svd(weight @ moment, full_matrices=False)
    truth = left[:, rank:] @ left[:, rank:].mT @ weight
    found = removed(weight, prune(weight, moment, rank).directions)
    assert (found - truth).norm() < 1e-6 * truth.norm()
    in_single = single.U[:, rank:].double()
    assert (removed(weight, in_single) - truth).norm() > 100 * (found - truth).norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("whitening", ["cov", "sqrt"])
def test_torch_alone_which_a_gpu_uses_finds_the_same(shape, whitening, monkeypatch):
    weight, moment = layer(*shape)
    moment[:3, :3] += 1e6  # a direction that is taken out
    here = prune(weight, moment, 9, damping=0.1, whitening=whitening)
    monkeypatch.setattr(linalg, "_is_for_blas", lambda tensor: False)
    there = prune(weight, moment, 9, damping=0.1, whitening=whitening)
    assert (there.energy, there.error) == pytest.approx((here.energy, here.error))
    kept_there = without(weight, weight, there.directions)
    torch.testing.assert_close(kept_there, without(weight, weight, here.directions))


@pytest.mark.parametrize("large", [[], [1e2], [1e6], [1e7, 1e5, 1e3], [1e6] * 6, [1e8] * 26])
def test_low_end_is_that_of_an_svd_whatever_stands_above_it(large):
    left, values, right = torch.linalg.svd(torch.randn(30, 50, dtype=torch.float64), False)
    values[: len(large)] = torch.tensor(large, dtype=torch.float64)
    matrix = (left * values) @ right
    low = low_end(matrix.clone(), 4)
    torch.testing.assert_close(low.values, values[-4:].flip(0), rtol=1e-6, atol=0)
    expected = left[:, -4:] @ left[:, -4:].mT
    found = low.directions @ low.directions.mT
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_low_end_takes_out_what_dominates_and_leaves_no_direction_twice():
    tower = torch.randn(30, 50, dtype=torch.float64)
    tower[:, :3] += torch.tensor([1e6, 1e4, 1e4])
    assert leading(tower, 20).shape == (30, 1)  # three columns, one direction
    assert leading(torch.eye(30, dtype=torch.float64), 20).shape[1] <= 4
    assert leading(tower, 0).shape == (30, 0)
    most = low_end(tower.clone(), 29)
    torch.testing.assert_close(most.values, torch.linalg.svdvals(tower).flip(0)[:29])


@pytest.mark.parametrize("whitening", ["cov", "sqrt"])
def test_a_tall_layer_without_full_rank(whitening):
    _, moment = layer(20, 12)
    weight = torch.randn(20, 5, dtype=torch.float64) @ torch.randn(5, 12, dtype=torch.float64)
    pruned = prune(weight, moment, 3, whitening=whitening)
    factor = torch.linalg.cholesky(moment) if whitening == "sqrt" else moment
    left, values, _ = torch.linalg.svd(weight @ factor)
    kept_outputs = left[:, :3] @ left[:, :3].mT @ weight
    found = without(weight, weight, pruned.directions)
    torch.testing.assert_close(found, kept_outputs, rtol=0, atol=1e-6)
    energies = values.square()
    assert pruned.energy == pytest.approx(float(energies[3:].sum() / energies.sum()))
    assert pruned.determined
    assert not prune(weight, moment, 8, whitening=whitening).determined


def test_a_cut_in_the_null_space_is_reported():
    weight = torch.randn(10, 12, dtype=torch.float64)
    rows = torch.randn(4, 12, dtype=torch.float64)
    moment = rows.mT @ rows / 4
    assert prune(weight, moment, 4).determined
    # Six directions carry nothing, and two of them are to go
    assert not prune(weight, moment, 8).determined
    assert prune(weight, moment, 8, damping=0.1).determined
    with pytest.raises(ValueError, match="does not fit"):
        prune(weight, moment[:5, :5], 4)


def test_faithful_route_agrees_on_well_conditioned_layers_and_doubles_its_damping():
    weight, moment = layer(20, 24)
    moment = moment / moment.diagonal().mean() + torch.eye(24)
    found = damped([moment], start=0.1, tolerance=5e-2)
    assert found.epsilon == 0.1
    exact = kept(weight, moment, 15, damping=0.1)
    assert (purified(weight, found, 15) - exact).norm() < 3e-6 * exact.norm()
    row = torch.randn(1, 24, dtype=torch.float64)
    # Of rank one, and yet moderate
    assert damped([row.mT @ row], start=0.1, tolerance=5e-2).epsilon == 0.1
    turns = math.log2(damped([1e6 * row.mT @ row, moment], start=0.1, tolerance=1e-2).epsilon / 0.1)
    assert turns > 0
    assert turns == pytest.approx(round(turns))
    with pytest.raises(UserError, match="not finite"):
        damped([moment * torch.nan], start=0.1, tolerance=5e-2)


def brute_force(spectra: list[torch.Tensor], total: int) -> float:
    """Return the least sum of squares that can be dropped while ``total`` values stay."""
    full = len(spectra[0])
    relative = [values / values[0] for values in spectra]
    choices = itertools.product(range(full + 1), repeat=len(spectra))
    allowed = [ranks for ranks in choices if sum(ranks) == total]
    return min(
        sum(float(v[r:].square().sum()) for v, r in zip(relative, ranks, strict=True))
        for ranks in allowed
    )


@pytest.mark.parametrize(
    ("models", "full", "ratio"), [(2, 6, 0.7), (3, 8, 0.8), (3, 5, 0.75), (1, 8, 0.875)]
)
def test_greedy_ranks_against_brute_force(models, full, ratio):
    spectra = [torch.rand(full).sort(descending=True).values + 0.1 for _ in range(models)]
    ranks = greedy(spectra, ratio)
    total = math.ceil(ratio * models * full) - 1
    floor = full - round(1.5 * (full - round(full * ratio)))
    assert all(floor <= rank <= full for rank in ranks)
    if min(ranks) > floor:  # the cap does not bind
        assert sum(ranks) == total
        relative = [values / values[0] for values in spectra]
        lost = sum(float(v[r:].square().sum()) for v, r in zip(relative, ranks, strict=True))
        assert lost == pytest.approx(brute_force(spectra, total))


def test_ties_go_to_the_first_model_and_the_cap_holds():
    equal = torch.linspace(1, 0.1, 10)
    ranks = greedy([equal] * 3, 0.75)
    assert ranks == sorted(ranks)
    assert max(ranks) - min(ranks) <= 1
    steep = torch.logspace(0, -6, 16)
    flat = torch.ones(16)
    assert greedy([flat, steep], 0.75)[1] == 16 - 6  # round(1.5 * 4) at most
    assert greedy([flat, steep], 1.0) == [16, 16]


def test_allocations():
    spectra = {
        "a": {"one": torch.logspace(0, -3, 16), "two": torch.logspace(0, -1, 8)},
        "b": {"one": torch.logspace(0, -1, 16), "two": torch.logspace(0, -4, 8)},
    }
    by_layer = allocate(spectra, 0.75, "layer")
    by_model = allocate(spectra, 0.75, "model")
    for layer_name in ("one", "two"):
        both = [spectra[task][layer_name] for task in ("a", "b")]
        assert [by_layer[task][layer_name] for task in ("a", "b")] == greedy(both, 0.75)
    share = sum(by_layer["a"].values()) / 24
    assert by_model["a"] == {"one": rounded_rank(16, share), "two": rounded_rank(8, share)}
    assert allocate(spectra, 0.75, "uniform")["b"] == {"one": 12, "two": 6}
    assert rounded_rank(25, 0.5) == 12  # 12.5 goes to the even number


# The authors' settings (spec 1.7): ratio, merge and its coefficient, who takes part


GLUE_BUT_COLA = ("sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
GLUE = {
    ("roberta_base", "emr"): (0.875, 1.0, ("sst2", "qqp", "mnli")),
    ("roberta_base", "ties"): (0.984375, 0.9, None),
    ("roberta_base", "task_arithmetic"): (0.96875, 0.3, GLUE_BUT_COLA),
    ("deberta_v3_base", "emr"): (0.875, 1.0, ("sst2",)),
    ("deberta_v3_base", "ties"): (0.984375, 0.5, None),
    ("deberta_v3_base", "task_arithmetic"): (0.96875, 0.1, None),
}


def test_the_authors_settings_on_glue():
    runs = configs("pave/authors_glue")
    assert len(runs) == len(GLUE)
    for run in runs:
        pave = run.transform["pave"]
        ratio, alpha, participants = GLUE[run.choices["backbone"], run.merge.kind]
        assert (pave.ratio, run.protocol.grid) == (ratio, (alpha,))
        assert pave.participants == participants
        assert pave.faithful
        run.protocol.check(run.suite)
        assert len(run.suite.tasks) == 8
    (ties, *_) = [run.merge for run in runs if run.merge.kind == "ties"]
    assert ties.density == 0.2


def test_the_authors_settings_on_images_and_for_llama():
    for run in configs("pave/authors_vision"):
        pave = run.transform["pave"]
        assert (pave.ratio, run.merge.kind) == (0.984375, "emr")
        assert pave.roles == ("mlp.fc", "mlp.proj")
    (llama,) = configs("pave/authors_llama")
    pave = llama.transform["pave"]
    assert round(4096 * pave.ratio) == 4089
    assert (pave.damping, pave.tolerance, pave.count_base) == (0.01, 0.01, False)
