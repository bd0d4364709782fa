"""The verbs that look after runs and artefacts: status, retry, store, doctor, table, completion."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from world import FAST

from taskvec import cli


@pytest.fixture
def run(tiny: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Run the command in this process and return (exit status, standard output, standard error)."""
    monkeypatch.setitem(os.environ, "TASKVEC_INCLUDE", str(tiny))

    def go(*words: str) -> tuple[int, str, str]:
        placed = [f"outputs={outputs}"] if "=" in words[0] else ["--outputs", str(outputs)]
        status = cli.main([*words, *placed])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go


Run = Callable[..., tuple[int, str, str]]
ONE = [*FAST, "suite.tasks=[stripes]", "protocol.grid=[0,1]"]


def test_explain_names_the_changed_key(run: Run):
    assert run(*ONE)[0] == 0
    _, text, _ = run("store", "explain", *ONE, "finetune.lr=0.1")
    blocks = {
        block.splitlines()[0]: block.splitlines()[1:] for block in text.split("\nto compute: ")[1:]
    }
    assert "method.lr: 0.003 -> 0.1" in "\n".join(blocks["vector stripes"])
    assert any("composition" in line for line in blocks["answer merged"]), "the input that changed"
    assert "stored: head stripes" in text and "stored: examples stripes/train" in text

    assert run(*ONE, "finetune.lr=0.1")[0] == 0
    made = [
        line.split()[3]
        for line in run("store", "list")[1].splitlines()
        if line.startswith("vector")
    ]
    assert len(made) == 2
    assert all("method.lr" in run("store", "explain", fingerprint)[1] for fingerprint in made)


def test_prune_keeps_what_runs_stand_on(run: Run, outputs: Path, caplog: pytest.LogCaptureFixture):
    run(*ONE)
    run(*ONE, "seed=1")
    unused = json.loads(run("status", "--json")[1])
    doomed = next(name for name in unused if "-s1-" in name)
    (outputs / "runs" / doomed / "result.json").unlink()
    kept = {path.name for path in (outputs / "store" / "vector").iterdir()}
    run("store", "prune", "--yes")  # what a run without a result made stays until it is named
    assert kept == {path.name for path in (outputs / "store" / "vector").iterdir()}
    _, announced, _ = run("store", "prune", doomed)
    assert announced.startswith("would delete")
    before = {path.name for path in (outputs / "store" / "vector").iterdir()}
    assert run("store", "prune", doomed, "--yes")[1].startswith("deleted")
    after = {path.name for path in (outputs / "store" / "vector").iterdir()}
    assert len(before) == 2 and len(after) == 1 and after < before
    caplog.clear()
    assert run(*ONE)[0] == 0
    assert "already done" in caplog.text, "the run that stands still stands"


def test_retry_runs_only_what_failed(run: Run):
    run(*ONE)
    status, _, _ = run(*ONE, "finetune.lr=1e30")
    assert status == 1
    states = {entry["state"] for entry in json.loads(run("status", "--json")[1]).values()}
    assert states == {"done", "failed"}
    status, text, error = run("retry")
    assert status == 1 and text.startswith("failed") and "1 run again, 1 failed" in error
    assert "not finite" in text or "loss is" in text


def test_store_list_and_unknown_fingerprint(run: Run):
    assert "examples stripes/test" in run("store", "list")[1]
    status, _, error = run("store", "explain", "ffffffff")
    assert status == 2 and "no artefact" in error
    status, _, error = run("store", "list", "extra")
    assert status == 2 and "takes no arguments" in error


def test_table_filters_and_writes_a_file(run: Run, tmp_path: Path):
    run(*ONE)
    target = tmp_path / "table.csv"
    words = [
        "--where",
        "row=merged",
        "--metrics",
        "accuracy/stripes",
        "--format",
        "csv",
        "--output",
        str(target),
    ]
    assert run("table", *words)[0] == 0
    heads, line = target.read_text().splitlines()
    assert heads == "method,row,accuracy/stripes,accuracy/stripes std" and line.startswith(
        "task_arithmetic,merged,"
    )
    status, _, error = run("table", "--where", "row=nope")
    assert status == 2 and "no record has row=nope" in error


def test_doctor_finds_everything(run: Run):
    status, text, _ = run("doctor")
    assert status == 0, text
    assert "everything is there" in text and "embedded files" in text


def test_completion_script_is_valid_bash(capsys: pytest.CaptureFixture):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
