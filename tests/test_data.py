"""Splits, decoding and task files: golden indices, open_clip's transform bit for bit, the embedded suite, errors."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from itertools import combinations
from pathlib import Path

import datasets
import numpy as np
import open_clip
import pyarrow.parquet as parquet
import pytest
import torch
import world
import yaml
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from taskvec.data.cards import load_tasks
from taskvec.data.describe import class_names, describe
from taskvec.data.images import decode_split, resize_and_crop
from taskvec.data.pictures import upright_rgb
from taskvec.data.splits import hold_out
from taskvec.data.tasks import ASSETS, ImageSuite, ImageTask
from taskvec.data.views import View
from taskvec.errors import UserError
from taskvec.models.clip.backbone import ClipModel
from taskvec.runner.compose import conf_dir

# --- hold-out -------------------------------------------------------------------------------------------------------

GOLDEN = {  # spec 1.3: examples -> (held out, first training indices)
    60000: (5000, [36044, 10678, 57327]),
    8144: (814, [1836, 5427, 7021]),
    3760: (376, [3324, 3133, 895]),
    26640: (2664, [2204, 12703, 7241]),
    18900: (1890, [3644, 4869, 15117]),
    19850: (1985, [8094, 18520, 18607]),
    73257: (5000, [18812, 16192, 59530]),
    1281167: (5000, [1069931, 571398, 762430]),
}


@pytest.mark.parametrize("count", GOLDEN)
def test_the_hold_out_has_the_papers_sizes_and_indices(count):
    size, first = GOLDEN[count]
    train, val = hold_out(count)
    assert (len(train), len(val)) == (count - size, size)
    assert train[:3].tolist() == first


@pytest.mark.parametrize("count", [10, 11, 19, 3760, 49_999, 50_009, 60_000])
def test_the_hold_out_is_that_of_random_split(count):
    size = min(count // 10, 5000)
    generator = torch.Generator().manual_seed(0)
    expected = torch.utils.data.random_split(
        range(count), [count - size, size], generator=generator
    )
    train, val = (part.tolist() for part in hold_out(count))
    assert [part.indices for part in expected] == [train, val]
    assert sorted(train + val) == list(range(count))


# --- preprocessing --------------------------------------------------------------------------------------------------

SIZES = [
    (32, 32),
    (224, 224),
    (300, 200),
    (200, 300),
    (17, 90),
    (301, 299),
    (1, 1),
    (5, 3),
    (225, 223),
]
MODES = ["RGB", "L", "RGBA", "P", "LA", "1", "CMYK"]
TARGETS = [(32, 32), (33, 33), (224, 224), (24, 40), (48, 30)]


def picture(width: int, height: int, mode: str) -> Image.Image:
    """A random image of a mode, smooth and noisy in parts."""
    rng = np.random.default_rng([width, height, len(mode)])
    noise = rng.integers(0, 256, (height, width, 4))
    ramp = np.linspace(0, 255, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
    pixels = np.where(rng.random((height, width, 1)) < 0.5, noise, ramp).astype(np.uint8)
    return (
        Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)
        if mode != "RGBA"
        else Image.fromarray(pixels)
    )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda size: "x".join(map(str, size)))
def test_resizing_is_open_clips_evaluation_transform_bit_for_bit(
    target, resize_mode, interpolation
):
    settings = {"size": target, "resize_mode": resize_mode, "interpolation": interpolation}
    theirs = image_transform_v2(
        PreprocessCfg(**settings, mean=(0.0,) * 3, std=(1.0,) * 3), is_train=False
    )
    for width, height in SIZES:
        for mode in MODES:
            image = upright_rgb(picture(width, height, mode))
            ours = resize_and_crop(image, settings)
            assert ours.mode == "RGB"
            expected = (theirs(image) * 255).round().byte().permute(1, 2, 0).numpy()
            assert np.array_equal(np.asarray(ours), expected), (width, height, mode)


@pytest.mark.parametrize("seed", [0, 1])
def test_normalisation_is_open_clips_to_one_rounding(seed):
    rng = np.random.default_rng(seed)
    mean, std = rng.uniform(0.3, 0.6, 3).tolist(), rng.uniform(0.2, 0.3, 3).tolist()
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    theirs = image_transform_v2(PreprocessCfg(size=(32, 32), mean=mean, std=std), is_train=False)(
        image
    )
    model = ClipModel(torch.nn.Linear(1, 1), mean, std)
    ours = model.prepare(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])[0][0]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_an_unknown_resize_mode_is_named():
    with pytest.raises(UserError, match="resize_mode 'longest' is not supported"):
        resize_and_crop(
            picture(9, 9, "RGB"),
            {"size": (4, 4), "interpolation": "bicubic", "resize_mode": "longest"},
        )


# --- the embedded suite ---------------------------------------------------------------------------------------------

RAW = {"interpolation": "bicubic", "resize_mode": "shortest"}


def decoded(name: str, task: ImageTask, split: str, size: int) -> View:
    """The decoded split as a method sees it."""
    return View.of(
        decode_split(name, task, split, {"size": (size, size)} | RAW), name=f"{name}/{split}"
    )


MINI8 = ASSETS / "mini8"
EMBEDDED = sorted(path.parent.name for path in MINI8.glob("*/train.parquet"))
SPLITS = ("train", "val", "test")
SUITE = yaml.safe_load((conf_dir() / "suite" / "mini8.yaml").read_text())


@cache
def loaded(task: str) -> datasets.DatasetDict:
    files = {split: str(MINI8 / task / f"{split}.parquet") for split in SPLITS}
    return datasets.load_dataset("parquet", data_files=files, cache_dir=cache_folder)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    global cache_folder
    cache_folder = str(tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


def test_the_suite_has_eight_tasks_a_control_and_held_out_tasks():
    named = [*SUITE["tasks"], SUITE["control"], *SUITE["held_out"]]
    assert len(SUITE["tasks"]) == 8
    assert sorted(named) == EMBEDDED


def test_checksums_hold_for_every_file():
    sums = json.loads((MINI8 / "checksums.json").read_text())
    assert set(sums) == {str(path.relative_to(MINI8)) for path in MINI8.glob("*/*.parquet")}
    for name, digest in sums.items():
        assert hashlib.sha256((MINI8 / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("task", EMBEDDED)
def test_hugging_face_reads_every_split_with_its_features(task):
    data = loaded(task)
    names = data["test"].features["label"].names
    for split in SPLITS:
        features = data[split].features
        assert isinstance(features["image"], datasets.Image) and isinstance(
            features["label"], datasets.ClassLabel
        )
        assert features["label"].names == names
        assert len(set(names)) == len(names)
        assert set(data[split]["label"]) <= set(range(len(names)))
        first = data[split][0]["image"]
        assert first.size == (32, 32) and first.mode == "RGB"
    assert (MINI8 / task / "LICENSE.txt").stat().st_size > 100


@pytest.mark.parametrize("task", EMBEDDED)
def test_every_class_is_in_every_split(task):
    classes = len(loaded(task)["test"].features["label"].names)
    for split in SPLITS:
        assert set(loaded(task)[split]["label"]) == set(range(classes)), split


@pytest.mark.parametrize("task", SUITE["tasks"])
def test_every_task_is_large_enough_to_learn_select_and_report(task):
    sizes = {split: len(loaded(task)[split]) for split in SPLITS}
    assert sizes["train"] >= 1000 and sizes["val"] >= 300 and sizes["test"] >= 500, sizes


@pytest.mark.parametrize("task", EMBEDDED)
def test_no_image_is_in_two_splits(task):
    definition = load_tasks({"tasks": [task]}, ImageSuite, [conf_dir()])[task]
    seen: dict[str, set[bytes]] = {}
    for split in SPLITS:
        images = decoded(task, definition, split, 32).take(slice(None))
        seen[split] = {image.tobytes() for image in images.numpy()}
    shared = {f"{a} and {b}": len(seen[a] & seen[b]) for a, b in combinations(SPLITS, 2)}
    assert not any(shared.values()), shared


def tasks_of_images() -> list[str]:
    """The shipped tasks that have, or inherit, prompt templates."""
    nodes = {
        path.stem: yaml.safe_load(path.read_text())
        for path in sorted((conf_dir() / "task").glob("*.yaml"))
    }
    return [
        name for name, node in nodes.items() if "templates" in nodes.get(node.get("extends"), node)
    ]


@pytest.mark.parametrize("name", tasks_of_images())
def test_every_shipped_task_definition_fits_its_files(name):
    task = load_tasks({"tasks": [name]}, ImageSuite, [conf_dir()])[name]
    assert task.folder.parent == MINI8
    names = class_names(name, task)
    assert (
        len(set(names))
        == len(names)
        == len(loaded(task.folder.name)["test"].features["label"].names)
    )
    for split in SPLITS:
        described = describe(name, task, split)
        assert (
            described["sha256"]
            == hashlib.sha256((task.folder / f"{split}.parquet").read_bytes()).hexdigest()
        )
        labels = decoded(name, task, split, 32).labels().tolist()
        kept = range(len(names)) if task.keep is None else [names.index(c) for c in task.keep]
        assert labels == [
            label for label in loaded(task.folder.name)[split]["label"] if label in kept
        ]


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_task_has_a_definition_of_its_name(name):
    assert (
        load_tasks({"tasks": [name]}, ImageSuite, [conf_dir()])[name].path == f"pkg://mini8/{name}"
    )


# --- decoding a user's files ----------------------------------------------------------------------------------------


def cell(value: int) -> dict:
    """A Parquet cell with a constant image."""
    return {"bytes": world.png(np.full((8, 8, 3), value, np.uint8)), "path": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task of three splits whose images are constant and tell split and row."""
    for start, (split, count) in enumerate({"train": 50, "val": 10, "test": 20}.items()):
        labels = [i % 3 for i in range(count)]
        world.write_table(
            tmp_path / f"{split}.parquet",
            [cell(60 * start + i) for i in range(count)],
            labels,
            list("xyz"),
        )
    return tmp_path


