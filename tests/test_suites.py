"""The real suites: their cards say what the data sets are known to be, and validation is split off by three rules."""

from __future__ import annotations

import csv
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import world
from open_clip import zero_shot_metadata

from taskvec.data.cards import load_tasks
from taskvec.data.describe import describe
from taskvec.data.rows import TaskData
from taskvec.data.splits import held_out, hold_out
from taskvec.data.tasks import ImageSuite, ImageTask, TextSuite
from taskvec.errors import UserError
from taskvec.runner import compose
from taskvec.runner.configs import conf_dir

FACTS = Path(__file__).resolve().parent / "fixtures" / "suites" / "facts.csv"
EIGHT = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
COUNTS = {"vision8": 8, "vision14": 14, "vision20": 20, "vision20_tall": 20, "atlas22": 22}
# Names of the classes of these are those of the folders that the archive has
NAMED_BY_DATA = ("atlas/caltech101", "atlas/caltech256", "atlas/ucf101")


compose.register_all()


def facts() -> list[dict[str, str]]:
    with FACTS.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def card(name: str) -> ImageTask:
    suite = {"tasks": [name]}
    return load_tasks(suite, ImageSuite, [conf_dir()])[name]


@pytest.mark.parametrize("fact", facts(), ids=lambda fact: fact["card"])
def test_a_card_says_what_is_known(fact: dict[str, str]):
    task = card(fact["card"])
    words = fact["rows"].split()
    rows = {name: int(count) for name, count in zip(words[::2], words[1::2], strict=True)}
    assert task.path == fact["path"] and (task.config or "") == fact["config"]
    assert (task.facts.revision or "") == fact["revision"]
    assert rows.items() <= task.facts.rows.items()
    assert len(task.templates) == int(fact["templates"])
    if fact["card"] not in NAMED_BY_DATA:
        assert len(task.classes) == int(fact["classes"])
    # what is reported on is a split whose size the card knows, except where nobody has stated it
    assert fact["card"] == "tall/fer2013" or task.splits["test"] in task.facts.rows


def test_names_and_templates_of_imagenet_are_those_of_open_clip():
    task = card("vision/imagenet")
    templates = [template("{}") for template in zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES]
    assert list(task.classes) == list(zero_shot_metadata.IMAGENET_CLASSNAMES)
    assert list(task.templates) == templates


@pytest.mark.parametrize("name", COUNTS)
def test_a_vision_suite_composes(name: str):
    suite = compose.resolve(compose.compose([f"suite={name}", "backbone=clip_vit_b32"])).suite
    assert len(suite.tasks) == COUNTS[name] and suite.tasks[:8] == EIGHT
    assert all(isinstance(task, ImageTask) for task in suite.definitions.values())


def test_two_suites_of_twenty_differ_in_what_their_authors_do():
    hub, tall = (
        compose.resolve(compose.compose([f"suite={name}", "backbone=clip_vit_b32"])).suite
        for name in ("vision20", "vision20_tall")
    )
    assert set(hub.tasks) ^ set(tall.tasks) == {"emnist_letters", "emnist_digits"}
    assert hub.definitions["cifar100"].classes[26] == "cra"
    assert tall.definitions["cifar100"].classes[26] == "crab"
    assert "['happy', 'smiling']" in tall.definitions["fer2013"].classes
    assert (
        hub.definitions["fer2013"].columns == ("jpg",) and hub.definitions["fer2013"].label == "cls"
    )
    assert hub.definitions["pcam"].splits["val"] is None
    assert hub.definitions["food101"].splits["test"] == "validation"


def test_one_task_is_told_in_three_ways():
    told = {}
    for folder in ("", "flan", "pairs"):
        suite = {"tasks": ["rte"], "cards": [folder] if folder else []}
        told[folder] = load_tasks(suite, TextSuite, [conf_dir()])["rte"]
    assert {task.path for task in told.values()} == {"nyu-mll/glue"}
    assert told["flan"].frame.endswith("Provide 'yes' or 'no'.") and told["flan"].words == (
        "yes",
        "no",
    )
    assert told["pairs"].frame == "{text} {pair}"
    with pytest.raises(UserError, match="unknown task 'rtee'; did you mean 'rte'"):
        load_tasks({"tasks": ["rtee"], "cards": ["flan"]}, TextSuite, [conf_dir()])


