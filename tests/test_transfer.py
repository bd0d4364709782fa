"""The protocol transfer on the tiny worlds: carried vectors, their gains, and fine-tuning that starts from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matrix_world
import pytest
import torch

from taskvec.cli import main
from taskvec.graph.plan import Plan
from taskvec.graph.result import Result, read_result
from taskvec.graph.store import Store
from taskvec.graph.workspace import Workspace
from taskvec.needs import Selected
from taskvec.panel import panel
from taskvec.protocols.rows import Row, metric
from taskvec.protocols.selection import Patient, choose, early_stopping
from taskvec.protocols.transfer import with_gain
from taskvec.runner import compose

TASKS = ("stripes", "corners")
SHORT = ["finetune.steps=8", "finetune.warmup=1", "finetune.batch_size=16", "finetune.lr=3e-3"]
CARRIED = ["backbone=tiny", "source=tiny_wide", "suite=tiny", "method=theseus", *SHORT]
TRANSFER = ["protocol=transfer", "protocol.grid=[0.5,1]"]
STARTS = ["protocol.starts=[transported,merged]", "protocol.course=[0.25,1]"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory):
    """The tiny worlds, included, with an outputs folder beside them that the runs of this file share."""
    with matrix_world.included(tmp_path_factory.mktemp("transfer") / "world") as root:
        yield root


def run(worlds: Path, *words: str) -> Result:
    """Return the only new result of a run."""
    outputs = worlds.parent / "outputs"
    before = set(outputs.glob("runs/*/result.json"))
    assert main([*words, f"outputs={outputs}"]) == 0
    (new,) = set(outputs.glob("runs/*/result.json")) - before
    return read_result(new)


@pytest.fixture(scope="module")
def carried(worlds) -> Result:
    """A run of theseus with two starts."""
    return run(worlds, *CARRIED, *TRANSFER, *STARTS)


def rows_of(result: Result) -> dict[str, Row]:
    return {row.row: row for row in result.rows}


def test_rows_and_their_gain(carried):
    rows = rows_of(carried)
    models = ["zero_shot", "individual", "transported", "merged"]
    starts = ["scratch", "transported", "merged"]
    shares = ["0.25", "1"]
    assert list(rows) == models + [f"{start}_start/{share}" for start in starts for share in shares]
    zero, tuned = rows["zero_shot"].values("accuracy"), rows["individual"].values("accuracy")
    for row in carried.rows:
        accuracy, gain = row.values("accuracy"), row.values("gain")
        for task in gain:
            expected = (accuracy[task] - zero[task]) / (tuned[task] - zero[task])
            assert gain[task] == pytest.approx(expected)
        total = sum(accuracy.values()) - sum(zero.values())
        whole = sum(tuned.values()) - sum(zero.values())
        assert row.mean("gain") == pytest.approx(total / whole)
    assert rows["individual"].mean("gain") == 1
    assert set(rows["transported"].alphas) == set(TASKS)
    assert carried.criterion.name == "transported/validation"


def test_a_gain_is_said_only_where_fine_tuning_gains():
    zero = Row(row="zero_shot", metrics={"accuracy": metric({"a": 0.5, "b": 0.5})})
    tuned = Row(row="individual", metrics={"accuracy": metric({"a": 0.9, "b": 0.4})})
    other = Row(row="other", metrics={"accuracy": metric({"a": 0.7, "b": 0.6})})
    found = with_gain(other, zero, tuned)
    assert found.values("gain") == pytest.approx({"a": 0.5})
    assert found.mean("gain") == pytest.approx(0.15 / 0.15)
    worse = Row(row="individual", metrics={"accuracy": metric({"a": 0.4, "b": 0.4})})
    assert with_gain(other, zero, worse).mean("gain") is None


def test_the_picture_holds_each_start_from_before_its_first_step(carried):
    rows = rows_of(carried)
    picture = panel(carried.maps["accuracy_along_training"])
    assert list(picture.series) == ["scratch", "transported", "merged"]
    for name, points in picture.series.items():
        before = "zero_shot" if name == "scratch" else name
        named = (before, f"{name}_start/0.25", f"{name}_start/1")
        assert [share for share, _ in points] == [0, 0.25, 1]
        assert [value for _, value in points] == pytest.approx(
            [100 * rows[row].mean("accuracy") for row in named]
        )


def test_the_end_of_a_course_is_the_vector_and_a_start_is_the_scaled_model(worlds, carried):
    rows = rows_of(carried)
    assert rows["scratch_start/1"].metrics == rows["individual"].metrics
    words = [*CARRIED, *TRANSFER, *STARTS, f"outputs={worlds.parent / 'outputs'}"]
    config = compose.resolve(compose.compose(words))
    plan = Plan(config)
    work = Workspace(Store(config.root / "store"), config.compute, lambda *_: None, lambda *_: None)
    cells = {cell.name: cell for cell in plan.asked}
    (_, snapshot), *_ = cells["scratch_start/1/stripes"].composed.vectors
    end, whole = plan.vector(snapshot).value(work), plan.vector(snapshot.of).value(work)
    (_, early), *_ = cells["scratch_start/0.25/stripes"].composed.vectors
    before = plan.vector(early).value(work)
    for name in whole:
        assert torch.equal(end[name], whole[name])
        assert not torch.equal(before[name], whole[name])
    assert early == replace(snapshot, at=0.25)
    for name in ("transported/stripes", "merged"):
        cell = cells[name]
        start = plan.vector(Selected(cell, "stripes")).value(work)
        alpha = plan.answer(cell).value(work).alpha
        parts = [plan.vector(vector).value(work) for _, vector in cell.composed.vectors]
        for key in start:
            expected = alpha * sum(part[key] for part in parts)
            torch.testing.assert_close(start[key], expected)


def test_training_continues_from_the_start(worlds, carried):
    """One step at a rate of nearly zero stays at the start."""
    words = [*CARRIED, *TRANSFER, "protocol.starts=[transported]", "protocol.course=[1]"]
    found = run(worlds, *words, "finetune.steps=1", "finetune.warmup=0", "finetune.lr=1e-12")
    rows = rows_of(found)
    assert rows["transported_start/1"].values("accuracy") == rows["transported"].values("accuracy")
    assert rows["scratch_start/1"].values("accuracy") == rows["zero_shot"].values("accuracy")


def test_one_coefficient_for_all_tasks(worlds, carried):
    found = run(
        worlds, *CARRIED, *TRANSFER, "protocol.alpha=shared", "protocol.models=[transported,drawn]"
    )
    apart = {row.row: row for row in found.rows}["transported"]
    best = max(found.curves["transported"], key=lambda point: point["mean"])
    assert apart.alpha == best["alpha"]
    assert apart.alphas == {}
    for task in TASKS:  # the same models as one by one
        own = carried.curves[f"transported/{task}"]
        for point, single in zip(found.curves["transported"], own, strict=True):
            assert point["accuracy"][task] == single["accuracy"][task]


@pytest.mark.parametrize(
    ("accuracies", "patience", "expected"),
    [
        ((0.5, 0.6, 0.55, 0.5, 0.9), 1, 2),
        ((0.5, 0.6, 0.55, 0.5, 0.9), 2, 5),
        ((0.5, 0.4, 0.9), 0, 1),
        ((0.5, 0.4, 0.5, 0.4, 0.9), 1, 5),  # an equal one takes the count back
        ((0.5, 0.5, 0.5), 0, 1),
    ],
)
def test_early_stopping_counts(accuracies, patience, expected):
    curve = {float(number): {"a": value} for number, value in enumerate(accuracies, 1)}
    assert early_stopping(curve, ["a"], patience) == expected
    rule = Patient(patience=patience)
    assert choose(rule, curve, ["a"], None, {}) == expected


def test_patience_stops_before_a_later_peak(worlds, carried):
    grid = "protocol.grid=[0.25,0.5,1,2]"
    found = run(worlds, *CARRIED, "protocol=transfer", grid, "protocol.patience=0")
    for task, alpha in rows_of(found)["transported"].alphas.items():
        curve = {}
        for point in found.curves[f"transported/{task}"]:
            curve[point["alpha"]] = point["accuracy"]
        assert alpha == early_stopping(curve, [task], 0)


def test_carrying_and_adding_change_places(worlds):
    """The same maps for all tasks, and task arithmetic: merged then carried is carried then merged."""
    words = [*CARRIED, *TRANSFER, "protocol.models=[merged]", "protocol.individual=false"]
    words.append("transform.theseus.calibration=colours")
    first = run(worlds, *words)
    second = run(worlds, *words, "transform.theseus.on=merged")
    assert first.curves["merged"] == second.curves["merged"]


def test_a_models_of_others_is_made_without_a_look_at_the_target(worlds):
    words = ["backbone=tiny", "suite=tiny", "transform=pave", *SHORT]
    found = run(worlds, *words, *TRANSFER, "protocol.models=[others]")
    labels = {stage.label for stage in found.stages}
    assert "fit of pave on stripes" in labels
    assert "fit of pave on stripes+corners" not in labels


def test_learned_heads_go_with_their_share_of_the_training(worlds):
    words = ["backbone=tiny_roberta", "source=tiny_roberta_wide", "suite=tiny_texts"]
    found = run(worlds, *words, "method=theseus", *SHORT, *TRANSFER, *STARTS)
    rows = rows_of(found)
    assert rows["scratch_start/1"].metrics == rows["individual"].metrics


def test_a_learned_merge_can_be_a_start(worlds):
    words = ["method=atlas", "backbone=tiny", "suite=tiny", *SHORT, "merge.schedule.epochs=1"]
    asked = ["protocol=transfer", "protocol.models=[merged,others]", "protocol.starts=[merged]"]
    found = run(worlds, *words, *asked, "protocol.course=[1]", "protocol.individual=false")
    names = ["zero_shot", "merged", "others", "scratch_start/1", "merged_start/1"]
    assert [row.row for row in found.rows] == names


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["transform.theseus.on=merged"], "no single vectors come out of it"),
        (["protocol.starts=[merged,merged]"], "names a model twice"),
        (["protocol.course=[1,0.5]"], "in ascending order"),
        (["protocol.models=[others]", "suite.tasks=[stripes]"], "two or more tasks"),
    ],
)
def test_refusals(words, reason, worlds, tmp_path, capsys):
    assert main([*CARRIED, *TRANSFER, *words, f"outputs={tmp_path}/outputs"]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_merge_then_transport(worlds):
    found = run(
        worlds, *CARRIED, *TRANSFER, "transform.theseus.on=merged", "protocol.models=[merged]"
    )
    assert [row.row for row in found.rows] == ["zero_shot", "individual", "merged"]
