"""What planning remembers of local data: whatever changes, it says what a reading without memory says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import world
from test_formats import (
    CLASSES,
    WRITERS,
    Split,
    csv_of_paths,
    image_folder,
    json_lines_of_paths,
    one_parquet,
    parquet_of_paths,
    task,
)

from taskvec.data import describe as module
from taskvec.data import files, texts
from taskvec.data.describe import class_names, describe
from taskvec.data.rows import TaskData
from taskvec.data.tasks import Corpus, Task, TextTask
from taskvec.errors import UserError

SPLITS = ("train", "val", "test")
NAME_IMAGES = (csv_of_paths, json_lines_of_paths, parquet_of_paths)


@pytest.fixture(params=[5, 7130])
def rows(request: pytest.FixtureRequest) -> dict[str, Split]:
    rng = np.random.default_rng(request.param)
    found = {}
    for split, count in (("train", 23), ("val", 7), ("test", 11)):
        labels = sorted([*CLASSES, *rng.choice(CLASSES, count - 3).tolist()])
        images = rng.integers(0, 256, (count, 6, 5, 3)).astype(np.uint8)
        found[split] = [
            (label, world.png(image)) for label, image in zip(labels, images, strict=True)
        ]
    return found


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch) -> Path:
    """The folder of what is remembered; files written a moment ago count as settled."""
    folder = tmp_path / "assets"
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(folder))
    monkeypatch.setattr(files, "SETTLED_NS", -1)
    return folder


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The splits and classes that are read from files, as it goes on."""
    found: list[str] = []
    read = TaskData.read

    def noting(data: TaskData, split: str) -> Any:
        found.append(split)
        return read(data, split)

    monkeypatch.setattr(TaskData, "read", noting)
    return found


def said(of: Task) -> list[Any]:
    """What planning is told, errors among it."""
    asked: list[Callable[[], Any]] = [lambda: class_names("t", of)]
    asked += [lambda split=split: describe("t", of, split) for split in SPLITS]
    found = []
    for ask in asked:
        try:
            found.append(ask())
        except UserError as error:
            found.append(str(error))
    return found


def afresh(of: Task, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Any]:
    """The same with an empty memory."""
    files._hashed.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_ASSETS_CACHE", str(folder))
        found = said(of)
    shutil.rmtree(folder, ignore_errors=True)
    return found


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_files_seen_before_are_not_read_unless_they_name_others(tmp_path, rows, write, reads):
    (tmp_path / "data").mkdir()
    for split in SPLITS:
        write(tmp_path / "data", split, rows[split])
    first = said(task(tmp_path / "data"))
    assert reads == list(SPLITS) and not any(isinstance(told, str) for told in first)
    assert said(task(tmp_path / "data")) == first
    # images that a table names are no files of which planning knows before it has read the table
    again = SPLITS if write in NAME_IMAGES else ()
    assert reads == [*SPLITS, *again]


def other_names(folder: Path, rows: dict[str, Split], place: str = "") -> None:
    """Another class in files as long and as old as before."""
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        before = path.stat()
        cells = [{"bytes": png, "path": None} for _, png in rows[split]]
        labels = [CLASSES.index(label) for label, _ in rows[split]]
        world.write_table(folder / place / path.name, cells, labels, [*CLASSES[:2], "bear"])
        new = folder / place / path.name
        assert new.stat().st_size == before.st_size
        os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(folder: Path, rows: dict[str, Split]) -> None:
    """Files of the same size and age put in the places of others."""
    other_names(folder, rows, "elsewhere")
    for path in (folder / "elsewhere").iterdir():
        path.replace(folder / path.name)


def validation_gone(folder: Path, rows: dict[str, Split]) -> None:
    (folder / "val.parquet").unlink()


def twins(folder: Path, rows: dict[str, Split]) -> None:
    shutil.copy2(folder / "train.parquet", folder / "val.parquet")


def two_formats(folder: Path, rows: dict[str, Split]) -> None:
    (folder / "train.csv").write_text("image,label\n")


def train_gone(folder: Path, rows: dict[str, Split]) -> None:
    (folder / "train.parquet").unlink()


