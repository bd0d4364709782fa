"""What a coefficient grid costs and means: nothing is decoded or read per alpha."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from world import COUNTS, FAST, TASKS

from taskvec.data import images
from taskvec.runner import compose, store
from taskvec.runner.execute import execute


@pytest.fixture
def run(tiny: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch):
    """Run overrides in this process, and count decoded images and artefacts read."""
    monkeypatch.setitem(os.environ, "TASKVEC_INCLUDE", str(tiny))
    counts: Counter[str] = Counter()

    def counted(module: object, name: str) -> None:
        original = getattr(module, name)

        def wrapper(*arguments, **keywords):
            counts[name] += 1
            return original(*arguments, **keywords)

        monkeypatch.setattr(module, name, wrapper)

    counted(images, "open_picture")
    counted(store.Store, "read")
    compose.register_all()

    def go(*overrides: str):
        counts.clear()
        words = [*FAST, f"outputs={outputs}", *overrides]
        outcome = execute(compose.resolve(compose.compose(words)), tuple(words))
        assert outcome.state == "done", outcome.reason
        return outcome.result, Counter(counts)

    return go


def test_grid_decodes_and_reads_nothing_per_alpha(run, outputs: Path):
    shutil.rmtree(outputs / "store" / "images")
    _, short = run("protocol.grid=[0,0.5]")
    _, long = run("protocol.grid=[0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1]")
    assert short["open_picture"] == sum(COUNTS.values()) * len(TASKS), "each image is decoded once"
    assert long["open_picture"] == 0
    _, longer = run("protocol.grid=[0,0.05,0.15,0.25,0.35,0.45,0.55,0.65,0.75,0.85,0.95,1]")
    assert longer["read"] == long["read"]


def test_alpha_zero_is_the_base_and_alpha_one_the_sum(run, outputs: Path):
    result, _ = run("suite.tasks=[stripes]", "protocol.grid=[0,1]")
    rows = {row.row: row for row in result.rows}
    curve = {point["alpha"]: point["mean"] for point in result.curves["merged"]}
    assert rows["merged_alpha_1"].accuracy == rows["individual"].accuracy, "alpha = 1 of one vector is the tuned model"
    assert rows["individual"].normalised_mean == 1.0
    assert set(curve) == {0.0, 1.0}


def test_result_says_what_was_seen_and_on_which_split(run):
    result, _ = run("suite.tasks=[stripes,corners]")
    assert result.data_seen["learning"] == ["corners/train", "stripes/train"]
    assert result.data_seen["selection"] == ["corners/val", "stripes/val"]
    assert result.data_seen["report"] == ["corners/test", "stripes/test"]
    merged = next(row for row in result.rows if row.row == "merged")
    assert (merged.selected_on, merged.rule) == ("val", "highest_normalised")
    assert set(merged.denominators) == {"stripes", "corners"}


def test_negation_control_and_reference_rows(run):
    result, _ = run("protocol=negation", "protocol.ascent=true")
    rows = {row.row: row for row in result.rows}
    assert list(rows) == ["zero_shot", "individual", "negated", "random", "ascent"]
    assert rows["negated"].mean <= rows["zero_shot"].mean + 0.1
    assert all(0 <= row.control <= 1 for row in rows.values())


def test_joint_training_is_a_row(run):
    result, _ = run("protocol.joint=true", "suite.tasks=[stripes,corners]")
    assert "joint" in {row.row for row in result.rows}
    assert any(stage.label == "vector stripes+corners" for stage in result.stages)


def test_subsets_of_a_suite(run):
    result, _ = run("protocol.subset_size=2")
    merged = [row for row in result.rows if row.row.startswith("merged/")]
    assert len(merged) == 3 and all(len(row.accuracy) == 2 for row in merged)


def test_analogy_runs_on_four_tasks(run):
    roles = dict(zip("abc", TASKS, strict=True))
    words = [f"protocol.{role}={task}" for role, task in roles.items()]
    result, _ = run("protocol=analogy", "suite.tasks=[stripes,corners,colours,control]", "suite.control=null",
                    *words, "protocol.target=control")  # fmt: skip
    names = [row.row for row in result.rows]
    assert names == ["zero_shot", "individual", "auxiliary", "auxiliary_alpha_1", "analogy", "analogy_alpha_1"]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precisions_run(run, precision: str):
    result, _ = run(f"precision={precision}", "suite.tasks=[stripes]")
    assert result.config["precision"] == precision
    torch.set_float32_matmul_precision("highest")