def task(folder: Path, **settings) -> ImageTask:
    return ImageTask(**{"path": str(folder), "templates": ("a {}",)} | settings)


def decode(folder: Path, split: str, **settings) -> tuple[list[int], list[int]]:
    """Return the values of the constant images, and the labels."""
    view = decoded("t", task(folder, **settings), split, 8)
    images, labels = view.take(slice(None)), view.labels()
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8)
    assert labels.dtype == torch.int64
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist(), labels.tolist()


def test_rows_stay_in_order_with_their_labels(folder):
    assert decode(folder, "train") == (list(range(50)), [i % 3 for i in range(50)])
    assert decode(folder, "test") == (list(range(120, 140)), [i % 3 for i in range(20)])


def test_a_missing_val_split_is_held_out_of_train(folder):
    splits = {"train": "train", "val": None, "test": "test"}
    train, val = (sorted(part.tolist()) for part in hold_out(50))
    assert decode(folder, "train", splits=splits) == (train, [i % 3 for i in train])
    assert decode(folder, "val", splits=splits) == (val, [i % 3 for i in val])
    assert decode(folder, "test", splits=splits)[0] == list(range(120, 140))
    own, cut = (
        describe("t", task(folder), "train"),
        describe("t", task(folder, splits=splits), "train"),
    )
    assert own["sha256"] == cut["sha256"] and own != cut


