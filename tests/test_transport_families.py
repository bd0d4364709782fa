"""Theseus on each family: all kinds of parameters are carried, whatever they are called; calibration by other data."""

from __future__ import annotations

import json
from pathlib import Path

import matrix_world
import pytest
import torch

from taskvec.cli import main
from taskvec.runner import compose
from taskvec.vectors import TaskVector

SUITES = {"tiny": ("tiny", "stripes"), "tiny_llama": ("tiny_texts", "liked")}
THINGS, PLACES = ("house", "river", "tree", "wall"), ("stone", "snow", "salt", "rain", "ash")
SUITES |= dict.fromkeys(("tiny_gpt2", "tiny_t5"), SUITES["tiny_llama"])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory):
    """The tiny worlds, included."""
    with matrix_world.included(tmp_path_factory.mktemp("families") / "world") as root:
        yield root


def weights_of(backbone: str) -> dict[str, torch.Tensor]:
    """Return a backbone's editable weights."""
    suite, _ = SUITES[backbone.removesuffix("_wide")]
    config = compose.resolve(compose.compose([f"backbone={backbone}", f"suite={suite}"]))
    return dict(config.backbone.load("cpu").parameters)


def carried(worlds: Path, out: Path, backbone: str, *words: str) -> tuple[TaskVector, dict]:
    """Return a random vector of the wide backbone on the narrow one, and the report of its maps."""
    suite, task = SUITES[backbone]
    file = worlds.parent / f"{backbone}.safetensors"
    if not file.exists():
        wide = weights_of(f"{backbone}_wide")
        TaskVector({name: torch.randn_like(weight) for name, weight in wide.items()}).save(file)
    about = [f"backbone={backbone}", f"source={backbone}_wide", f"suite={suite}"]
    given = ["--vector", f"{task}={file}", f"outputs={worlds.parent / 'outputs'}", "-o", str(out)]
    assert main(["transform", "theseus", *about, *words, *given]) == 0
    report = json.loads((out / "report.json").read_text())
    return TaskVector.load(out / f"{task}.safetensors"), report


@pytest.mark.parametrize("backbone", SUITES)
def test_every_kind_of_parameter_is_carried(backbone, worlds, tmp_path):
    """Grouped queries, Conv1D layers, an encoder with a decoder: all but the input layers, in the target's shapes."""
    found, said = carried(worlds, tmp_path / "out", backbone)
    target = weights_of(backbone)
    (report,) = said["reports"].values()
    left = report["left_at_zero"]
    assert set(left.values()) == {"an input layer"}
    assert set(found) == set(target) - set(left)
    for name, delta in found.items():
        assert delta.shape == target[name].shape
        assert delta.norm() > 0


def test_maps_may_come_from_held_out_tasks_and_validation_rows(worlds, tmp_path):
    words = ["transform.theseus.calibration=colours", "transform.theseus.examples=1000"]
    _, said = carried(worlds, tmp_path / "other", "tiny", *words)
    assert said["data_seen"]["calibration"] == ["colours/train", "colours/val"]
    words = ["transform.theseus.split=val", "transform.theseus.examples=8"]
    _, said = carried(worlds, tmp_path / "val", "tiny", *words)
    assert said["data_seen"]["calibration"] == ["stripes/val"]


def test_maps_may_come_from_a_corpus(worlds, tmp_path):
    """Texts without labels or classes, of which one split is for measuring and the other for calibration."""
    (worlds / "corpus").mkdir()
    lines = [f"the {thing} of {place} stood by the {thing}" for thing in THINGS for place in PLACES]
    rows = [json.dumps({"text": line}) for line in lines]
    (worlds / "corpus" / "book.jsonl").write_text("\n".join(rows))
    (worlds / "task" / "book.yaml").write_text(f"path: {worlds}/corpus\nfile: book\n")
    about = ["transform.theseus.calibration=book", "suite.control=book"]
    words = [*about, "transform.theseus.split=val", "transform.theseus.examples=6"]
    found, said = carried(worlds, tmp_path / "book", "tiny_llama", *words)
    assert said["data_seen"]["calibration"] == ["book/val"]
    own, _ = carried(worlds, tmp_path / "own", "tiny_llama")
    assert set(found) == set(own)
    name = max(found, key=lambda name: float(found[name].norm()))
    assert not torch.allclose(found[name], own[name], rtol=0.05)
