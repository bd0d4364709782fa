"""The same examples in every format that is read are the same decoded split; what cannot be read is one line."""

from __future__ import annotations

import csv
import io
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import world
from PIL import Image

from taskvec.data.describe import class_names, describe
from taskvec.data.images import decode_split
from taskvec.data.splits import hold_out
from taskvec.data.tasks import Corpus, ImageTask, TextTask
from taskvec.data.texts import tokenise_corpus, tokenise_split
from taskvec.data.views import View
from taskvec.errors import UserError

PREPROCESSING = {"size": (8, 8), "interpolation": "bicubic", "resize_mode": "shortest"}
COUNTS = {"train": 31, "val": 9, "test": 14}
CLASSES = ("a cat", "dog", "wolf")
Split = list[tuple[str, bytes]]  # class and PNG of each image, sorted by class as folders are


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets.disable_progress_bars()


@pytest.fixture(scope="module", params=[8, 4021])
def splits(request: pytest.FixtureRequest) -> dict[str, Split]:
    rng = np.random.default_rng(request.param)
    found = {}
    for split, count in COUNTS.items():
        labels = sorted([*CLASSES, *rng.choice(CLASSES, count - 3).tolist()])
        found[split] = [
            (label, world.png(rng.integers(0, 256, (11, 9, 3)).astype(np.uint8)))
            for label in labels
        ]
    return found


# --- writers --------------------------------------------------------------------------------------------------------


def one_parquet(folder: Path, split: str, rows: Split) -> None:
    cells = [{"bytes": png, "path": None} for _, png in rows]
    world.write_table(
        folder / f"{split}.parquet", cells, [CLASSES.index(c) for c, _ in rows], list(CLASSES)
    )


def five_parquets(folder: Path, split: str, rows: Split) -> None:
    for number, part in enumerate(np.array_split(np.arange(len(rows)), 5)):
        one_parquet(folder / "data", f"{split}-{number:05d}-of-00005", [rows[i] for i in part])


def folder_of_parquets(folder: Path, split: str, rows: Split) -> None:
    for number, part in enumerate(np.array_split(np.arange(len(rows)), 11)):
        one_parquet(folder / split, f"part-{number}", [rows[i] for i in part])


def bare_bytes(folder: Path, split: str, rows: Split) -> None:
    """As pandas writes a frame of bytes and words, in row groups of four."""
    table = pa.table({"image": [png for _, png in rows], "label": [c for c, _ in rows]})
    parquet.write_table(table, folder / f"{split}.parquet", row_group_size=4)


def image_folder(folder: Path, split: str, rows: Split) -> None:
    for number, (label, png) in enumerate(rows):
        path = folder / split / label / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    (folder / split / ".DS_Store").write_bytes(b"")


def csv_of_paths(folder: Path, split: str, rows: Split) -> None:
    image_folder(folder / "images", split, rows)
    with (folder / f"{split}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        writer.writerows(
            [f"images/{split}/{label}/{i:03d}.png", label] for i, (label, _) in enumerate(rows)
        )


def json_lines_of_paths(folder: Path, split: str, rows: Split) -> None:
    image_folder(folder / "images", split, rows)
    lines = []
    for i, (label, _) in enumerate(rows):
        path = str(folder / "images" / split / label / f"{i:03d}.png")
        lines.append(json.dumps({"image": {"bytes": None, "path": path}, "label": label}))
    (folder / f"{split}.jsonl").write_text("\n".join(lines))


def loaded(folder: Path, split: str, rows: Split) -> datasets.Dataset:
    image_folder(folder / "images", split, rows)
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(folder / "images" / split), cache_dir=str(folder / "cache")
    )
    return found["train"]


def saved_by_datasets(folder: Path, split: str, rows: Split) -> None:
    loaded(folder / "source", split, rows).save_to_disk(str(folder / split))


def parquet_of_paths(folder: Path, split: str, rows: Split) -> None:
    """What `to_parquet` of an image folder writes: paths, and null in place of bytes."""
    loaded(folder, split, rows).to_parquet(str(folder / f"{split}.parquet"))


