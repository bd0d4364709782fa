"""From a hub cache with the columns and class names of vision8 to a filled table, by one command."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import world
from test_hub_data import A, cache  # noqa: F401 (a fixture)

from taskvec.cli import main
from taskvec.data.cards import load_tasks
from taskvec.data.tasks import ImageSuite, ImageTask
from taskvec.runner.configs import conf_dir

pytestmark = pytest.mark.page
TASKS = ["cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn"]
PICTURES = {"train": 7, "test": 3}  # of each class


def pictures(task: ImageTask, count: int, seed: int) -> datasets.Dataset:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(task.classes)), count)
    images = []
    for label in labels:
        colour = np.array([label % 8, label // 8 % 8, label // 64]) * 30
        picture = rng.integers(0, 20, (world.SIZE, world.SIZE, 3)) + colour
        images.append({"bytes": world.png(picture.astype(np.uint8)), "path": None})
    kind = datasets.ClassLabel(names=list(task.classes))
    features = datasets.Features({task.image: datasets.Image(), task.label: kind})
    columns = {task.image: images, task.label: labels.tolist()}
    return datasets.Dataset.from_dict(columns, features)


@pytest.fixture
def small_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded CLIP under the name of ViT-B/32."""
    folder = tmp_path / "include" / "backbone"
    folder.mkdir(parents=True)
    shipped = conf_dir() / "backbone" / "mini_clip_s.yaml"
    (folder / "clip_vit_b32.yaml").write_text(shipped.read_text())
    monkeypatch.setenv("TASKVEC_INCLUDE", str(folder.parent))


def test_one_command_fills_a_table(cache, small_clip, tmp_path, capsys):  # noqa: F811
    cards = load_tasks({"tasks": TASKS, "cards": ["vision"]}, ImageSuite, [conf_dir()])
    for number, task in enumerate(cards.values()):
        splits = {name: pictures(task, count, number) for name, count in PICTURES.items()}
        cache(task.path, A, splits, task.config or "default")
    words = ["experiment=papers/task_arithmetic/single_models", "backbone=clip_vit_b32"]
    words += ["suite.check_counts=false", "protocol.grid=[0.5,1.0]"]
    words += ["finetune.steps=40", "finetune.warmup=4"]
    assert main(["-m", *words, f"outputs={tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert "fine-tuned" in printed and "sun397" in printed
    assert "16 of 16 cells are ours" in printed
