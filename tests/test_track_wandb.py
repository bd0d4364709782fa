"""The mirror in Weights & Biases: what it shows, and that its failures cost no run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import world
from conftest import command

from taskvec.graph.result import Result, flat_metrics, read_result
from taskvec.runner.track.wandb import WandbSession

CLOSED = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0123456789" * 4}
FLAT = {"run_id", "method", "experiment", "seed", "precision"} | {
    "backbone", "suite", "finetune", "transform", "merge", "protocol"
}  # fmt: skip
BROKEN = """
from types import SimpleNamespace
class Settings:
    model_fields = {}
def setup(settings=None):
    return SimpleNamespace(settings=SimpleNamespace(base_url="https://api.wandb.ai", mode="online"))
class Run:
    def __getattr__(self, name):
        raise OSError(28, "No space left on device")
def init(**arguments):
    return Run()
"""


def launch(tiny: Path, outputs: Path, *arguments: str, environment: dict[str, str] | None = None):
    """Run with the W&B mirror, away from this machine's own credentials."""
    environment = {"NETRC": str(outputs / "no-netrc")} | (environment or {})
    return command(
        tiny,
        *world.FAST,
        "tracker=wandb",
        f"outputs={outputs}",
        *arguments,
        environment=environment,
    )


def mirrored(outputs: Path) -> dict[str, dict]:
    """Return each offline run by name, as ``wandb leet inspect`` reads it."""
    runs = {}
    for folder in sorted((outputs / "wandb").glob("offline-run-*")):
        words = [
            sys.executable,
            "-m",
            "wandb",
            "leet",
            "inspect",
            "--summary",
            "--json",
            str(folder),
        ]
        run = json.loads(
            subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
        )
        runs[run["name"]] = run
    return runs


def recorded(outputs: Path) -> dict[str, Result]:
    return {
        path.parent.name: read_result(path)
        for path in sorted((outputs / "runs").glob("*/result.json"))
    }