def test_keep_restricts_the_examples_and_not_the_classes(folder):
    values, labels = decode(folder, "test", keep=("z", "x"))
    assert values == [120 + i for i in range(20) if i % 3 != 1]
    assert labels == [i % 3 for i in range(20) if i % 3 != 1]
    assert class_names("t", task(folder, keep=("z",))) == ("x", "y", "z")
    assert describe("t", task(folder, keep=("z",)), "test") != describe("t", task(folder), "test")


def test_keep_applies_after_the_hold_out(folder):
    splits = {"train": "train", "val": None, "test": "test"}
    expected = [i for i in sorted(hold_out(50)[0].tolist()) if i % 3 == 1]
    assert decode(folder, "train", splits=splits, keep=("y",))[0] == expected


def test_classes_replace_the_names(folder):
    assert class_names("t", task(folder, classes=("p", "q", "r"))) == ("p", "q", "r")


def test_split_names_are_file_names(folder):
    (folder / "train.parquet").rename(folder / "part-0.parquet")
    renamed = {"train": "part-0", "val": "val", "test": "test"}
    assert decode(folder, "train", splits=renamed)[0] == list(range(50))


def rewrite(
    folder: Path, images: list | None = None, labels: list | None = None, names: list | None = ()
) -> None:
    count = len(images or labels or range(3))
    images = [cell(i) for i in range(count)] if images is None else images
    labels = [i % 3 for i in range(count)] if labels is None else labels
    world.write_table(
        folder / "test.parquet", images, labels, list("xyz") if names == () else names
    )


def drop(folder: Path, column: str) -> None:
    table = parquet.read_table(folder / "test.parquet").drop_columns([column])
    parquet.write_table(table, folder / "test.parquet")


