"""What is only shown: dry runs, Hydra's own flags, and what a run misses of the hub, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import world

from taskvec.cli import main
from taskvec.data import remote
from taskvec.graph.plan import Plan
from taskvec.graph.run import RunConfig
from taskvec.models.remote import language_model_files, tagged_files
from taskvec.models.sources import Source
from taskvec.runner import compose
from taskvec.runner.validate import preflight

COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """A machine without network whose hub's cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    remote.reachable.cache_clear()
    yield
    remote.reachable.cache_clear()


@pytest.fixture
def included(tiny, monkeypatch):
    monkeypatch.setenv("TASKVEC_INCLUDE", str(tiny))
    compose.register_all()


def said(capsys, *words: str) -> tuple[int, str]:
    status = main([*words])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def table(text: str) -> dict[str, tuple[int, int]]:
    """Return what a dry run computes and reuses of each kind."""
    lines = text.split("to reuse\n")[1].split("disk")[0].splitlines()
    split = [line.split() for line in lines]
    return {kind: (int(compute), int(reuse)) for kind, compute, reuse in split}


def test_a_dry_run_says_what_the_run_then_does(included, tmp_path, capsys):
    outputs = f"outputs={tmp_path}/out"
    sweep = ["-m", *world.FAST, "merge=task_arithmetic,ties", outputs]
    status, text = said(capsys, *sweep, "--dry-run")
    assert status == 0 and not (tmp_path / "out").exists()
    assert text.count("to run ") == 2 and "nothing was written" in text
    planned = table(text)
    assert planned["vector"] == (3, 0)
    assert main([*world.FAST, "merge=ties", outputs]) == 0
    before = files(tmp_path / "out")
    status, text = said(capsys, *sweep, "--dry-run")
    assert text.count("done ") == 1 and text.count("to run ") == 1
    left = table(text)
    assert left["vector"] == (0, 3) and left["decoded"][0] == 0
    assert files(tmp_path / "out") == before
    assert main([*sweep]) == 0
    capsys.readouterr()
    store = tmp_path / "out/store"
    for kind, (compute, _) in planned.items():
        assert len([*store.glob(f"{kind}/*")]) == compute, kind


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_names_the_jobs_that_would_be_refused(included, tmp_path, capsys):
    words = ["-m", *world.FAST, "suite=tiny,minitext6", f"outputs={tmp_path}/out", "--dry-run"]
    status, text = said(capsys, *words)
    assert status == 2 and text.count("refused ") == 1
    assert "suite=minitext6 holds texts, backbone=tiny reads images" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cfg", "job", "-p", "merge"], "kind: task_arithmetic"),
        (["-m", "--cfg", "job", "-p", "merge", "merge=ties,dare"], "# job 1: merge=dare\n"),
        (["-c", "job", "--resolve", "-p", "merge", "seed=7"], "seed: 7"),
        (["--cfg", "hydra", "-p", "hydra.run"], "dir:"),
        (["--info"], "Config search path"),
        (["--info", "defaults-tree", "merge=ties"], "Defaults Tree"),
        (["--version"], "taskvec 0"),
    ],
)
def test_the_flags_of_hydra_print_what_its_users_expect(words, expected, capsys):
    status, text = said(capsys, *words)
    assert status == 0 and expected in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resolve"], "--resolve says how --cfg prints"),
        (["--package", "merge"], "--package says how --cfg prints"),
        (["--cfg", "job", "--package", "nowhere"], "nowhere"),
        (["--cfg", "everything"], "--cfg: invalid choice"),
        (["--cfg"], "--cfg: expected one argument"),
        (["--cfg", "job", "--info"], "--cfg and --info: give one of them"),
        (["--cfg", "job", "--dry-run"], "--cfg and --dry-run: give one of them"),
        (["--info", "-m"], "leave --multirun out"),
        (["-r", "-m"], "one run or a sweep"),
        (["--cfg", "job", "seed=1,2"], "-m runs a sweep over them"),
        (["--cfg", "job", "merge=tiees"], "did you mean 'ties'"),
        (["--config-name", "mine"], "experiment=NAME"),
        (["--config-path=mine"], "--include FOLDER"),
        (["--config-dir", "/nowhere", "seed=1"], "no such file or folder"),
        (["--experimental-rerun", "x"], "taskvec retry"),
        (["-sc"], "taskvec completion bash"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(words, expected, capsys, monkeypatch):
    monkeypatch.setenv("TASKVEC_INCLUDE", "")
    status, text = said(capsys, *words)
    assert status == 2 and expected in text and text.count("\n") == 1


def test_a_config_dir_is_an_include(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TASKVEC_INCLUDE", "")
    (tmp_path / "merge").mkdir()
    schema = "defaults: [/schema/merge/ties@_here_, _self_]\ndensity: 0.37\n"
    (tmp_path / "merge/mine.yaml").write_text(schema)
    words = ["--config-dir", str(tmp_path), "--cfg", "job", "-p", "merge", "merge=mine"]
    status, text = said(capsys, *words)
    assert status == 0 and "density: 0.37" in text


def test_what_the_hub_has_to_give_is_named_in_one_line(included, tmp_path, capsys):
    (Path(tmp_path) / "mine/task").mkdir(parents=True)
    task = "path: me/away\ntemplates: ['a {}']\nfacts: {gigabytes: 0.012}\n"
    (tmp_path / "mine/task/away.yaml").write_text(task)
    words = ["--include", str(tmp_path / "mine"), "backbone=clip_vit_b32", "suite=tiny"]
    words += ["suite.tasks=[stripes,away]", f"outputs={tmp_path}/out"]
    for flags in ([], ["--dry-run"]):
        status, text = said(capsys, *words, *flags)
        assert status == 2 and text.count("cannot be reached") == 1
        assert (
            "timm/vit_base_patch32_clip_224.openai (about 605 MB), data me/away (about 12 MB)"
            in text
        )
        assert "`taskvec prefetch backbone=clip_vit_b32 suite=tiny`" in text
    assert not (tmp_path / "out").exists()
    status, text = said(capsys, "prefetch", *words, "--list")
    assert status == 0 and text.count("missing ") == 2 and "617 MB" in text
    status, text = said(capsys, "prefetch", *words)
    assert status == 2 and "the hub cannot be reached; missing here: weights timm/" in text


def test_weights_are_here_once_every_shard_is(tmp_path):
    files = language_model_files(Source("me/model"), None)
    assert not files.known() and not files.here()
    snapshot = cached(tmp_path, "model")
    assert files.known() and not files.here()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (snapshot / shards["a"]).write_bytes(b"")
    assert not files.here()
    (snapshot / shards["b"]).write_bytes(b"")
    assert files.here()
    tagged = tagged_files(Source("me/tag"), 5.0)
    snapshot = cached(tmp_path, "tag")
    assert not tagged.here() and tagged.size() == 5e6
    (snapshot / "open_clip_pytorch_model.bin").write_bytes(b"")
    assert tagged.here()


def cached(root: Path, name: str) -> Path:
    """Return the folder of a branch's files in the hub's cache, empty as yet."""
    place = root / f"hub/models--me--{name}"
    snapshot = place / f"snapshots/{COMMIT}"
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    return snapshot


def test_what_is_embedded_asks_nobody(monkeypatch):
    monkeypatch.setattr(remote, "_answers", None)
    config: RunConfig = compose.resolve(compose.compose(["backbone=mini_clip_s", "suite=mini8"]))
    assert not config.backbone.remotes()
    preflight(config, Plan(config))