CHANGES = [other_names, replaced, validation_gone, twins, two_formats, train_gone]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_files_is_seen(tmp_path, rows, change, monkeypatch):
    folder = tmp_path / "data"
    for split in SPLITS:
        one_parquet(folder, split, rows[split])
    before = said(task(folder))
    change(folder, rows)
    after = said(task(folder))
    assert after == afresh(task(folder), monkeypatch, tmp_path / "none") != before


CARDS = [
    {"classes": ("x", "y", "z")},
    {"classes": (CLASSES[1], CLASSES[0], CLASSES[2])},
    {"keep": (CLASSES[2],)},
    {"no_label": 1},
    {"label": "other"},
    {"splits": {"train": "train", "val": None, "test": "test"}},
    {"splits": {"train": "train", "val": None, "test": "test"}, "split_rule": "fusionbench"},
    {"splits": {"train": "train", "test": "test"}, "split_rule": "merge_and_rebase"},
    {"splits": {"train": "val", "val": "train", "test": "test"}},
    {"facts": {"rows": {"train": 7}}},
]


@pytest.mark.parametrize("card", CARDS, ids=str)
def test_a_change_of_the_card_is_seen(tmp_path, rows, card, monkeypatch):
    folder = tmp_path / "data"
    for split in SPLITS:
        one_parquet(folder, split, rows[split])
        table = parquet.read_table(folder / f"{split}.parquet")
        zeros = pa.array([0] * (len(table) - 1) + [2])
        parquet.write_table(table.append_column("other", zeros), folder / f"{split}.parquet")
    plain, changed = task(folder), task(folder, **card)
    before = said(plain)
    after = said(changed)
    assert after == afresh(changed, monkeypatch, tmp_path / "none") != before
    assert said(plain) == before and said(changed) == after


def test_a_change_in_a_folder_of_images_is_seen(tmp_path, rows, monkeypatch):
    folder = tmp_path / "data"
    for split in SPLITS:
        image_folder(folder, split, rows[split])
    told = [said(task(folder))]
    first, second = sorted((folder / "test" / CLASSES[2]).iterdir())[0], folder / "test" / "wolf"
    # a picture in place of another, one in another class, a class without any
    first.write_bytes(rows["train"][0][1])
    told.append(said(task(folder)))
    first.rename(folder / "test" / CLASSES[0] / "moved.png")
    told.append(said(task(folder)))
    (second.parent / "empty").mkdir()
    told.append(said(task(folder)))
    assert told[-1] == afresh(task(folder), monkeypatch, tmp_path / "none")
    assert len({str(one) for one in told}) == len(told)


def test_texts_and_corpora_are_remembered_too(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, label in (("train", "no"), ("val", "yes"), ("test", "no")):
        (folder / f"{split}.csv").write_text(f"text,label\n{split},yes\nb,no\n{split} c,{label}\n")
    reviews = TextTask(path=str(folder))
    corpus = Corpus(path=str(folder), file="train")
    before = [*said(reviews), describe("t", corpus, "val")]
    with monkeypatch.context() as patch:
        patch.setattr(texts, "check_texts", None)
        patch.setattr(texts, "corpus_table", None)
        assert [*said(reviews), describe("t", corpus, "val")] == before
    (folder / "train.csv").write_text("text,label\ntrain,yes\n ,no\n")
    assert "holds no text" in said(reviews)[1]
    assert describe("t", corpus, "val") != before[-1]


def test_what_may_not_hold_is_read_again(tmp_path, rows, memory, reads, monkeypatch):
    folder = tmp_path / "data"
    for split in SPLITS:
        one_parquet(folder, split, rows[split])
    first = said(task(folder))
    records = list(memory.rglob("*.json"))
    assert len(records) == 4
    for number, damage in enumerate((b"", b"[]", b'{"state":1}', None), start=2):
        for record in records:
            whole = record.read_bytes()
            # what stands in the record changes, and its form does not
            record.write_bytes(whole.replace(b"a", b"b") if damage is None else damage)
        assert said(task(folder)) == first and len(reads) == 3 * number
    monkeypatch.setattr(module, "code_version", lambda: "other code")
    assert said(task(folder)) == first and len(reads) == 18
    shutil.rmtree(memory)
    memory.write_text("a cache that cannot be written")
    assert said(task(folder)) == said(task(folder)) == first and len(reads) == 24
    memory.unlink()
    monkeypatch.setattr(files, "SETTLED_NS", 3600 * 10**9)
    assert said(task(folder)) == first and not memory.exists()