@pytest.mark.parametrize("count", [23, 60_000, 73_257, 12_345])
def test_each_rule_holds_out_what_its_code_does(count: int):
    rows = range(count)
    val = min(int(0.1 * count), 5000)
    seeded = torch.Generator().manual_seed(0)
    train_part, val_part = torch.utils.data.random_split(rows, [count - val, val], seeded)
    assert [part.tolist() for part in hold_out(count)] == [
        list(train_part.indices),
        list(val_part.indices),
    ]
    val = int(0.1 * count)
    seeded = torch.Generator().manual_seed(0)
    _, val_part = torch.utils.data.random_split(rows, [count - val, val], seeded)
    assert hold_out(count, "fusionbench")[1].tolist() == list(val_part.indices)
    data = datasets.Dataset.from_dict({"row": np.arange(count)})
    parts = data.train_test_split(test_size=0.9, seed=42)
    test, val = hold_out(count, "merge_and_rebase")
    assert test.tolist() == parts["test"]["row"] and val.tolist() == parts["train"]["row"]
    assert len(val) == held_out(count, "merge_and_rebase")


def test_the_first_training_image_of_mnist_is_the_authors():
    assert int(hold_out(60_000)[0][0]) == 36_044


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in {"train": 50, "test": 30}.items():
        world.write_split(tmp_path / "data" / f"{split}.parquet", "stripes", count, seed=count)
    (tmp_path / "task").mkdir()
    text = "path: ../data\ntemplates: ['a {}']\nfacts: {rows: {train: 50, test: 30}}\n"
    (tmp_path / "task" / "stripes.yaml").write_text(text)
    return tmp_path


def read(folder: Path, **suite) -> ImageTask:
    return load_tasks({"tasks": ["stripes"], **suite}, ImageSuite, [folder])["stripes"]


def test_a_rule_decides_which_rows_are_validation(folder: Path):
    task = read(folder, split_rule="merge_and_rebase")
    data = TaskData("stripes", task)
    rows = {split: set(data.read(split).rows.tolist()) for split in ("train", "val", "test")}
    assert len(rows["train"]) == 50 and len(rows["val"]) == 3 and len(rows["test"]) == 27
    assert rows["val"] | rows["test"] == set(range(30))
    assert data.table("val").files == data.table("test").files
    found = {split: describe("stripes", task, split) for split in ("train", "val", "test")}
    assert [("split_rule" in found[split]) for split in found] == [False, True, True]
    usual = read(folder)
    data = TaskData("stripes", usual)
    assert [len(data.read(split).rows) for split in ("train", "val", "test")] == [45, 5, 30]
    assert "split_rule" not in describe("stripes", usual, "val")
    other = describe("stripes", read(folder, split_rule="fusionbench"), "test")
    assert other == describe("stripes", usual, "test")


def test_another_number_of_rows_than_the_card_says_is_refused(folder: Path):
    world.write_split(folder / "data" / "test.parquet", "stripes", 29, seed=1)
    with pytest.raises(
        UserError, match="task stripes: test holds 29 rows, its card says 30; suite.ch"
    ):
        describe("stripes", read(folder), "test")
    assert describe("stripes", read(folder, check_counts=False), "test")["sha256"]


def test_a_task_without_a_copy_on_the_hub_says_how_to_make_it(tmp_path: Path):
    suite = {"tasks": ["ucf101"], "cards": ["atlas"]}
    task = load_tasks(suite, ImageSuite, [conf_dir()])["ucf101"]
    said = "task ucf101: no copy on the hub .* make FOLDER/ucf101 from the middle frames .*data_dir"
    with pytest.raises(UserError, match=said):
        describe("ucf101", task, "test")
    world.write_split(tmp_path / "ucf101" / "test.parquet", "stripes", 8, seed=3)
    mirrored = load_tasks({**suite, "data_dir": str(tmp_path)}, ImageSuite, [conf_dir()])["ucf101"]
    assert mirrored.folder == tmp_path / "ucf101"
