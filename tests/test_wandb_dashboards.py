"""What a dashboard gets of a run: units, tables, curves by layer, pictures, files; reports as code; sending."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import world
import yaml
from conftest import ROOT, command
from wandb_server import ENTITY, standing_in

from taskvec import cli
from taskvec.graph.result import flat_metrics, read_result
from taskvec.panel import Heat, Lines
from taskvec.runner.track import content
from taskvec.runner.track.wandb_sync import waiting

FILES = {
    "alignment": Lines(x="block", y="error", series={"mnist": [(0, 0.5), (1, 0.25)], "emoji": [(1, 2.0)]}).data(),
    "map": Heat(rows=["a"], columns=["b", "c"], values=[[1, 2]]).data(),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny: Path, warm_outputs: Path, tmp_path_factory: pytest.TempPathFactory):
    """A real run, mirrored offline with its files, as wandb's own reader reads it back."""
    outputs = tmp_path_factory.mktemp("mirrored") / "outputs"
    for kind in ("head", "decoded"):
        shutil.copytree(warm_outputs / "store" / kind, outputs / "store" / kind)
    words = [
        "tracker=wandb",
        "tracker.artifacts=true",
        f"outputs={outputs}",
        "merge=tsv",
        "transform=pave",
    ]
    nobody = {"NETRC": str(outputs / "no-netrc")}
    done = command(tiny, *world.FAST, *words, environment=nobody, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = (outputs / "wandb").glob("offline-run-*")
    (path,) = (outputs / "runs").glob("*/result.json")
    return SimpleNamespace(
        outputs=outputs,
        folder=folder,
        result=read_result(path),
        said=done.stderr,
        records=records(folder),
    )


def records(folder: Path) -> list[dict]:
    """What wandb's own reader says is in a run, record by record."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


def table(run, name: str) -> list[dict]:
    """The rows of a mirrored table."""
    (path,) = (run.folder / "files" / "media" / "table" / "tables").glob(f"{name}_*.json")
    data = json.loads(path.read_text())
    return [dict(zip(data["columns"], row, strict=True)) for row in data["data"]]


def test_tables_say_task_unit_and_direction(run):
    rows = table(run, "tasks")
    expected = {
        (row.row, name, task): value
        for row in run.result.rows
        for name, metric in row.metrics.items()
        for task, value in metric.values.items()
    }
    assert {(r["row"], r["metric"], r["task"]): r["value"] for r in rows} == expected and expected
    units = {r["metric"]: (r["unit"], r["better"]) for r in table(run, "metrics")}
    for row in run.result.rows:
        for name, metric in row.metrics.items():
            assert units[f"{row.row}/{name}"] == (metric.unit, metric.better)


def test_every_metric_is_defined_and_in_the_summary(run):
    defined = {
        r["metric"]["name"] for r in run.records if r["type"] == "metric" and "name" in r["metric"]
    }
    means = {f"{row.row}/{name}" for row in run.result.rows for name in row.metrics}
    assert means <= defined and {"train/step", "alpha_curve/alpha", "layer/index"} <= defined
    summary: dict = {}
    for record in run.records:
        summary |= record.get("summary", {}).get("update", {})
    expected = flat_metrics(run.result.rows)
    assert {key: summary.get(key) for key in expected} == expected


def test_pictures_are_mirrored(run):
    pytest.importorskip("matplotlib")
    found = sorted(p.parent.name for p in (run.folder / "files/media/images").rglob("*.png"))
    figures = [f for report in run.result.reports.values() for f in report.get("figures", ())]
    assert len(found) == len(figures) >= 1 and "W&B" not in run.said


def test_files_are_mirrored_with_what_they_were_made_from(run):
    found = {r["artifact"]["name"]: r["artifact"] for r in run.records if r["type"] == "artifact"}
    vectors = [name for name in found if found[name]["type"] == "task_vector"]
    merged = [name for name in found if found[name]["type"] == "merged_model"]
    assert len(vectors) >= 3 and len(merged) == 1
    for name in vectors:
        paths = {entry["path"] for entry in found[name]["manifest"]["contents"]}
        assert "tensors.safetensors" in paths
    for name in merged:
        sources = json.loads(found[name]["metadata"])["sources"]
        assert len(sources) >= 2 and set(sources) <= set(vectors)


def test_curves_by_layer_keep_their_layers(run):
    reports = {"fit": {"figures": FILES}}
    found = content.by_layer(run.result.model_copy(update={"reports": reports}))
    assert [(p.picture, p.layer, p.values) for p in found] == [
        ("fit/alignment", 0, {"mnist": 0.5}),
        ("fit/alignment", 1, {"mnist": 0.25, "emoji": 2.0}),
    ]
    assert set(
        content.images(run.result.model_copy(update={"maps": {}, "reports": reports}), 9)
    ) == {
        "fit/alignment",
        "fit/map",
    }


def test_what_ran_offline_is_sent_once(run, tmp_path: Path):
    outputs = tmp_path / "outputs"
    shutil.copytree(run.outputs / "wandb", outputs / "wandb")
    before = sorted(ROOT.glob("wandb*"))
    with standing_in() as server:
        words = ["wandb", "sync", "--outputs", str(outputs)]
        done = command(None, *words, environment=server.environment, timeout=300)
        assert done.returncode == 0, done.stderr
        name = run.folder.name.rsplit("-", 1)[-1]
        sent = server.named("UpsertBucket")
        assert {one["name"] for one in sent} == {name}
        last = {key: value for one in sent for key, value in one.items() if value}
        assert last["displayName"] and last["jobType"] == "addition" and last["tags"]
        config = json.loads(last["config"])
        assert config["protocol"]["value"] == "addition" and config["seed"]["value"] == 0
        (summary,) = server.lines(name, "wandb-summary.json")[-1:]
        assert flat_metrics(run.result.rows).items() <= summary.items()
        losses = [
            line for line in server.lines(name, "wandb-history.jsonl") if "train/step" in line
        ]
        assert len(losses) == 3 * 6 and any("tables/" in file for file in server.files)
        assert len(server.named("CreateArtifact")) >= 4
        assert waiting(outputs) == []
        assert sorted(ROOT.glob("wandb*")) == before, "nothing is written elsewhere"
        count = len(server.operations)
        again = command(None, *words, environment=server.environment, timeout=300)
        assert again.returncode == 0 and "no offline run" in again.stdout
        assert len(server.operations) == count


def test_a_workspace_and_a_report_need_no_network_to_be_built(tmp_path: Path, monkeypatch):
    pytest.importorskip("wandb_workspaces")

    def refuse(*arguments):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    target = tmp_path / "dashboard.json"
    assert cli.main(["wandb", "report", "--project", "mine", "-o", str(target)]) == 0
    found = json.loads(target.read_text())
    sections = found["workspace"]["section"]["panelBankConfig"]["sections"]
    heads = [block for block in found["report"]["blocks"] if block["type"] == "heading"]
    assert len([section for section in sections if section["panels"]]) == len(heads) == 6
    text = target.read_text()
    for key in ("merged/accuracy", "alpha_curve/alpha", "train/step", "tables/tasks", "wall_s"):
        assert key in text, key


def test_a_server_gets_workspace_and_report():
    pytest.importorskip("wandb_workspaces")
    with standing_in() as server:
        words = ["wandb", "report", "--project", "mine"]
        done = command(None, *words, environment=server.environment, timeout=300)
        assert done.returncode == 0, done.stderr
        views = [v for name, v in server.operations if name.lower().startswith("upsertview")]
        assert [view["type"] for view in views] == ["project-view", "runs"]
        assert all(view["projectName"] == "mine" and view["entityName"] == ENTITY for view in views)
        assert "merged/accuracy" in views[0]["spec"] and "merged/accuracy" in views[1]["spec"]


def test_what_cannot_be_sent_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    assert cli.main(["wandb", "sync", "--outputs", str(tmp_path)]) == 0
    (tmp_path / "wandb" / "offline-run-1-a").mkdir(parents=True)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert cli.main(["wandb", "sync", "--outputs", str(tmp_path)]) == 2
    assert "wandb login" in capsys.readouterr().err
    assert cli.main(["wandb", "delete"]) == 2


def test_the_sweep_file_holds_valid_commands():
    sweep = yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())
    assert sweep["program"] == "taskvec" and sweep["command"][0] == "taskvec"
    words = []
    for name, values in sweep["parameters"].items():
        words.append(f"{name}={values.get('value', values.get('values', [None])[0])}")
    done = command(None, "show", *words)
    assert done.returncode == 0, done.stderr
