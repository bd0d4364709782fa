"""Paired bootstrap intervals: exact means, normal theory for one seed, width from seeds, items found in the store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from world import FAST

from taskvec import cli
from taskvec.report.intervals import correct_items, paired_difference
from taskvec.runner import compose
from taskvec.runner.execute import execute


def masks(rng: np.random.Generator, rate: float, tasks: dict[str, int]) -> dict[str, np.ndarray]:
    return {task: rng.random(count) < rate for task, count in tasks.items()}


@pytest.mark.parametrize("seed", range(3))
def test_one_seed_one_task_agrees_with_normal_theory(seed: int):
    rng = np.random.default_rng(seed)
    first, second = masks(rng, 0.7, {"t": 800}), masks(rng, 0.6, {"t": 800})
    gaps = first["t"].astype(float) - second["t"]
    found = paired_difference([first], [second])
    low, high = stats.norm.interval(0.95, gaps.mean(), stats.sem(gaps))
    assert found.mean == pytest.approx(gaps.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)


def test_mean_is_over_tasks_then_seeds_whatever_their_sizes():
    rng = np.random.default_rng(0)
    sizes = {"small": 10, "large": 1000}
    firsts, seconds = ([masks(rng, rate, sizes) for _ in range(3)] for rate in (0.8, 0.5))
    expected = np.mean([[a[t].mean() - b[t].mean() for t in sizes] for a, b in zip(firsts, seconds, strict=True)])
    assert paired_difference(firsts, seconds).mean == pytest.approx(expected)


def test_a_model_does_not_differ_from_itself():
    model = [masks(np.random.default_rng(1), 0.5, {"t": 50})] * 2
    assert paired_difference(model, model) == (0, 0, 0)


def test_seeds_that_disagree_widen_the_interval():
    none, all_ = {"t": np.zeros(100, bool)}, {"t": np.ones(100, bool)}
    found = paired_difference([all_, none, all_, none], [none] * 4)
    assert found.mean == 0.5 and found.low < 0.05 and found.high > 0.95


def test_items_of_every_row_are_found(tiny: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "TASKVEC_INCLUDE", str(tiny))
    compose.register_all()
    for protocol in ("addition", "negation"):
        words = [*FAST, f"outputs={outputs}", f"protocol={protocol}", "protocol.grid=[0,0.5,1]"]
        result = execute(compose.resolve(compose.compose(words)), tuple(words)).result
        for row in result.rows:
            items = correct_items(result, outputs, row.row)
            assert {task: mask.mean() for task, mask in items.items()} == pytest.approx(row.accuracy)


def test_compare_pairs_runs_by_seed(tiny: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(os.environ, "TASKVEC_INCLUDE", str(tiny))
    compose.register_all()
    results = []
    for seed in (0, 1):
        for finetune in ("full", "linear_ft"):
            words = [*FAST, f"outputs={outputs}", f"seed={seed}", f"finetune={finetune}", "protocol.grid=[0,1]"]
            results.append(execute(compose.resolve(compose.compose(words)), tuple(words)).result)
    place = ["--outputs", str(outputs)]
    assert cli.main(["compare", "merged", "zero_shot", "--by", "finetune", "--where", "protocol=addition", *place]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 2
    for line in lines:
        chosen = [r for r in results if r.config["choices"]["finetune"] == line.split("|")[1].strip()]
        items = [[correct_items(r, outputs, row) for r in chosen] for row in ("merged", "zero_shot")]
        found = paired_difference(*items)
        assert f"{100 * found.mean:+.1f}" in line and f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]" in line
    assert cli.main(["compare", "merged@finetune=full", "merged@finetune=linear_ft", *place]) == 0
    assert "| 2 " in capsys.readouterr().out
    for words, reason in (
        (["merged", "zero_shot"], "are the same but for other keys"),
        (["merged@seed=7", "zero_shot", "--by", "finetune"], "no seed has both"),
        (["merged", "zero_shot", "--by", "finetne"], "did you mean 'finetune'"),
        (["merged@full", "zero_shot"], "is not of the form key=value"),
    ):
        assert cli.main(["compare", *words, *place]) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
