"""Data sets of the hub, from the cache in which `datasets` keeps them: their commit counts, and no other is read."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pytest
import torch
import world
from world_text import HUB

from taskvec.data import hub, remote
from taskvec.data.cards import load_tasks
from taskvec.data.describe import class_names, describe
from taskvec.data.hub_card import read_hub_card
from taskvec.data.images import decode_split
from taskvec.data.remote_data import RemoteData
from taskvec.data.splits import hold_out
from taskvec.data.tasks import ImageTask, TextSuite, TextTask
from taskvec.data.texts import tokenise_split
from taskvec.data.views import View
from taskvec.errors import UserError
from taskvec.runner.compose import conf_dir

A, B = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a commit of a data set into the library's cache, as it lies there after a download; no network is asked."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    remote.reachable.cache_clear()
    monkeypatch.chdir(tmp_path)
    hub._opened.cache_clear()

    def put(
        name: str, commit: str, splits: dict[str, datasets.Dataset], config: str = "default"
    ) -> None:
        owner, own = name.split("/")
        folder = tmp_path / "datasets" / f"{owner}___{own}" / config / "0.0.0" / commit
        folder.mkdir(parents=True)
        infos = {}
        for split, data in splits.items():
            table = data.data.table
            file = pa.OSFile(str(folder / f"{own}-{split}.arrow"), "wb")
            with file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
            infos[split] = {
                "name": split,
                "num_examples": len(data),
                "num_bytes": 1,
                "dataset_name": own,
            }
        features = next(iter(splits.values())).features
        info = datasets.DatasetInfo(
            features=features,
            builder_name="parquet",
            dataset_name=own,
            config_name=config,
            version="0.0.0",
            splits=infos,
        )
        info.write_to_directory(str(folder))
        times = time.time() + len(list(folder.parent.iterdir()))
        os.utime(folder, (times, times))  # the library takes the latest
        hub._opened.cache_clear()
        shutil.rmtree(tmp_path / "assets", ignore_errors=True)  # as with `taskvec prefetch`

    return put


def texts(word: str, count: int, names: list[str] | None = None) -> datasets.Dataset:
    rng = np.random.default_rng(count)
    labels = rng.integers(0, 2, count).tolist()
    kind = datasets.ClassLabel(names=names or ["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    return datasets.Dataset.from_dict(
        {"text": [f"{word} {i}" for i in range(count)], "label": labels}, features
    )


def splits(word: str, **counts: int) -> dict[str, datasets.Dataset]:
    return {split: texts(f"{word} {split}", count) for split, count in counts.items()}


def read(task: TextTask, split: str) -> tuple[list, list]:
    found: list = []

    def tokenise(examples):
        found.extend(examples)
        return torch.zeros(len(examples), 1, dtype=torch.int32)

    labels = tokenise_split("t", task, split, tokenise, framed=True)["labels"].tolist()
    return [tuple(pieces) for pieces in found], labels


def test_the_commit_counts_and_is_the_one_that_is_read(cache):
    task = TextTask(path="me/tiny")
    cache("me/tiny", A, splits("first", train=30, test=8))
    before = describe("t", task, "test")
    assert before["commit"] == A and read(task, "test")[0][0][1] == "first test 0"
    assert class_names("t", task) == ("no", "yes")
    cache("me/tiny", B, splits("second", train=30, test=8))
    after = describe("t", task, "test")
    assert after["commit"] == B and read(task, "test")[0][0][1] == "second test 0"
    assert {key for key in after if after[key] != before[key]} == {"commit"}


def test_once_fetched_planning_opens_no_builder(cache, tmp_path, monkeypatch):
    task = TextTask(path="me/tiny")
    words = TextTask(path="me/words", label="verdict")
    cache("me/tiny", A, splits("w", train=30, validation=5, test=8))
    cache("me/words", B, {split: verdicts() for split in ("train", "test")})
    tasks = {"tiny": task, "words": words}
    asked = {name: planned(name, task) for name, task in tasks.items()}
    assert asked["words"][0] == ("bad", "good")
    for name, task in tasks.items():
        RemoteData(name, task).fetch()
    card = read_hub_card(tasks["tiny"])
    assert card.commit == A and card.rows == {"train": 30, "validation": 5, "test": 8}
    # from here on the library's cache is gone, and nothing may ask the library
    shutil.rmtree(tmp_path / "datasets")
    monkeypatch.setattr(hub, "_opened", None)
    for name, task in tasks.items():
        assert planned(name, task) == asked[name]
        found = RemoteData(name, task)
        assert found.known() and not found.here()


def planned(name: str, task: TextTask) -> tuple:
    described = [describe(name, task, split) for split in ("train", "val", "test")]
    return class_names(name, task), described


def verdicts() -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"text": ["a", "b", "c", "d"], "verdict": ["good", "bad"] * 2}
    )


def test_another_commit_than_the_one_asked_for_is_refused(cache, tmp_path):
    cache("me/tiny", A, splits("first", train=30, test=8))
    cache("me/tiny", B, splits("second", train=30, test=8))
    with pytest.raises(
        UserError, match=f"task t: me/tiny is in the cache at commit {B}, not at {A}"
    ):
        describe("t", TextTask(path="me/tiny", revision=A), "test")
    assert describe("t", TextTask(path="me/tiny", revision=B), "test")["commit"] == B
    # Where the branch pointed when its card was last fetched
    root = tmp_path / "hub/datasets--me--tiny"
    (root / f"snapshots/{A}").mkdir(parents=True)
    (root / f"snapshots/{A}/README.md").write_text("")
    (root / "refs").mkdir()
    (root / "refs/old").write_text(A)
    with pytest.raises(UserError, match=f"at commit {B}, not at {A}"):
        describe("t", TextTask(path="me/tiny", revision="old"), "test")


def test_a_missing_validation_split_is_held_out_of_train(cache):
    cache("me/tiny", A, splits("w", train=40, test=8))
    task = TextTask(path="me/tiny")
    found = {split: describe("t", task, split) for split in ("train", "val", "test")}
    assert [found[split]["held_out_of_train"] for split in found] == [True, True, False]
    assert found["train"] != found["val"]
    _, val = hold_out(40)
    assert [pieces[1] for pieces in read(task, "val")[0]] == [
        f"w train {i}" for i in sorted(val.tolist())
    ]
    cache("me/other", A, splits("w", train=40, validation=5, test=8))
    other = TextTask(path="me/other")
    assert len(read(other, "val")[0]) == 5 and len(read(other, "train")[0]) == 40
    assert describe("t", other, "val")["held_out_of_train"] is False


def test_what_cannot_be_had_is_one_line(cache, tmp_path):
    with pytest.raises(
        UserError, match="data set 'me/none' cannot be read: .*; suite.data_dir=FOLDER takes"
    ) as caught:
        describe("t", TextTask(path="me/none"), "test")
    assert "\n" not in str(caught.value)
    cache("me/tiny", A, splits("w", train=40, test=8))
    with pytest.raises(UserError, match="data set 'me/tiny' cannot be loaded: "):
        read(TextTask(path="me/tiny", splits={"train": "train", "test": "nowhere"}), "test")
    with pytest.raises(
        UserError, match="task t: me/tiny/test has no column 'words' .it has text, label"
    ):
        read(TextTask(path="me/tiny", text="words"), "test")
    with pytest.raises(UserError, match="splits train and test are both 'train'"):
        describe("t", TextTask(path="me/tiny", splits={"train": "train", "test": "train"}), "test")
    (tmp_path / "me/tiny").mkdir(parents=True)
    with pytest.raises(
        UserError, match="'me/tiny' is a folder here; paths in task/t.yaml start at that file"
    ):
        describe("t", TextTask(path="me/tiny"), "test")


def test_a_data_set_of_the_hub_is_read_as_its_mirror_is(cache):
    names = ["snli", "sick", "scitail", "stsb"]
    here = load_tasks({"tasks": names, "data_dir": str(HUB)}, TextSuite, [conf_dir()])
    there = load_tasks({"tasks": names}, TextSuite, [conf_dir()])
    for name in names:
        place = HUB / there[name].path / (there[name].config or "")
        files = {path.stem: str(path) for path in place.glob("*.parquet")}
        kept = {
            split: datasets.Dataset.from_parquet(file, cache_dir="made")
            for split, file in files.items()
        }
        cache(there[name].path, A, kept, there[name].config or "default")
        for split in ("train", "val", "test"):
            assert read(there[name], split) == read(here[name], split), (name, split)
        assert class_names(name, there[name]) == class_names(name, here[name])


def test_images_of_the_hub_are_those_of_a_file(cache, tmp_path):
    rng = np.random.default_rng(4)
    cells = [
        {"bytes": world.png(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)), "path": None}
        for _ in range(12)
    ]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    labels = [i % 2 for i in range(12)]
    found = {}
    for split in ("train", "test"):
        world.write_table(tmp_path / f"local/{split}.parquet", cells, labels, ["x", "y"])
        data = datasets.Dataset.from_dict({"image": cells, "label": labels})
        found[split] = data.cast(features)
    cache("me/images", A, found)
    settings = {"size": (8, 8), "interpolation": "bicubic", "resize_mode": "shortest"}
    pictures = []
    for path in ("me/images", str(tmp_path / "local")):
        task = ImageTask(path=path, templates=("a {}",))
        view = View.of(decode_split("t", task, "train", settings), name="t/train")
        pictures.append((view.take(slice(None)), view.labels().tolist()))
    assert torch.equal(pictures[0][0], pictures[1][0]) and pictures[0][1] == pictures[1][1]


def test_the_fixture_lies_as_the_library_leaves_it(cache, tmp_path):
    """The layout that these tests write is found by the library itself."""
    cache("me/tiny", A, splits("w", train=4, test=2))
    info = json.loads(next(tmp_path.rglob("dataset_info.json")).read_text())
    assert info["splits"]["train"]["num_examples"] == 4
    assert datasets.load_dataset("me/tiny", split="train")[0]["text"] == "w train 0"
