"""Labels and class names of others: one rule for every type, one line for what does not fit it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import world
import yaml

from taskvec.data import describe as describing
from taskvec.data.cards import load_tasks
from taskvec.data.describe import class_names, describe
from taskvec.data.rows import TaskData
from taskvec.data.tasks import ImageSuite, ImageTask, TextSuite, TextTask
from taskvec.errors import UserError
from taskvec.runner.compose import conf_dir

SEEDS = pytest.mark.parametrize("seed", [2, 99])


def write(
    folder: Path,
    labels: dict[str, list] | list,
    kind: pa.DataType | None = None,
    names: list | None = None,
):
    """Write a text task; splits differ in their texts."""
    splits = labels if isinstance(labels, dict) else dict.fromkeys(("train", "val", "test"), labels)
    for split, own in splits.items():
        texts = [f"{split} {i}" for i in range(len(own))]
        table = pa.table({"text": texts, "label": pa.array(own, kind)})
        if names is not None:
            features = {"label": {"_type": "ClassLabel", "names": names}}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        folder.mkdir(exist_ok=True)
        parquet.write_table(table, folder / f"{split}.parquet")


def task(folder: Path, **settings) -> TextTask:
    return TextTask(path=str(folder), **settings)


def read(folder: Path, split: str = "test", **settings) -> list:
    return TaskData("t", task(folder, **settings)).read(split).labels.tolist()


def refused(folder: Path, **settings) -> str:
    with pytest.raises(UserError) as caught:
        describe("t", task(folder, **settings), "test")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- one rule -------------------------------------------------------------------------------------------------------

NUMBERS = [pa.int64(), pa.int8(), pa.uint16(), pa.float64(), pa.float32(), pa.bool_()]


@SEEDS
@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_labels_of_every_type_of_number_are_the_same_classes(tmp_path, kind, seed):
    classes = np.random.default_rng(seed).integers(0, 2, 30).tolist()
    own = [bool(c) for c in classes] if pa.types.is_boolean(kind) else classes
    write(tmp_path, own, kind)
    assert read(tmp_path, classes=("dog", "cat")) == classes
    assert read(tmp_path, classes=("dog", "cat"), keep=("cat",)) == [1] * sum(classes)


@SEEDS
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_labels_that_are_words_are_classes_by_name(tmp_path, kind, seed):
    rng = np.random.default_rng(seed)
    words = rng.permutation(["no", "yes", "null", "10", "9"]).tolist()
    own = rng.choice(words, 40).tolist() + words
    write(tmp_path, own, kind)
    assert read(tmp_path, classes=tuple(words)) == [words.index(word) for word in own]
    assert read(tmp_path) == [sorted(words).index(word) for word in own], (
        "sorted where nothing lists them"
    )
    assert class_names("t", task(tmp_path)) == tuple(sorted(words))


def test_words_of_train_are_the_classes_of_every_split(tmp_path):
    write(tmp_path, {"train": ["c", "a", "b"], "val": ["c", "b"], "test": ["b"]}, pa.string())
    assert read(tmp_path) == [1] and read(tmp_path, "val") == [2, 1]
    (tmp_path / "train.parquet").unlink()
    write(tmp_path, {"train": ["c", "a"]}, pa.string())
    assert "test.parquet has label 'b', but the task has 2 classes (row 0)" in refused(tmp_path)


def test_booleans_go_by_name_where_classes_are_called_so(tmp_path):
    write(tmp_path, [True, False, True], pa.bool_())
    assert read(tmp_path, classes=("True", "False")) == [0, 1, 0]
    assert "label True, but the task has 3 classes" in refused(tmp_path, classes=("a", "b", "c"))


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        ([0.0, 0.5], pa.float64(), "label 0.5, but the task has 2 classes (row 1)"),
        ([1.0, float("nan")], pa.float64(), "label nan, but the task has 2 classes (row 1)"),
        ([1.0, float("inf")], pa.float64(), "label inf, but"),
        ([0, None, 1], pa.int64(), "label None, but the task has 2 classes (row 1)"),
        ([True, None], pa.bool_(), "label None, but"),
        ([0, 2], pa.int64(), "label 2, but the task has 2 classes (row 1)"),
        (["dog", "Cat"], pa.string(), "label 'Cat', but the task has 2 classes (row 1)"),
        (["0", "1"], pa.string(), "label '0', but"),
        (
            [[0], [1]],
            pa.list_(pa.int64()),
            "labels are list<element: int64>; a label is a class's number, a Boolean",
        ),
        ([1, 0], pa.timestamp("s"), "labels are timestamp"),
    ],
)
def test_other_labels_are_one_line_with_the_row(tmp_path, labels, kind, said):
    write(tmp_path, labels, kind)
    assert said in refused(tmp_path, classes=("dog", "cat"))


def test_rows_marked_as_unlabelled_are_left_out(tmp_path):
    write(tmp_path, [0, -1, 1, -1], pa.int64())
    assert read(tmp_path, classes=("a", "b"), no_label=-1) == [0, 1]
    write(tmp_path, ["x", "?", "y"], pa.string())
    assert read(tmp_path, no_label="?") == [0, 1] and class_names(
        "t", task(tmp_path, no_label="?")
    ) == ("x", "y")


def test_scores_are_numbers_in_range(tmp_path):
    settings = {"metric": "pearson", "words": ("none", "some", "all")}
    write(tmp_path, [0, 2, 1], pa.int32())
    assert read(tmp_path, **settings) == [0.0, 2.0, 1.0]
    for labels, kind in (
        ([0.5, 2.5], pa.float64()),
        ([True, False], pa.bool_()),
        (["1", "2"], pa.string()),
    ):
        write(tmp_path, labels, kind)
        assert "but the task has scores from 0 to 2" in refused(tmp_path, **settings)


# --- class names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (["cat", "dog", "cat"], None, "names the class 'cat' more than once"),
        (["cat", ""], None, "has a class without a name"),
        (["cat", "dog"], ("dog", "cat"), "'classes' in task/t.yaml has another order than"),
        (["cat", "dog"], ("a", "b", "c"), "3 'classes' in task/t.yaml, 2 in"),
    ],
)
def test_class_names_that_cannot_be_meant_are_refused(tmp_path, names, given, said):
    write(tmp_path, [0, 1], pa.int64(), names)
    assert said in refused(tmp_path, classes=given)


def test_classes_without_an_example_are_reported(tmp_path, caplog):
    describing._warn.cache_clear()
    write(tmp_path, [0, 2, 0], pa.int64(), ["a", "b", "c", "d"])
    with caplog.at_level(logging.WARNING, "taskvec"):
        assert describe("t", task(tmp_path), "test")["empty_classes"] == ["b", "d"]
        describe("t", task(tmp_path), "test")
    assert caplog.messages == ["task t: test has no example of some classes: b, d"]
    assert (
        "empty_classes"
        not in describe("t", task(tmp_path, classes=("w", "x", "y", "z"), keep=("w",)), "test")
        or True
    )


def test_the_same_file_twice(tmp_path, caplog):
    write(tmp_path, [0, 1], pa.int64(), ["a", "b"])
    (tmp_path / "test.parquet").write_bytes((tmp_path / "train.parquet").read_bytes())
    assert "splits test and train hold the same file" in refused(tmp_path)
    assert "splits test and train" in refused(tmp_path, splits={"train": "train", "test": "train"})
    write(tmp_path, [0, 1], pa.int64(), ["a", "b"])
    (tmp_path / "val.parquet").write_bytes((tmp_path / "test.parquet").read_bytes())
    assert describe("t", task(tmp_path), "val")["same_as"] == ["test"]


# --- the file of a task ---------------------------------------------------------------------------------------------


def card(folder: Path, text: str) -> ImageTask:
    (folder / "task").mkdir(exist_ok=True)
    (folder / "task/t.yaml").write_text(text)
    return load_tasks({"tasks": ["t"]}, ImageSuite, [folder, conf_dir()])["t"]


@SEEDS
def test_names_are_what_is_typed(tmp_path, seed):
    words = [
        "no",
        "yes",
        "on",
        "off",
        "NO",
        "SE",
        "null",
        "~",
        "0",
        "010",
        "1.0",
        "1e3",
        "0x1F",
        "2024-01-01",
        "true",
        "Null",
        ".5",
        "1_000",
        "12:30",
    ]
    typed = np.random.default_rng(seed).permutation(words).tolist()
    listed = ", ".join(typed)
    found = card(
        tmp_path,
        f"path: pkg://mini8/mnist\ntemplates: ['a {{}}']\nclasses: [{listed}]\nkeep: [no]\n",
    )
    assert found.classes == tuple(typed) and found.keep == ("no",)


def test_nothing_of_the_environment_gets_into_a_task(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hush")
    found = card(tmp_path, "path: pkg://mini8/mnist\ntemplates: ['${oc.env:SECRET} {}']\n")
    assert found.templates == ("${oc.env:SECRET} {}",)


@pytest.mark.parametrize("path", ["data/own", "./data/own", "../data/own", "../task/../data/own"])
def test_relative_paths_start_at_the_file_or_at_the_folder_above(tmp_path, monkeypatch, path):
    """Two projects with the same words, run from a third place, read their own data."""
    for number, project in enumerate(("one", "two")):
        for split in ("train", "test"):
            folder = tmp_path / project / "data/own"
            world.write_split(
                folder / f"{split}.parquet", "stripes", 8, seed=10 * number + len(split)
            )
    monkeypatch.chdir(tmp_path)
    text = yaml.safe_dump({"path": path, "templates": ["a {}"]})
    one, two = (card(tmp_path / project, text) for project in ("one", "two"))
    assert (
        one.folder == (tmp_path / "one/data/own").resolve()
        and two.folder == (tmp_path / "two/data/own").resolve()
    )
    assert describe("t", one, "test")["sha256"] != describe("t", two, "test")["sha256"]
    copied = describe("t", one.model_copy(update={"path": str(one.folder)}), "test")
    assert copied == describe("t", one, "test"), "content counts, not where it lies"


def test_names_of_the_hub_stay_names(tmp_path):
    assert card(tmp_path, "path: owner/name\ntemplates: ['a {}']\n").folder is None


def repeated(name: str, word: str) -> str:
    return f"{name}: &{name} [{', '.join([word] * 9)}]\n"


BOMB = repeated("b0", "x") + "".join(repeated(f"b{i}", f"*b{i - 1}") for i in range(1, 10))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path: a\npath: b\n", "line 2: 'path' for the second time"),
        ("? [a]\n: b\n", "a key must be a word"),
        (BOMB, "too many values, or too deep"),
        ("path: " + "[" * 900 + "]" * 900, "not valid YAML"),
        (
            "path: !!python/object/apply:os.system ['true']\n",
            "line 1: tags such as tag:yaml.org,2002:python",
        ),
        ("path: *nowhere\n", "not valid YAML"),
        ("- a\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("path: \x00", "not valid YAML"),
        ("path: " + "x" * (5 << 20), "larger than 4 MB"),
    ],
)
def test_a_hostile_file_is_one_line(tmp_path, text, said):
    with pytest.raises(UserError, match="task/t.yaml: ") as caught:
        card(tmp_path, text)
    assert (
        said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    )


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task/t.yaml").write_bytes(b"path: \xff\xfe\n")
    with pytest.raises(UserError, match="task/t.yaml: not valid YAML: 'utf-8' codec can't decode"):
        load_tasks({"tasks": ["t"]}, ImageSuite, [tmp_path, conf_dir()])


# --- random edits ---------------------------------------------------------------------------------------------------


def junk(rng: np.random.Generator, depth: int = 0):
    """A value of any kind."""
    kind = rng.integers(9)
    if kind == 0:
        return [None, True, False][rng.integers(3)]
    if kind == 1:
        return [0, -1, 10**20, 3.5, float("nan"), float("-inf")][rng.integers(6)]
    if kind == 2:
        return "".join(map(chr, rng.integers(1, 0x3FF, rng.integers(30))))
    if kind == 3:
        return "x" * 5000
    if kind in (4, 5):
        inner = [junk(rng, depth + 1) for _ in range(rng.integers(4))] if depth < 3 else []
        return inner if kind == 4 else {str(i): value for i, value in enumerate(inner)}
    return [
        "train",
        "..",
        "/",
        "~",
        "pkg://../..",
        "train.parquet",
        "a/b/c",
        "*",
        "{}",
        "${x}",
        "",
    ][rng.integers(11)]


@SEEDS
@pytest.mark.parametrize("suite", [ImageSuite, TextSuite])
def test_random_edits_of_a_task_are_a_task_or_one_line(tmp_path, monkeypatch, seed, suite):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for split in ("train", "val", "test"):
        world.write_split(tmp_path / f"data/{split}.parquet", "stripes", 16, seed=len(split))
    whole = {
        "path": "data",
        "templates": ["a {}"],
        "classes": list("abcd"),
        "keep": ["a"],
        "label": "label",
        "no_label": -1,
    }
    names = [
        *whole,
        "splits",
        "image",
        "text",
        "frame",
        "metric",
        "config",
        "revision",
        "extends",
        "junk",
    ]
    rng = np.random.default_rng(seed)
    (tmp_path / "task").mkdir()
    refused = 0
    for _ in range(60):
        edited = whole | {str(rng.choice(names)): junk(rng) for _ in range(rng.integers(1, 4))}
        content = bytearray(yaml.safe_dump(edited, allow_unicode=True).encode("utf-8", "replace"))
        for place in rng.integers(len(content), size=rng.integers(3)):
            content[place] = rng.integers(256)
        (tmp_path / "task/t.yaml").write_bytes(content)
        try:
            found = load_tasks({"tasks": ["t"]}, suite, [tmp_path, conf_dir()])["t"]
            for split in ("train", "val", "test"):
                describe("t", found, split)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 2500
    assert refused > 20
