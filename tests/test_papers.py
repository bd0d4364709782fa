"""Published tables: each composes, runs at scale=mini, and stands beside ours without mixing settings."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from taskvec.cli import main
from taskvec.config import immaterial_keys
from taskvec.errors import UserError
from taskvec.graph.plan import Plan
from taskvec.graph.result import Result
from taskvec.graph.run import RunConfig
from taskvec.papers import tables
from taskvec.papers.listing import outlays, parts_of
from taskvec.protocols.rows import Criterion, Metric, Row
from taskvec.report.against import Comparison, against
from taskvec.report.published import published_cells
from taskvec.report.runs import Run
from taskvec.runner import compose, scale
from taskvec.runner.validate import preflight

compose.register_all()
EMBEDDED = {"mini8_few", "minitext6_few"}
SMALL = {"mini_clip_s", "mini_clip_m", "mini_clip_deep", "mini_lm_s", "mini_lm_m", "mini_encoder"}
# Of tables with many jobs, some: each row of theirs on the first backbone
FEWER = {"atlas/few_shot": ["protocol.shots=1"]}
COMPOSED = ("atlas/few_shot", "pave/glue", "tak/exact", "theseus/third_party")
WHICH = ["backbone=clip_vit_b32"]


def some_jobs(name: str) -> list[str]:
    """The words that leave a table one of its backbones."""
    several = any(isinstance(part["backbone"], list) for part in parts_of(name))
    alike = all("clip_vit_b32" in part["backbone"] for part in parts_of(name))
    return FEWER.get(name, []) + (WHICH if several and alike else [])


def test_every_table_has_an_experiment_and_cells():
    assert set(tables.names()) == set(published_cells())
    assert sum(len(cells) for cells in published_cells().values()) == 1880


@pytest.mark.parametrize("name", published_cells())
def test_a_table_composes_and_every_row_stands_for_one_setting(name: str):
    table = tables.paper_table(name, some_jobs(name))
    rows = {place.row for place in published_cells()[name]}
    assert rows == set(table.published.rows)
    found = against(name, table.published, table.jobs, [])
    asked = {line[0] for line in found.lines}
    shots = {row for row in rows if " k " in row and not row.endswith(" k 1")}
    elsewhere = {"TAK, alpha best", *shots} if name == "atlas/few_shot" else set()
    assert rows - asked - set(found.no_counterpart) <= elsewhere
    assert found.filled == 0 and not found.not_measured


@pytest.mark.parametrize("name", published_cells())
def test_a_mini_table_reads_nothing_but_what_ships(name: str):
    for job in tables.jobs_of(name, ["scale=mini"]):
        chosen = dict(word.split("=", 1) for word in job)
        assert chosen["suite"] in EMBEDDED and chosen["backbone"] in SMALL
        assert chosen.get("source", "mini_clip_s") in SMALL
    if name in COMPOSED:
        assert compose.resolve(compose.compose(job)).finetune.steps == 4


@pytest.mark.parametrize("name", ["acceptance/zero_shot", "pave/glue", "theseus/width"])
def test_without_network_one_line_says_what_is_missing(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = tables.paper_table(name).jobs[0]
    with pytest.raises(UserError, match="(prefetch|not in the hub's cache)") as error:
        preflight(config, Plan(config))
    assert "\n" not in str(error.value)


def test_a_scale_changes_choices_and_budgets_and_nothing_else():
    job = ["experiment=papers/x/y", "suite=vision8", "backbone=clip_vit_b32", "finetune.lr=1e-5"]
    job += ["merge=ties", "merge.density=0.1", "protocol.grid=[0.3]", "seed=2"]
    (small,) = scale.scaled([job], "mini", {"mini": {"merge.density": 0.5, "seed": None}})
    chosen = dict(word.split("=", 1) for word in small)
    assert chosen["suite"] == "mini8_few" and chosen["backbone"] == "mini_clip_s"
    assert "finetune.lr" not in chosen and "seed" not in chosen
    assert chosen["merge"] == "ties" and chosen["merge.density"] == "0.5"
    assert chosen["protocol.grid"] == "[0.5,1.0]" and chosen["finetune.steps"] == "4"
    with pytest.raises(UserError, match="scale=mini: only an experiment of papers/ has one"):
        scale.scaled([job], "mini", {})
    with pytest.raises(UserError, match="scale=minni: no such scale; did you mean 'mini'"):
        scale.scaled([job], "minni", {"rows": {}})


# Cells


def run(config: RunConfig, **means: float) -> Run:
    """A finished run of a config, with a row merged and one merged_alpha_1."""
    metrics = {"accuracy": Metric(values={"cars": means["cars"]}, mean=means["accuracy"])}
    metrics["normalised"] = Metric(mean=means["normalised"])
    rows = tuple(Row(row=name, metrics=metrics) for name in ("merged", "merged_alpha_1"))
    result = Result(
        run_id=f"run-{config.seed}-{means['accuracy']}",
        fingerprint="0" * 32,
        config=json.loads(json.dumps(config.recorded())),
        immaterial=tuple(immaterial_keys(config)),
        rows=rows,
        criterion=Criterion(name="merged/validation", value=0.5),
    )
    return Run(result)


def attention_only(*words: str) -> Sequence[RunConfig]:
    return tables.paper_table("linear_ft/addition", ["backbone=clip_vit_b32", *words]).jobs


def cells(found: Comparison, row: str) -> dict[tuple[str, str], list[str]]:
    return {(line[3], line[4]): line[5:] for line in found.lines if line[0] == row}


ROW = "attention-only FT (TAK paper)"


def test_ours_theirs_and_the_deviation():
    published = tables.published_of("linear_ft/addition")
    jobs = attention_only()
    seeds = [config for seed in (0, 1) for config in attention_only(f"seed={seed}")]
    runs = [
        run(config, accuracy=accuracy, normalised=0.9, cars=0.1)
        for config, accuracy in zip(seeds, (0.78, 0.8), strict=True)
    ]
    found = against("linear_ft/addition", published, jobs, runs)
    shown = cells(found, ROW)
    assert shown["accuracy", "mean"] == [
        f"79.0 ± {statistics.stdev([78, 80]):.1f}",
        "78.2",
        "+0.8",
    ]
    assert shown["normalised", "mean"][1:] == ["86.3", "+3.7"]
    remarks = "\n".join(found.remarks())
    assert "cells are ours; mean absolute deviation" in remarks
    assert "clip_vit_l14 on vision8" in remarks and "LoRA on attention" in remarks
    assert found.outside(3.0) and not found.outside(99)


def test_a_run_of_another_setting_fills_no_cell():
    published, jobs = tables.published_of("linear_ft/addition"), attention_only()
    others = [
        run(config, accuracy=0.5, normalised=0.5, cars=0.5)
        for word in ("finetune.lr=3e-5", "suite.split_rule=fusionbench", "compute.precision=bf16")
        for config in attention_only(word)
    ]
    found = against("linear_ft/addition", published, jobs, others)
    assert found.filled == 0 and found.not_run[f"{ROW} on clip_vit_b32"] == 2


def test_a_row_that_stands_for_two_settings_is_refused():
    published = tables.published_of("linear_ft/addition")
    jobs = [*attention_only(), *attention_only("finetune.lr=3e-5")]
    with pytest.raises(UserError, match="stands for 2 settings on clip_vit_b32"):
        against("linear_ft/addition", published, jobs, [])


# Commands


def test_a_mini_table_runs_and_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["experiment=papers/linear_ft/addition", "scale=mini", "backbone=clip_vit_b32"]
    assert main(["-m", *words, f"outputs={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert (
        "attention-only FT (TAK paper), alpha 1" in printed and "6 of 6 cells are ours" in printed
    )
    table = ["table", "--against", "linear_ft/addition", "--outputs", str(tmp_path)]
    assert main([*table, "scale=mini", "backbone=clip_vit_b32"]) == 0
    again = capsys.readouterr().out
    lines = [line for line in again.splitlines() if line.startswith("|")]
    assert len(lines) == 8 and all(line in printed for line in lines)
    assert "so nothing deviates" in again
    assert main([*table, "backbone=clip_vit_b32"]) == 0
    assert "0 of 6 cells are ours" in capsys.readouterr().out


def test_the_mini_acceptance_table_has_a_column_for_each_task(tmp_path: Path, capsys):
    words = ["experiment=papers/acceptance/zero_shot", "scale=mini", f"outputs={tmp_path}"]
    assert main(["-m", *words]) == 0
    printed = capsys.readouterr().out
    assert "24 of 24 cells are ours" in printed and "| climate" in printed


def test_what_cannot_be_printed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["table", "--against", "tak/additon"]) == 2
    assert (
        "no published table 'tak/additon'; did you mean 'tak/addition'" in capsys.readouterr().err
    )
    assert main(["table", "--against", "pave/glue", "--outputs", str(tmp_path)]) == 2
    assert "no such run" in capsys.readouterr().err or tmp_path.exists()
    assert main(["papers", "pave/gleu"]) == 2
    assert "did you mean 'pave/glue'" in capsys.readouterr().err


def test_the_list_says_what_a_table_needs(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["papers", "pave/glue", "--outputs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "taskvec -m experiment=papers/pave/glue scale=mini" in printed
    assert "missing   data nyu-mll/glue/cola" in printed and "0 of 2 done" in printed
    (found,) = outlays(["atlas/few_shot"], tmp_path)
    assert found.jobs == len(tables.jobs_of("atlas/few_shot"))
    assert "ucf101" in found.by_hand and found.seconds is None