WRITERS: list[Callable[[Path, str, Split], None]] = [
    one_parquet, five_parquets, folder_of_parquets, bare_bytes, image_folder, csv_of_paths, json_lines_of_paths,
    saved_by_datasets, parquet_of_paths,
]  # fmt: skip


def task(folder: Path, **settings) -> ImageTask:
    return ImageTask(**{"path": str(folder), "templates": ("a {}",)} | settings)


def content(folder: Path, split: str, **settings) -> tuple[torch.Tensor, list[int]]:
    view = View.of(
        decode_split("t", task(folder, **settings), split, PREPROCESSING), name=f"t/{split}"
    )
    return view.take(slice(None)), view.labels().tolist()


def expected(rows: Split) -> torch.Tensor:
    """Decoded by PIL alone."""
    found = []
    for _, png in rows:
        image = Image.open(io.BytesIO(png)).convert("RGB").resize((8, 9), Image.Resampling.BICUBIC)
        found.append(torch.from_numpy(np.asarray(image)[:8].copy()))
    return torch.stack(found).permute(0, 3, 1, 2)


# --- the same in every format ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_format_gives_the_same_split(tmp_path, splits, write):
    for split, rows in splits.items():
        write(tmp_path, split, rows)
    assert class_names("t", task(tmp_path)) == CLASSES
    for split, rows in splits.items():
        images, labels = content(tmp_path, split)
        assert torch.equal(images, expected(rows)), split
        assert labels == [CLASSES.index(label) for label, _ in rows]
        assert describe("t", task(tmp_path), split)["held_out_of_train"] is False
    kept, labels = content(tmp_path, "test", keep=("wolf", "a cat"))
    chosen = [place for place, (label, _) in enumerate(splits["test"]) if label != "dog"]
    assert torch.equal(kept, expected(splits["test"])[chosen]) and set(labels) == {0, 2}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_missing_validation_split_is_held_out_of_train_and_said(tmp_path, splits, write):
    for split in ("train", "test"):
        write(tmp_path, split, splits[split])
    whole = expected(splits["train"])
    train, val = (part.sort().values for part in hold_out(len(whole)))
    assert torch.equal(content(tmp_path, "train")[0], whole[train])
    assert torch.equal(content(tmp_path, "val")[0], whole[val])
    found = {split: describe("t", task(tmp_path), split) for split in COUNTS}
    assert [found[split]["held_out_of_train"] for split in COUNTS] == [True, True, False]
    assert found["train"]["labels_sha256"] != found["val"]["labels_sha256"]
    write(tmp_path, "validation", splits["val"])  # another usual name
    assert torch.equal(content(tmp_path, "val")[0], expected(splits["val"]))
    assert torch.equal(content(tmp_path, "train")[0], whole)
    assert torch.equal(
        content(tmp_path, "val", splits={"train": "train", "val": None, "test": "test"})[0],
        whole[val],
    )


def test_classes_rename_folders_or_list_them_in_another_order(tmp_path, splits):
    for split, rows in splits.items():
        image_folder(tmp_path, split, rows)
    order = [CLASSES.index(label) for label, _ in splits["test"]]
    assert content(tmp_path, "test", classes=("w", "x", "y"))[1] == order
    turned = ("wolf", "a cat", "dog")
    assert content(tmp_path, "test", classes=turned)[1] == [
        turned.index(label) for label, _ in splits["test"]
    ]
    with pytest.raises(UserError, match="'classes' in task/t.yaml lacks dog, which "):
        describe("t", task(tmp_path, classes=("wolf", "a cat", "Dog")), "test")


def test_a_split_may_lack_a_class_of_train(tmp_path, splits):
    for split, rows in splits.items():
        image_folder(tmp_path, split, rows)
    shutil.rmtree(tmp_path / "test/dog")
    rows = [row for row in splits["test"] if row[0] != "dog"]
    assert content(tmp_path, "test")[1] == [CLASSES.index(label) for label, _ in rows]
    assert describe("t", task(tmp_path), "test")["empty_classes"] == ["dog"]
    shutil.rmtree(tmp_path / "train/wolf")
    with pytest.raises(UserError, match="has label 'wolf', but the task has 2 classes"):
        describe("t", task(tmp_path), "test")


