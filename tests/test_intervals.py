"""Paired bootstrap intervals: exact means, normal theory for one seed, width from seeds, items found in the store."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats
from sklearn.metrics import f1_score

from taskvec.errors import UserError
from taskvec.graph.result import Result
from taskvec.protocols.rows import Criterion, Metric, Row, metric
from taskvec.report import intervals
from taskvec.report.compare import Side, compare
from taskvec.report.intervals import paired_difference
from taskvec.report.outcomes import Documents, Judged, Means, outcomes
from taskvec.report.runs import Run, find_results

OLD = Path(__file__).resolve().parent / "fixtures" / "results_1"


def masks(rng: np.random.Generator, rate: float, tasks: dict[str, int]) -> dict[str, Means]:
    return {task: Means(task, rng.random(count) < rate) for task, count in tasks.items()}


# --- the bootstrap --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_one_seed_one_task_agrees_with_normal_theory(seed: int):
    rng = np.random.default_rng(seed)
    first, second = masks(rng, 0.7, {"t": 800}), masks(rng, 0.6, {"t": 800})
    gaps = first["t"].values.astype(float) - second["t"].values
    found = paired_difference([first], [second])
    low, high = stats.norm.interval(0.95, gaps.mean(), stats.sem(gaps))
    assert found.mean == pytest.approx(gaps.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)


def test_mean_is_over_tasks_then_seeds_whatever_their_sizes():
    rng = np.random.default_rng(0)
    sizes = {"small": 10, "large": 1000}
    firsts, seconds = ([masks(rng, rate, sizes) for _ in range(3)] for rate in (0.8, 0.5))
    gaps = [
        [a[t].values.mean() - b[t].values.mean() for t in sizes]
        for a, b in zip(firsts, seconds, strict=True)
    ]
    assert paired_difference(firsts, seconds).mean == pytest.approx(np.mean(gaps))


def test_a_model_does_not_differ_from_itself():
    model = [masks(np.random.default_rng(1), 0.5, {"t": 50})] * 2
    assert paired_difference(model, model) == (0, 0, 0)


def test_seeds_that_disagree_widen_the_interval():
    none, all_ = {"t": Means("t", np.zeros(100, bool))}, {"t": Means("t", np.ones(100, bool))}
    found = paired_difference([all_, none, all_, none], [none] * 4)
    assert found.mean == 0.5 and found.low < 0.05 and found.high > 0.95


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(4)
    first, second = masks(rng, 0.7, {"t": 90, "u": 40}), masks(rng, 0.5, {"t": 90, "u": 40})
    whole = paired_difference([first], [second], resamples=500)
    monkeypatch.setattr(intervals, "AT_ONCE", 700)
    assert paired_difference([first], [second], resamples=500) == whole


def test_the_same_items_are_drawn_for_all_models_that_are_measured_on_them():
    """Two negated models keep one control: what an item adds to the one and takes from the other has no spread."""
    values = np.random.default_rng(2).random(60)
    first = {"a": Means("control", values), "b": Means("control", -values)}
    second = {"a": Means("control", 0 * values), "b": Means("control", 0 * values)}
    assert paired_difference([first], [second]) == pytest.approx((0, 0, 0), abs=1e-12)


@pytest.mark.parametrize("seed", [3, 8])
def test_a_resample_scores_the_items_that_it_holds(seed: int):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 3, 40), rng.integers(0, 3, 40)
    documents = np.stack([rng.random(40) * 90, rng.integers(5, 30, 40)], axis=1)
    counts = rng.multinomial(40, np.full(40, 1 / 40), size=5)
    judged = Judged("t", "f1_macro", labels, predicted).scores(counts)
    perplexities = Documents("t", documents).scores(counts)
    for times, f1, perplexity in zip(counts, judged, perplexities, strict=True):
        items = [item for item, n in enumerate(times) for _ in range(n)]
        assert f1 == pytest.approx(f1_score(labels[items], predicted[items], average="macro"))
        nll, tokens = documents[items].sum(0)
        assert perplexity == pytest.approx(math.exp(nll / tokens))


# --- rows and their answers -----------------------------------------------------------------------------------------


def made(folder: Path, seed: int, *, tokens: float = 20.0, **settings) -> Run:
    """A run with an answer per row in the store, whose two rows are right on known items."""
    rng = np.random.default_rng(seed)
    rows = []
    for row, alpha, rate in (("merged", 0.5, 0.8), ("zero_shot", 0.0, 0.4)):
        right = rng.random(50) < rate
        texts = np.stack([rng.random(20) * 60, np.full(20, tokens)], axis=1)
        answer = f"{seed}{alpha}{len(settings)}".encode().hex().zfill(32)
        place = folder / "store" / "answer" / answer
        place.mkdir(parents=True, exist_ok=True)
        save_file(
            {f"correct/{alpha}/t": right, f"surprise/{alpha}/book": texts},
            place / "tensors.safetensors",
        )
        with np.errstate(all="ignore"):
            surprise = float(np.exp(texts[:, 0].sum() / texts[:, 1].sum()))
        metrics = {"accuracy": metric({"t": float(right.mean())})}
        metrics |= {"perplexity": Metric(mean=surprise, unit="perplexity", better="lower")}
        metrics |= {"length": Metric(mean=alpha + seed, unit="number", better="neither")}
        rows.append(Row(row=row, alpha=alpha, metrics=metrics, cells={"t": answer}))
    config = {"seed": seed, "suite": {"kind": "texts", "control": "book"}} | settings
    run_id = f"run-{seed}-{settings}"
    result = Result(
        run_id=run_id,
        fingerprint="f",
        config=config,
        rows=rows,
        criterion=Criterion(name="validation", value=0.0),
    )
    return Run(result, folder=folder / "runs" / run_id)


def lines(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_each_metric_differs_in_its_own_unit(tmp_path: Path):
    runs = [made(tmp_path, seed) for seed in (0, 1, 2)]
    accuracy, perplexity, length = lines(compare(runs, "merged", "zero_shot"))
    sides = [[outcomes(run, run.result.rows[row], "accuracy") for run in runs] for row in (0, 1)]
    found = paired_difference(*sides)
    expected = [
        f"{100 * found.mean:+.1f}",
        f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]",
        "points",
    ]
    assert accuracy == ["merged - zero_shot", "accuracy", "3", *expected]
    gaps = [
        run.result.rows[0].mean("perplexity") - run.result.rows[1].mean("perplexity")
        for run in runs
    ]
    assert perplexity[1] == "perplexity (lower is better)" and perplexity[-1] == "perplexity"
    assert perplexity[3] == f"{np.mean(gaps):+.2f}"
    assert length[1:] == ["length", "3", "+0.5000", "", ""], (
        "no outcome per test item, so no interval"
    )


def test_only_metrics_that_are_asked_for(tmp_path: Path):
    runs = [made(tmp_path, 0)]
    assert [
        line[1] for line in lines(compare(runs, "merged", "zero_shot", metrics=["length"]))
    ] == ["length"]
    with pytest.raises(UserError, match="unknown metric 'lenght'; did you mean 'length'"):
        compare(runs, "merged", "zero_shot", metrics=["lenght"])


def test_two_infinite_perplexities_have_no_difference(tmp_path: Path):
    runs = [made(tmp_path, 0, tokens=1e-3)]
    assert runs[0].result.rows[0].mean("perplexity") == math.inf
    (line,) = lines(compare(runs, "merged", "zero_shot", metrics=["perplexity"]))
    assert line[3] == "undefined"


def test_runs_pair_by_the_seed_that_tells_them_apart(tmp_path: Path):
    runs = [
        made(tmp_path, seed, merge={"kind": "dare", "seed": merge})
        for seed in (0, 1)
        for merge in (0, 1, 2)
    ]
    (line,) = lines(compare(runs, "merged", "zero_shot", metrics=["accuracy"]))
    assert line[2] == "6"


def test_groups_and_conditions(tmp_path: Path):
    runs = [
        made(tmp_path, seed, finetune={"kind": kind})
        for seed in (0, 1)
        for kind in ("full", "linear_ft")
    ]
    grouped = lines(compare(runs, "merged", "zero_shot", ["finetune"], metrics=["accuracy"]))
    assert [line[0] for line in grouped] == ["full", "linear_ft"] and {
        line[3] for line in grouped
    } == {"2"}
    for words, reason in (
        (("merged", "zero_shot"), "are the same but for other keys"),
        (("merged@seed=7", "zero_shot", ["finetune"]), "no run has seed=7"),
        (("merged", "zero_shot", ["finetne"]), "did you mean 'finetune'"),
        (("merged", "zero_shot", [], {"seed": "9"}), "no seed has both"),
        (("mergd", "zero_shot", ["finetune"]), "no run has a row 'mergd'; did you mean 'merged'"),
    ):
        with pytest.raises(UserError, match=reason):
            compare(runs, *words)
    with pytest.raises(UserError, match="is not of the form key=value"):
        Side.parse("merged@full")


def test_an_answer_that_is_gone_is_named(tmp_path: Path):
    run = made(tmp_path, 0)
    shutil.rmtree(tmp_path / "store" / "answer")
    with pytest.raises(UserError, match="is not there; run the command of run-0"):
        compare([run], "merged", "zero_shot")
    with pytest.raises(UserError, match="not at hand"):
        compare([Run(run.result)], "merged", "zero_shot")


def test_items_of_every_row_of_old_results_are_found():
    """Their means are the numbers that the results report, whatever metric judges a task."""
    seen = set()
    for run in find_results([OLD]):
        for row in run.result.rows:
            stored = {
                stage.fingerprint
                for stage in run.result.stages
                if (OLD / "store/cell" / stage.fingerprint).is_dir()
            }
            if not row.cells or not stored.issuperset(row.cells.values()):
                continue
            for name in row.metrics:
                found = outcomes(run, row, name)
                if found:
                    seen |= {(name, type(outcome)) for outcome in found.values()}
                    mean = np.mean([outcome.score() for outcome in found.values()])
                    assert mean == pytest.approx(row.mean(name)), (run.result.run_id, row.row, name)
    assert seen == {("accuracy", Means), ("accuracy", Judged), ("perplexity", Documents)}
