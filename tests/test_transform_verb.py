"""`taskvec transform`: vectors on disk come out as they do in a run."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file, save_file

from taskvec.models.clip.vit import to_open_clip
from taskvec.vectors import TaskVector

RUN = ["backbone=tiny", "suite=tiny", "suite.tasks=[stripes,corners]"]
SHORT = ["finetune.steps=6", "finetune.warmup=1", "finetune.batch_size=16", "finetune.lr=3e-3"]


@pytest.fixture(scope="module")
def purified(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a run with pave, whose own vectors lie beside them as files."""
    folder = tmp_path_factory.mktemp("transform")
    outputs = folder / "outputs"
    words = [*RUN, *SHORT, "method=pave", "transform.pave.ratio=0.8", "protocol.grid=[1]"]
    done = forked.run(tiny, *words, f"outputs={outputs}", folder=folder / "run")
    assert done.returncode == 0, done.stderr
    return outputs


def stored(outputs: Path) -> dict[str, Path]:
    """Return the folder of each stored vector by its label."""
    found = {}
    for record in outputs.glob("store/vector/*/artefact.json"):
        found[json.loads(record.read_text())["label"]] = record.parent
    return found


def vector_in(folder: Path) -> TaskVector:
    record = json.loads((folder / "artefact.json").read_text())
    return TaskVector.unpack(load_file(folder / "tensors.safetensors"), record["meta"]["vector"])


@pytest.fixture(scope="module")
def files(purified: Path) -> dict[str, Path]:
    """A file of each task's vector before the transform."""
    found = {}
    for task in ("stripes", "corners"):
        path = purified.parent / f"{task}_own.safetensors"
        vector_in(stored(purified)[f"vector {task}"]).save(path)
        found[task] = path
    return found


def words_of(files: dict[str, Path]) -> list[str]:
    return [word for task, path in files.items() for word in ("--vector", f"{task}={path}")]


def test_vectors_on_disk_are_purified_as_in_a_run(tiny, purified, files, tmp_path):
    words = ["transform", "pave", *RUN[:2], "transform.pave.ratio=0.8", *words_of(files)]
    outputs = f"outputs={tmp_path}/outputs"
    done = forked.run(tiny, *words, outputs, "-o", tmp_path / "out", folder=tmp_path / "verb")
    assert done.returncode == 0, done.stderr
    for task in files:
        found = TaskVector.load(tmp_path / "out" / f"{task}.safetensors")
        expected = vector_in(stored(purified)[f"vector {task}, pave"])
        assert list(found) == list(expected)
        for name in expected:
            assert torch.equal(found[name], expected[name])
        assert found.metadata["base_hash"] == expected.metadata["base_hash"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "rank" in report["reports"]["fit of pave on stripes+corners"]["figures"]
    assert report["data_seen"]["calibration"] == ["corners/train", "stripes/train"]
    again = forked.run(tiny, *words, outputs, "-o", tmp_path / "out", folder=tmp_path / "again")
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_weights_of_a_model_are_a_vector_too(tiny, purified, files, tmp_path):
    base = load_file(tiny / "clip" / "open_clip_model.safetensors")
    delta = to_open_clip(dict(TaskVector.load(files["stripes"])))
    tuned = {name: weight + delta.get(name, 0) for name, weight in base.items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    words = ["transform", "identity", *RUN[:2], "source=tiny", f"outputs={tmp_path}/outputs"]
    place = f"stripes={tmp_path}/tuned.safetensors"
    words += ["--vector", place, "-o", tmp_path / "out"]
    done = forked.run(tiny, *words, folder=tmp_path / "verb")
    assert done.returncode == 0, done.stderr
    found = TaskVector.load(tmp_path / "out" / "stripes.safetensors")
    expected = TaskVector.load(files["stripes"])
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["pave", "--vector", "stripe=FILE"], "did you mean 'stripes'"),
        (["pave", "--vector", "stripes=nothing"], "neither a file"),
        (["pave", "--vector", "stripes"], "not of the form"),
        (["pave", "transform.pave.ration=1", "--vector", "stripes=FILE"], "did you mean 'ratio'"),
        (["pave", "transform.pave.on=merged", "--vector", "stripes=FILE"], "on=merged"),
        (["theseus", "--vector", "stripes=FILE"], "set source=BACKBONE"),
    ],
)
def test_refusals(words, reason, tiny, files, tmp_path):
    words = [word.replace("FILE", str(files["stripes"])) for word in words]
    more = [*RUN[:2], f"outputs={tmp_path}/outputs", "-o", tmp_path / "out"]
    done = forked.run(tiny, "transform", *words, *more, folder=tmp_path / "verb")
    assert done.returncode == 2
    assert reason in done.stderr
    assert not (tmp_path / "out").exists()