# --- identity is content --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write", [image_folder, csv_of_paths, json_lines_of_paths, parquet_of_paths]
)
def test_the_images_behind_paths_count(tmp_path, splits, write):
    for split, rows in splits.items():
        write(tmp_path, split, rows)
    before = describe("t", task(tmp_path), "test")
    assert before == describe("t", task(tmp_path), "test")
    image = sorted(tmp_path.rglob("test/*/*.png"))[5]
    image.write_bytes(splits["train"][0][1])
    assert describe("t", task(tmp_path), "test")["sha256"] != before["sha256"]
    image.unlink()
    if write is not image_folder:
        with pytest.raises(UserError, match=rf"^task t: no file {image} \("):
            describe("t", task(tmp_path), "test")


def test_the_class_of_a_folder_counts(tmp_path, splits):
    for split, rows in splits.items():
        image_folder(tmp_path, split, rows)
    before = describe("t", task(tmp_path), "test")
    last = sorted((tmp_path / "test/dog").iterdir())[-1]
    last.rename(tmp_path / "test/wolf/000.png")  # the same images in the same order, another label
    after = describe("t", task(tmp_path), "test")
    assert after["sha256"] == before["sha256"] and after["labels_sha256"] != before["labels_sha256"]


def test_where_files_lie_does_not_count(tmp_path, splits):
    for split, rows in splits.items():
        one_parquet(tmp_path / "a", split, rows)
        # Looks like partitions and patterns
        one_parquet(tmp_path / "label=3" / "x=y [z]*", split, rows)
    other = tmp_path / "label=3" / "x=y [z]*"
    assert describe("t", task(tmp_path / "a"), "test") == describe("t", task(other), "test")
    assert torch.equal(content(other, "test")[0], expected(splits["test"]))


# --- what cannot be read --------------------------------------------------------------------------------------------


def broken(folder: Path, splits: dict[str, Split], name: str) -> None:
    five_parquets(folder, "train", splits["train"])
    image_folder(folder, "val", splits["val"])
    one_parquet(folder, "test", splits["test"])
    train, val, test = (
        folder / "data/train-00003-of-00005.parquet",
        folder / "val",
        folder / "test.parquet",
    )
    stray = val / "dog/notes.txt"
    actions = {
        "missing part": train.unlink,
        "two sets": lambda: shutil.copy(train, folder / "data/train-00003-of-00004.parquet"),
        "two formats": lambda: (folder / "test.csv").write_text("image,label\n"),
        "other columns": lambda: parquet.write_table(
            parquet.read_table(train).drop_columns(["label"]), train
        ),
        "other names": lambda: one_parquet_named(train, ["x", "y", "z"]),
        "no image": lambda: stray.write_text(""),
        "loose image": lambda: shutil.copy(next((val / "dog").iterdir()), val),
        "empty class": lambda: (val / "fox").mkdir(),
        "no Parquet": lambda: test.write_bytes(b"PAR1 nonsense PAR1"),
        "two validations": lambda: image_folder(folder, "dev", splits["val"]),
    }
    actions[name]()


