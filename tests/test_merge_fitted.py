"""Fisher, RegMean and RegMean++ against their closed forms, on random statistics and on a tiny tower."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from merge_world import close, draw, expression, given_for, merged, signed
from test_curvature import Tower
from torch import Tensor

from taskvec.merge.average import Average
from taskvec.merge.fitted.fisher import Fisher
from taskvec.merge.fitted.regmean import RegMean
from taskvec.merge.fitted.regmean_pp import RegMeanPlusPlus
from taskvec.merge.fitted.solve import regression, shrunk
from taskvec.statistics.collect import collect
from taskvec.statistics.input_moments import InputMoments
from taskvec.statistics.values import Moment

SHAPES = {"l.weight": (6, 9), "l.bias": (6,), "other.weight": (4, 5), "scale": ()}


@pytest.fixture(params=[2, 31])
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def base(seed: int) -> dict:
    return draw(800 + seed, SHAPES)


@pytest.fixture
def deltas(seed: int) -> list[dict]:
    return [draw(seed + number, SHAPES) for number in range(3)]


def known(merge, deltas: list[dict], values: list) -> dict:
    """Return statistics under the needs that the merge declares."""
    scope = given_for(signed(deltas)).scope
    needs = merge.needs(scope)
    assert [need.at for need in needs] == [
        expression(f"t{number}") for number in range(len(deltas))
    ]
    assert all(
        need.on.use == "calibration" and not need.on.labels and need.on.split == "train"
        for need in needs
    )
    return dict(zip(needs, values, strict=True))


def mean(deltas: list[dict], name: str) -> Tensor:
    """Return the mean delta."""
    return sum(delta[name] for delta in deltas) / len(deltas)


# Fisher


@pytest.mark.parametrize("normalised", [True, False])
def test_fisher_is_the_formula(base, deltas, seed, normalised):
    fishers = [{name: tensor.abs() * 10.0**number for name, tensor in draw(seed + 9 * number, SHAPES).items()}
               for number in range(3)]  # fmt: skip
    merge = Fisher(normalised=normalised)
    found = merged(merge, base, deltas, known=known(merge, deltas, fishers))
    norms = [
        torch.cat([t.reshape(-1) for t in fisher.values()]).norm() + 1e-6 for fisher in fishers
    ]
    shares = [1 / norm / sum(1 / n for n in norms) for norm in norms] if normalised else [1.0] * 3
    for name in SHAPES:
        weights = [
            share * (fisher[name] + 1e-6) for share, fisher in zip(shares, fishers, strict=True)
        ]
        models = [base[name] + delta[name] for delta in deltas]
        expected = sum(w * m for w, m in zip(weights, models, strict=True)) / sum(weights)
        torch.testing.assert_close(base[name] + found[name], expected, rtol=0, atol=1e-10)
    same = known(merge, deltas, [fishers[0]] * 3)
    close(merged(merge, base, deltas, known=same), merged(Average(), base, deltas), 1e-10)
    if normalised:
        louder = [{name: 5.0 * tensor for name, tensor in fishers[0].items()}, *fishers[1:]]
        close(merged(merge, base, deltas, known=known(merge, deltas, louder)), found, 1e-5)


# RegMean


def moments(seed: int, rows: int, width: int = 9) -> Moment:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Moment(x.T @ x, x.sum(0), rows)


@pytest.mark.parametrize("off_diagonal", [0.9, 1.0, 0.0])
def test_regmean_minimises_the_difference_of_outputs(base, deltas, seed, off_diagonal):
    found_moments = [{"l": moments(seed + number, 40 + 7 * number)} for number in range(3)]
    merge = RegMean(off_diagonal=off_diagonal)
    found = merged(merge, base, deltas, known=known(merge, deltas, found_moments))
    weight = base["l.weight"] + found["l.weight"]
    models = [base["l.weight"] + delta["l.weight"] for delta in deltas]
    grams = []
    for own in found_moments:
        gram = own["l"].gram / own["l"].rows
        grams.append(torch.where(torch.eye(9).bool(), gram, off_diagonal * gram))
    slope = sum((weight - model) @ gram for model, gram in zip(models, grams, strict=True))
    assert slope.abs().max() < 1e-10
    if off_diagonal == 0:
        diagonals = [gram.diagonal() for gram in grams]
        expected = sum(d * m for d, m in zip(diagonals, models, strict=True)) / sum(diagonals)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-10)
    for name in ("l.bias", "other.weight", "scale"):
        torch.testing.assert_close(found[name], mean(deltas, name))
    same = known(merge, deltas, [found_moments[0]] * 3)
    close(merged(merge, base, deltas, known=same), merged(Average(), base, deltas), 1e-10)


def test_directions_without_data_are_averaged(deltas, seed):
    weights = [delta["l.weight"] for delta in deltas]
    basis, _ = torch.linalg.qr(draw(seed, {"w": (9, 9)})["w"])
    seen, unseen = basis[:, :5], basis[:, 5:]
    grams = []
    for number in range(3):
        x = draw(seed + number, {"x": (40, 5)})["x"] @ seen.T
        grams.append(x.T @ x)
    found = regression(weights, grams, sum(weights) / 3)
    torch.testing.assert_close(found @ unseen, sum(weights) / 3 @ unseen, rtol=0, atol=1e-8)
    slope = sum((found - weight) @ gram for weight, gram in zip(weights, grams, strict=True))
    assert slope.abs().max() < 1e-7
    dead = [shrunk(torch.diag(torch.tensor([1.0, 2.0, 0.0])), 0.9)] * 2
    two = [draw(n, {"w": (2, 3)})["w"] for n in (1, 2)]
    torch.testing.assert_close(
        regression(two, dead, sum(two) / 2), sum(two) / 2, rtol=0, atol=1e-12
    )


# RegMean++


class Rows(NamedTuple):
    """A view of some images."""

    inputs: Tensor
    head: None = None

    def take(self, rows) -> Tensor:
        return self.inputs[rows]

    def batches(self, size: int):
        yield from (slice(start, start + size) for start in range(0, len(self.inputs), size))


def test_regmean_pp_solves_each_block_on_what_the_merged_blocks_below_give(seed):
    tower = Tower()
    shapes = {name: tensor.shape for name, tensor in tower.parameters.items()}
    deltas = [{n: 0.3 * t for n, t in draw(seed + number, shapes).items()} for number in range(2)]
    images = [torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + n)) + n
              for n in range(2)]  # fmt: skip
    merge, vectors = RegMeanPlusPlus(off_diagonal=0.7), signed(deltas)
    given = given_for(vectors, model=tower)
    given.known = dict(zip(merge.needs(given.scope), map(Rows, images), strict=True))
    found = dict(merge.compose(tower.parameters, vectors, given).direction())
    for name in tower.parameters:
        if name.removesuffix(".weight") not in {layer.name for layer in tower.layers}:
            torch.testing.assert_close(found[name], mean(deltas, name), rtol=0, atol=1e-12)
    # In the upper block the inputs of attention are those of the merged lower block under each model's own norm-free
    # stream, so the regression can be checked with the merged weights below and each model's own layers in the block.
    blocks = sorted({layer.block for layer in tower.layers if layer.block is not None})
    for block in blocks:
        own = [layer.name for layer in tower.layers if layer.block == block]
        below = [
            layer.name for layer in tower.layers if layer.block is not None and layer.block < block
        ]
        averaged = {name: tower.parameters[name] + mean(deltas, name) for name in tower.parameters}
        grams: dict[str, list[Tensor]] = {name: [] for name in own}
        for delta, inputs in zip(deltas, images, strict=True):
            weights = dict(averaged)
            for name in below:
                weights[f"{name}.weight"] = (
                    tower.parameters[f"{name}.weight"] + found[f"{name}.weight"]
                )
            for name in own:
                for part in (f"{name}.weight", f"{name}.bias"):
                    weights[part] = tower.parameters[part] + delta[part]
            (seen,) = collect(
                tower, [inputs], [InputMoments(precision="float64")], parameters=weights
            )
            for name in own:
                grams[name].append(shrunk(seen[name].gram / seen[name].rows, 0.7))
        for name in own:
            slope = sum(
                (found[f"{name}.weight"] - delta[f"{name}.weight"]) @ gram
                for delta, gram in zip(deltas, grams[name], strict=True)
            )
            assert slope.norm() < 1e-4 * sum(gram.norm() for gram in grams[name])


def test_vectors_of_several_tasks_are_refused(base, deltas):
    vectors = signed(deltas)
    given = given_for(vectors[:2])
    with pytest.raises(ValueError, match="one vector for each task, not 3 vectors for 2 tasks"):
        RegMean().compose(base, vectors, given)