@pytest.mark.parametrize(
    ("damage", "settings", "message"),
    [
        (lambda f: drop(f, "image"), {}, r"test\.parquet has no column 'image' \(it has label\)"),
        (lambda f: drop(f, "label"), {}, r"test\.parquet has no column 'label' \(it has image\)"),
        (lambda f: None, {"image": "img"}, r"no column 'img' \(it has image, label\)"),
        (
            lambda f: rewrite(f, labels=[0, 1, 3]),
            {},
            r"test\.parquet has label 3, but the task has 3 classes",
        ),
        (
            lambda f: rewrite(f, labels=[0, -1, 2]),
            {},
            r"test\.parquet has label -1, but the task has 3 classes",
        ),
        (
            lambda f: rewrite(f, labels=[0, None, 2]),
            {},
            r"test\.parquet has label None, but the task has 3 classes",
        ),
        (
            lambda f: rewrite(f, names=None),
            {},
            r"no class names; give them as 'classes' in task/t\.yaml",
        ),
        (lambda f: rewrite(f, images=[], labels=[]), {}, r"test\.parquet holds no examples"),
        (
            lambda f: None,
            {"classes": ("a", "b")},
            r"2 'classes' in task/t\.yaml, 3 in .*test\.parquet",
        ),
        (
            lambda f: None,
            {"keep": ("x", "w", "v")},
            r"'keep' names unknown classes w, v \(it has x, y, z\)",
        ),
        (
            lambda f: (f / "test.parquet").write_bytes(b"PAR1"),
            {},
            r"test\.parquet is not a readable Parquet file",
        ),
        (lambda f: (f / "test.parquet").unlink(), {}, r"no test\.parquet in .* \(split 'test'\)"),
        (
            lambda f: None,
            {"path": "/nowhere/at/all"},
            r"no folder /nowhere/at/all; see 'path' in task/t\.yaml",
        ),
        (lambda f: None, {"path": "pkg://mini8/nothing"}, r"no folder .*mini8/nothing"),
        (
            lambda f: rewrite(f, labels=[0, 0, 0]),
            {"keep": ("y",)},
            r"split 'test' holds no examples",
        ),
    ],
)
def test_a_wrong_file_is_one_line_that_names_task_file_and_fault(folder, damage, settings, message):
    damage(folder)
    with pytest.raises(UserError, match=r"^task t: .*" + message) as caught:
        describe("t", task(folder, **settings), "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "broken",
    [{"bytes": b"not an image", "path": None}, {"bytes": cell(1)["bytes"][:45], "path": None}],
)
def test_an_image_that_cannot_be_decoded_is_named_by_its_row(folder, broken):
    rewrite(folder, images=[cell(0), cell(1), broken, cell(2)])
    with pytest.raises(UserError, match="task t: test image 2 cannot be decoded"):
        decode(folder, "test")


# --- task definitions -----------------------------------------------------------------------------------------------

GOOD = {"path": "pkg://mini8/mnist", "templates": ["a photo of {}"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"templates": ["a {}"]}, "task/t.yaml: path: Field required"),
        ({"path": "x"}, "task/t.yaml: templates: Field required"),
        (GOOD | {"templates": []}, "task/t.yaml: templates: .*at least 1 item"),
        (
            GOOD | {"templates": ["no slot"]},
            r"task/t.yaml: templates: template 'no slot' must contain \{\} exactly once",
        ),
        (GOOD | {"templates": ["{} and {}"]}, "must contain {} exactly once"),
        (GOOD | {"tempaltes": 1}, "task/t.yaml: tempaltes: .*did you mean 'templates'"),
        (GOOD | {"path": ""}, "task/t.yaml: path: .*at least 1 character"),
        (GOOD | {"splits": {"dev": "dev"}}, r"task/t.yaml: splits\.dev"),
        (GOOD | {"classes": "abc"}, "task/t.yaml: classes: .*tuple"),
        (GOOD | {"extends": "absent"}, "unknown task 'absent'"),
        (["a list"], "task/t.yaml: must be a mapping of keys to values"),
        ("path: [unclosed", "task/t.yaml: not valid YAML"),
    ],
)
def test_a_wrong_definition_is_one_line_that_names_file_and_key(tmp_path, text, message):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "t.yaml").write_text(
        text if isinstance(text, str) else yaml.safe_dump(text)
    )
    with pytest.raises(UserError, match=message) as caught:
        load_tasks({"tasks": ["t"]}, ImageSuite, [tmp_path, conf_dir()])
    assert "\n" not in str(caught.value)


def test_a_definition_extends_another_and_the_users_folder_comes_first(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "few.yaml").write_text("extends: mnist\nkeep: ['0', '1']\n")
    (tmp_path / "task" / "kana.yaml").write_text(yaml.safe_dump(GOOD))
    found = load_tasks(
        {"tasks": ["few"], "control": "kana", "held_out": ["mnist"]},
        ImageSuite,
        [tmp_path, conf_dir()],
    )
    assert found["few"].path == found["mnist"].path == found["kana"].path == "pkg://mini8/mnist"
    assert found["few"].templates == found["mnist"].templates
    assert found["few"].keep == ("0", "1") and found["mnist"].keep is None


def test_an_unknown_task_has_its_nearest_match():
    with pytest.raises(
        UserError, match=r"suite\.tasks: unknown task 'mnits'; did you mean 'mnist'\?"
    ):
        load_tasks({"tasks": ["mnits"]}, ImageSuite, [conf_dir()])


def test_open_clip_is_the_version_the_transform_was_read_from():
    assert open_clip.__version__.split(".")[0] == "3"