def one_parquet_named(path: Path, names: list[str]) -> None:
    table = parquet.read_table(path)
    world.write_table(path, table["image"].to_pylist(), table["label"].to_pylist(), names)


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        (
            "missing part",
            "train",
            r"1 of the 5 files beside .*train-00000-of-00005.parquet are missing: \[3\]",
        ),
        ("two sets", "train", "are of more than one set; keep one"),
        (
            "two formats",
            "test",
            r"both .*test.csv and .*test.parquet could be meant \(split 'test'\)",
        ),
        (
            "other columns",
            "train",
            "the columns of .*train-00003-of-00005.parquet are not those of .*train-00000",
        ),
        (
            "other names",
            "train",
            "train-00003-of-00005.parquet has other class names of 'label' than",
        ),
        ("no image", "val", r"val/dog/notes.txt is no image \(by its suffix\)"),
        ("loose image", "val", r"val/\d+.png is in no folder of a class"),
        ("empty class", "val", "val/fox holds no image"),
        ("no Parquet", "test", "test.parquet is not a readable Parquet file"),
        ("two validations", "val", "has val and dev; name one as splits.val"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_file(tmp_path, splits, name, split, said):
    broken(tmp_path, splits, name)
    with pytest.raises(UserError, match="^task t: .*" + said) as caught:
        describe("t", task(tmp_path), split)
    assert "\n" not in str(caught.value)


def test_a_truncated_image_is_named_with_its_file_and_row(tmp_path, splits):
    rows = splits["train"]
    rows = [*rows[:20], (rows[20][0], rows[20][1][:90]), *rows[21:]]
    for write in (five_parquets, image_folder):
        folder = tmp_path / write.__name__
        for split, own in (splits | {"train": rows}).items():
            write(folder, split, own)
        where = {
            "five_parquets": r"row \d of .*train-00003-of-00005.parquet",
            "image_folder": r".*/020.png",
        }
        said = rf"task t: train image 20 cannot be decoded: .*\({where[write.__name__]}\)"
        with pytest.raises(UserError, match=said):
            content(folder, "train")


# --- texts ----------------------------------------------------------------------------------------------------------

WORDS = [
    "NA",
    "null",
    "None",
    "2024-01-01",
    "0123",
    'say "hi", twice',
    "two\nlines",
    " spaced ",
    "ünï 文",
    "1e5",
    "true",
]


def pieces(texts: Path, split: str = "test", **settings) -> tuple[list[str], list]:
    read: list[str] = []

    def tokenise(examples):
        read.extend(text for _, text, _ in examples)
        return torch.zeros(len(examples), 1, dtype=torch.int32)

    found = tokenise_split("t", TextTask(path=str(texts), **settings), split, tokenise, framed=True)
    return read, found["labels"].tolist()


def as_parquet(path: Path, rows: list[dict]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))


def as_csv(path: Path, rows: list[dict]) -> None:
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_json(path: Path, rows: list[dict]) -> None:
    path.with_suffix(".json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_saved(path: Path, rows: list[dict]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(str(path))


@pytest.mark.parametrize("write", [as_parquet, as_csv, as_json, as_saved])
@pytest.mark.parametrize("labels", ["words", "numbers", "floats", "booleans", "scores"])
@pytest.mark.parametrize("seed", [6, 60])
def test_texts_and_labels_are_the_same_from_every_format(tmp_path, write, labels, seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, 600).tolist()
    given = {
        "words": ["null", "NA"],
        "numbers": [0, 1],
        "floats": [0.0, 1.0],
        "booleans": [False, True],
        "scores": [0.25, 1.5],
    }[labels]
    settings = {"classes": ("null", "NA")}
    if labels == "scores":
        settings = {"metric": "pearson", "words": ("no", "so", "yes")}
    wanted = {}
    for split in ("train", "test"):
        texts = [f"{split} {word}" for word in rng.choice(WORDS, 600).tolist()]
        wanted[split] = texts
        write(
            tmp_path / split,
            [{"text": t, "label": given[c]} for t, c in zip(texts, truth, strict=True)],
        )
    read, found = pieces(tmp_path, **settings)
    assert read == wanted["test"]
    assert found == ([given[c] for c in truth] if labels == "scores" else truth)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "test.csv",
            "text,label\nfine,0\nshort\n",
            "test.csv is damaged: line 3 has 1 cells, the header 2",
        ),
        (
            "test.csv",
            "text,text\na,b\n",
            "the first line of .*test.csv must name each column, once",
        ),
        ("test.csv", "", "the first line of .*test.csv must name each column, once"),
        (
            "test.csv",
            'text,label\n"never closed,0\n',
            "test.csv is damaged: unexpected end of data",
        ),
        ("test.csv", "text,label\n", "test.csv holds no examples"),
        ("test.csv", "text,label\n  ,0\n", "test row 0 holds no text"),
        ("test.csv", "text,label\nfine,\n", "has label '', but the task has 2 classes"),
        (
            "test.jsonl",
            '{"text": "a", "label": 0}\nnonsense\n',
            "test.jsonl is damaged: Expecting value",
        ),
        (
            "test.jsonl",
            "[1, 2]\n",
            "test.jsonl is damaged: line 1 is no JSON object; one object a line is read",
        ),
        (
            "test.jsonl",
            '{"text": "a", "label": 0}\n{"text": 3, "label": 1}\n',
            "mixes values of different types",
        ),
        (
            "test.jsonl",
            '{"text": "a", "label": 0}\n{"text": "b"}\n',
            "has label None, but the task has 2 classes",
        ),
        ("test.jsonl", "{}\n", r"has no column 'text' \(it has \)"),
        ("test.jsonl", '{"text": ' + "[" * 100_000 + "\n", "test.jsonl is damaged: "),
    ],
)
def test_malformed_text_files_are_one_line(tmp_path, name, text, said):
    as_csv(tmp_path / "train", [{"text": "a", "label": 0}])
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="^task t: .*" + said) as caught:
        describe("t", TextTask(path=str(tmp_path), classes=("a", "b")), "test")
    assert "\n" not in str(caught.value)


