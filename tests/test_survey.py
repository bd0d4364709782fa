"""How finished runs stand: one plan serves all that stand on the same files, and hides no change below any of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import world

from taskvec.cli import main
from taskvec.graph import ground
from taskvec.runner import compose, survey
from taskvec.runner.folder import run_folders
from taskvec.runner.survey import Survey


@pytest.fixture
def runs(tiny, warm_outputs, tmp_path, monkeypatch):
    """Three finished runs on a copy of the tiny world's data: two seeds, and one on fewer tasks."""
    copy = tmp_path / "world"
    shutil.copytree(tiny / "data", copy / "data")
    shutil.copytree(tiny / "clip", copy / "clip")
    world.write_configs(copy)
    monkeypatch.setenv("TASKVEC_INCLUDE", str(copy))
    outputs = tmp_path / "outputs"
    for kind in ("head", "decoded"):
        shutil.copytree(warm_outputs / "store" / kind, outputs / "store" / kind)
    words = [*world.FAST, "finetune.steps=2", "protocol.grid=[1]", f"outputs={outputs}"]
    for more in (["seed=0"], ["seed=1"], ["seed=0", "suite.tasks=[stripes]"]):
        assert main([*words, *more]) == 0
    compose.register_all()
    return outputs


def states(outputs: Path) -> list[str]:
    looked = Survey()
    return sorted(looked.state(folder)[0] for folder in run_folders(outputs))


@pytest.fixture
def planned(monkeypatch) -> list:
    """The configs that are planned."""
    made: list = []
    real = survey.Plan

    def plan(config):
        made.append(config)
        return real(config)

    monkeypatch.setattr(survey, "Plan", plan)
    return made


def test_runs_on_the_same_files_are_planned_once(runs, planned):
    assert states(runs) == ["done"] * 3
    assert len(planned) == 2  # for the suite of three tasks, and for that of one


def test_a_changed_file_is_seen_below_every_run(runs, planned):
    world.write_split(runs.parent / "world/data/corners/test.parquet", "corners", 30, seed=77)
    assert states(runs) == ["done", "stale", "stale"]
    assert len(planned) == 3


def test_other_code_is_planned_anew(runs, planned, monkeypatch):
    monkeypatch.setattr(survey, "program", lambda: "another")
    assert states(runs) == ["done"] * 3
    assert len(planned) == 3
    ground.program.cache_clear()
    before = ground.program()
    monkeypatch.setattr(ground.AnswerNode, "version", 99)
    ground.program.cache_clear()
    assert ground.program() != before
    monkeypatch.undo()
    ground.program.cache_clear()


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_a_changed_record_is_seen(runs, name):
    for path in sorted((runs / "runs").glob(f"*/{name}"))[:2]:
        path.write_text(path.read_text() + " ")
    assert states(runs) == ["done", "stale", "stale"]