@pytest.fixture(scope="module")
def sweep(
    tiny: Path, warm_outputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Four runs of one process, mirrored offline for want of a key: addition, negation, two whose training fails."""
    outputs = tmp_path_factory.mktemp("sweep") / "outputs"
    for kind in ("head", "decoded"):
        shutil.copytree(warm_outputs / "store" / kind, outputs / "store" / kind)
    jobs = ("protocol=addition,negation", "finetune.lr=3e-3,1e30")
    done = launch(tiny, outputs, "tracker.tags=[trial]", "-m", *jobs)
    runs, results = mirrored(outputs), recorded(outputs)
    assert done.returncode == 1 and len(runs) == 4 and len(results) == 2, done.stderr
    good = sorted((runs[name] for name in results), key=lambda run: run["config"]["protocol"])
    failed = [run for name, run in runs.items() if name not in results]
    return SimpleNamespace(
        runs=good, failed=failed, results=results, outputs=outputs, stderr=done.stderr
    )


def test_summary_holds_every_metric_of_the_result(sweep):
    for run in sweep.runs:
        result = sweep.results[run["name"]]
        expected = flat_metrics(result.rows)
        assert {key: run["summary"].get(key) for key in expected} == expected
        assert run["summary"]["criterion"] == result.criterion.value
        assert run["summary"]["tables/rows"]["nrows"] == len(result.rows)
        assert run["summary"]["tables/alpha_curve"]["nrows"] == sum(
            map(len, result.curves.values())
        )
        assert (run["state"], run["exit_code"], run["summary"]["state"]) == ("finished", 0, "done")


def without_empty(config: dict) -> dict:
    """A config as W&B keeps it, which drops empty mappings at any depth."""
    found = {}
    for key, value in config.items():
        kept = without_empty(value) if isinstance(value, dict) else value
        if kept != {}:
            found[key] = kept
    return found


def test_config_keys_are_uniform_over_protocols(sweep):
    addition, negation = (run["config"] for run in sweep.runs)
    assert addition.keys() == negation.keys() and addition.keys() > FLAT
    assert {key for key in addition if addition[key] != negation[key]} == {
        "run_id",
        "protocol",
        "resolved",
    }
    resolved = sweep.results[addition["run_id"]].config
    assert addition["resolved"] == without_empty(resolved)
    assert addition["experiment"] is None and addition["lr"] == 3e-3
    assert all(
        not isinstance(value, (dict, list)) for key, value in addition.items() if key != "resolved"
    )
    assert sweep.runs[1]["tags"] == ["tiny", "full", "task_arithmetic", "negation", "trial"]


def test_curves_stand_over_an_axis_of_their_own(sweep):
    folder = next(
        f
        for f in (sweep.outputs / "wandb").glob("offline-run-*")
        if sweep.runs[0]["run_id"] in f.name
    )
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    assert '"train/step"' in lines and '"alpha_curve/merged/accuracy/corners"' in lines
    records = [json.loads(line) for line in lines.splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    points = [values for values in history if "alpha_curve/merged/mean" in values]
    curve = sweep.results[sweep.runs[0]["name"]].curves["merged"]
    assert [p["alpha_curve/alpha"] for p in points] == [p["alpha"] for p in curve]
    assert [p["alpha_curve/merged/mean"] for p in points] == [p["mean"] for p in curve]
    losses = [values for values in history if "train/stripes/loss" in values]
    assert [values["train/step"] for values in losses] == [1, 2, 3, 4, 5, 6]


def test_console_belongs_to_the_run(sweep):
    assert "wandb" not in sweep.stderr and "W&B" not in sweep.stderr


def test_failed_run_is_failed_in_both_records(sweep):
    for run in sweep.failed:
        status = json.loads((sweep.outputs / "runs" / run["name"] / "status.json").read_text())
        assert (run["state"], run["exit_code"], run["summary"]["state"]) == ("failed", 1, "failed")
        assert status["state"] == "failed" and "lower the learning rate" in status["reason"]
        assert run["summary"]["reason"] == status["reason"]
        assert run["config"].keys() == sweep.runs[0]["config"].keys()


def test_interrupted_run_is_failed():
    calls = []
    run = SimpleNamespace(summary={}, finish=lambda exit_code: calls.append(exit_code))
    with pytest.raises(KeyboardInterrupt), WandbSession(run):
        raise KeyboardInterrupt
    assert calls == [1] and run.summary == {
        "state": "failed",
        "reason": "interrupted; the same command resumes it",
    }


def test_server_out_of_reach_costs_no_run(tiny, warm_outputs, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(warm_outputs / "store", outputs / "store")
    done = launch(tiny, outputs, "tracker.mode=online", "tracker.timeout_s=2", environment=CLOSED)
    assert (
        done.returncode == 0 and done.stderr.count("W&B") == 1 and "recorded offline" in done.stderr
    )
    (result,), (plain,) = recorded(outputs).values(), recorded(warm_outputs).values()
    assert result.same_as(plain)
    (run,) = mirrored(outputs).values()
    assert (
        run["state"] == "finished" and flat_metrics(result.rows).items() <= run["summary"].items()
    )
    assert not list((outputs / "wandb").glob("run-*"))


@pytest.mark.parametrize(
    "code", ["raise OSError('broken installation')", BROKEN], ids=["import", "calls"]
)
def test_broken_wandb_costs_no_run(tiny, warm_outputs, tmp_path, code):
    outputs = tmp_path / "outputs"
    shutil.copytree(warm_outputs / "store", outputs / "store")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(code)
    done = launch(tiny, outputs, environment={"PYTHONPATH": str(tmp_path / "fake")})
    assert done.returncode == 0 and done.stderr.count("W&B") == 1, done.stderr
    (result,), (plain,) = recorded(outputs).values(), recorded(warm_outputs).values()
    assert result.same_as(plain)


def test_project_name_is_checked_before_work_starts(tiny, outputs):
    done = launch(tiny, outputs, "tracker.project=a/b")
    assert (
        done.returncode == 2
        and "tracker.project" in done.stderr
        and not (outputs / "runs").exists()
    )