def test_an_encoding_that_is_not_utf8_is_one_line(tmp_path):
    as_csv(tmp_path / "train", [{"text": "a", "label": 0}])
    (tmp_path / "test.csv").write_bytes("text,label\ncafé,0\n".encode("latin-1"))
    with pytest.raises(UserError, match="test.csv is damaged: 'utf-8' codec can't decode"):
        describe("t", TextTask(path=str(tmp_path), classes=("a", "b")), "test")


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("shape", ["many", "one"])
def test_kilobytes_that_stand_for_a_gigabyte_are_refused_in_little_memory(tmp_path, codec, shape):
    """A thousand rows of a megabyte, coded as one; or one such cell that the codec alone shrinks."""
    megabytes = 1000 if shape == "many" else 90
    text = "a" * (1 << 20 if shape == "many" else megabytes << 20)
    texts = pa.DictionaryArray.from_arrays(
        pa.array([0] * (1000 if shape == "many" else 1), pa.int32()), pa.array([text])
    )
    for split in ("train", "test"):
        labels = pa.array([0] * len(texts))
        table = pa.table({"text": texts, "label": labels, "split": [split] * len(texts)})
        parquet.write_table(table, tmp_path / f"{split}.parquet", compression=codec)
    assert (tmp_path / "test.parquet").stat().st_size < 120_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = 64
    with pytest.raises(
        UserError, match=rf"texts of .*test.parquet take more than {limit} MB; set max_text_mb"
    ) as caught:
        describe("t", TextTask(path=str(tmp_path), classes=("a", "b"), max_text_mb=limit), "test")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10  # KiB


@pytest.mark.parametrize("write", [as_parquet, as_csv, as_json])
def test_a_corpus_is_read_from_every_format(tmp_path, write):
    documents = [f"page {i}" if i % 5 else "" for i in range(700)]
    write(tmp_path / "book", [{"text": text} for text in documents])
    corpus = Corpus(path=str(tmp_path), file="book")
    for start, split in enumerate(("val", "test")):
        read: list[str] = []

        def tokenise(examples, read=read):
            read.extend(text for _, text, _ in examples)
            return torch.zeros(len(examples), 1, dtype=torch.int32)

        found = tokenise_corpus("t", corpus, split, tokenise)
        assert read == [text for text in documents[start::2] if text] and len(
            found["inputs"]
        ) == len(read)
    with pytest.raises(UserError, match=r"take more than 1 MB"):
        write(tmp_path / "book", [{"text": "x" * 1000} for _ in range(1200)])
        describe("t", corpus.model_copy(update={"max_text_mb": 1}), "val")
