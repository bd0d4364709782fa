"""The artefact store: damage is detected, named and repaired; a change computes again exactly what depends on it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import forked
import pytest
import world

from taskvec import cli
from taskvec.finetune.full import Full
from taskvec.graph.artefact import Node
from taskvec.graph.nodes.answer import AnswerNode
from taskvec.graph.nodes.base import Base
from taskvec.graph.nodes.composition import CompositionNode
from taskvec.graph.nodes.examples import Decoded, Rows
from taskvec.graph.nodes.head import InitialHead
from taskvec.graph.nodes.vector import TunedVector
from taskvec.graph.plan import Plan
from taskvec.graph.result import read_result
from taskvec.graph.run import RunConfig
from taskvec.graph.store import CorruptError, Store
from taskvec.merge.task_arithmetic import TaskArithmetic
from taskvec.models.clip.backbone import Clip
from taskvec.protocols.addition import Addition
from taskvec.protocols.negation import Negation
from taskvec.protocols.questions.scores import Scores
from taskvec.runner import compose
from taskvec.runner.folder import RunFolder, run_id

DAMAGES = ("empty", "half", "bit")


@pytest.fixture
def config(tiny, monkeypatch) -> Callable[..., RunConfig]:
    """Compose a run in the tiny world, or in a copy of it."""

    def composed(*overrides: str, include: Path = tiny) -> RunConfig:
        monkeypatch.setenv("TASKVEC_INCLUDE", str(include))
        compose.register_all()
        return compose.resolve(compose.compose([*world.FAST, *overrides]))

    return composed


@pytest.fixture
def done(warm_outputs, tmp_path) -> Path:
    """An outputs folder in which the addition run is done."""
    return Path(shutil.copytree(warm_outputs, tmp_path / "outputs"))


@pytest.fixture
def one_thread():
    """As many as the command has in tests: sums of floats depend on it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def nodes(plan: Plan) -> dict[str, Node]:
    """Every stored artefact of a plan, and its base, by label."""
    return {node.label: node for node in plan.nodes if node.stored or node.kind == "base"}


def only(outputs: Path) -> RunFolder:
    (run,) = outputs.glob("runs/*")
    return RunFolder(run)


def flipped(content: bytes, bit: int) -> bytes:
    out = bytearray(content)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def names(message: str, file: Path) -> bool:
    """Whether a message names a damaged file; one whose checksum differs is named with the manifest."""
    return str(file.parent) in message and file.name in message


# Damage.


def test_every_damaged_file_is_detected_named_and_computed_again(config, done, caplog, one_thread):
    """Each file of a finished store emptied, cut in half and with a flipped bit, in turn."""
    from taskvec.graph.workspace import Workspace

    run = config(f"outputs={done}")
    store, every = Store(done / "store"), nodes(Plan(run))
    stored = {store.folder(node): node for node in every.values() if node.stored}
    files = sorted(path for folder in stored for path in folder.iterdir())
    assert {path.parent for path in done.glob("store/[!lp]*/*/SHA256SUMS")} == set(stored)
    assert len(files) == 3 * len(stored)
    caplog.set_level(logging.WARNING, "taskvec")
    for number, file in enumerate(files):
        node, before = (
            stored[file.parent],
            {path.name: path.read_bytes() for path in file.parent.iterdir()},
        )
        for damage, content in forked.damaged(before[file.name], seed=number):
            caplog.clear()
            file.write_bytes(content)
            with pytest.raises(CorruptError) as found:
                store.verify(file.parent)
            assert names(str(found.value), file)
            # Each kind for each of an artefact's three files
            if damage != DAMAGES[(number + number // 3) % 3]:
                continue
            work = Workspace(store, run.compute, lambda *_: None, lambda *_: None)
            work.get(node)
            assert work.usage[node.fingerprint]["computed"], (file, damage)
            (said,) = [record.getMessage() for record in caplog.records]
            assert said.startswith(f"store: {node.label} is corrupt ({file.parent}/")
            assert names(said, file)
            store.verify(file.parent)
            again = {path.name: path.read_bytes() for path in file.parent.iterdir()}
            assert again["tensors.safetensors"] == before["tensors.safetensors"]
            records = [json.loads(content["artefact.json"]) for content in (before, again)]
            assert records[0] | {"usage": None} == records[1] | {"usage": None}
            before = again
        for name, content in before.items():
            (file.parent / name).write_bytes(content)


@pytest.mark.parametrize("kind", ["head", "decoded", "vector", "answer"])
def test_a_run_repairs_what_it_needs(kind, tiny, config, done, warm_outputs, tmp_path):
    """Through the command: a damaged file, and nothing above it that would make it superfluous."""
    store, every = Store(done / "store"), nodes(Plan(config(f"outputs={done}")))
    label, number = {"head": ("head stripes", 0), "decoded": ("examples stripes/train", 1)}.get(
        kind, (None, 2)
    )
    label = label or {"vector": "vector stripes", "answer": "answer individual/stripes"}[kind]
    above = [
        node for node in every.values() if every[label] in node.walk() and node is not every[label]
    ]
    for node in above:
        shutil.rmtree(store.folder(node))
    shutil.rmtree(done / "runs")
    file = (
        store.folder(every[label]) / ("tensors.safetensors", "artefact.json", "SHA256SUMS")[number]
    )
    file.write_bytes(dict(forked.damaged(file.read_bytes(), seed=number))[DAMAGES[number]])
    ended = forked.run(tiny, *world.FAST, f"outputs={done}", folder=tmp_path / "run", events=True)
    assert ended.returncode == 0, ended.stderr
    assert names(ended.stderr, file)
    again = {
        event.split(" ", 2)[2].rsplit(" ", 1)[0]
        for event in forked.events(tmp_path / "run")
        if "compute" in event
    }
    assert again == {label, *(node.label for node in above)}
    assert only(done).result().same_as(only(warm_outputs).result())


@pytest.mark.parametrize("kind", ["head", "decoded", "vector", "answer"])
def test_an_artefact_without_its_manifest_is_computed_again(
    kind, tiny, done, warm_outputs, tmp_path
):
    """Answers to several questions are written together: what is left of one is in nobody's way."""
    for manifest in done.glob(f"store/{kind}/*/SHA256SUMS"):
        manifest.unlink()
    shutil.rmtree(done / "runs")
    ended = forked.run(tiny, *world.FAST, f"outputs={done}", folder=tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    assert only(done).result().same_as(only(warm_outputs).result())


def test_every_bit_of_a_manifest_and_many_of_its_record_count(done):
    store = Store(done / "store")
    folder = next(done.glob("store/answer/*"))
    for name, every in (("SHA256SUMS", 1), ("artefact.json", 37)):
        content = (folder / name).read_bytes()
        for bit in range(0, 8 * len(content), every):
            (folder / name).write_bytes(flipped(content, bit))
            with pytest.raises(CorruptError):
                store.verify(folder)
        (folder / name).write_bytes(content)
    store.verify(folder)


def test_files_that_are_missing_or_do_not_belong(done):
    store = Store(done / "store")
    for name in ("artefact.json", "tensors.safetensors"):
        folder = next(done.glob("store/vector/*"))
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(CorruptError):
            store.verify(folder)
        (folder / name).write_bytes(content)
    (folder / "more").write_text("")
    with pytest.raises(CorruptError):
        store.verify(folder)
    (folder / "more").unlink()
    other = folder.with_name("0" * 32)
    folder.rename(other)
    with pytest.raises(CorruptError, match="not the fingerprint of its record"):
        store.verify(other)


def test_the_command_verifies_the_store(done, capsys):
    assert cli.main(["store", "verify", "--outputs", str(done)]) == 0
    file = next(done.glob("store/vector/*/tensors.safetensors"))
    file.write_bytes(flipped(file.read_bytes(), 99_999))
    assert cli.main(["store", "verify", "--outputs", str(done)]) == 1
    assert f"corrupt: {file}" in capsys.readouterr().out


def test_stored_files_have_the_same_permissions(done):
    """Others who share the store can read the tensors as well as the records."""
    for folder in done.glob("store/*/*/"):
        assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["result.json", "status.json", "config.yaml"])
def test_a_damaged_run_is_done_again_from_the_store(
    name, damage, tiny, done, warm_outputs, tmp_path
):
    file = only(done).path / name
    content = file.read_bytes()
    changed = dict(forked.damaged(content, seed=2))[damage]
    if (name, damage) == ("status.json", "bit"):
        changed = flipped(content, 8 * content.index(b"done") + 1)
    file.write_bytes(changed)
    assert only(done).result() is None
    ended = forked.run(tiny, *world.FAST, f"outputs={done}", folder=tmp_path / "run", events=True)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not [
        event
        for event in forked.events(tmp_path / "run")
        if event.startswith(("compute", "finetune"))
    ]
    assert only(done).result().same_as(only(warm_outputs).result())
    assert only(done).status()["state"] == "done"


# Dependency: which artefacts a change touches.

TASKS = world.TASKS
HEADS = {f"head {task}" for task in TASKS}
EXAMPLES = {f"examples {task}/{split}" for task in TASKS for split in world.COUNTS}
VECTORS = {f"vector {task}" for task in TASKS}
TUNED = {f"answer individual/{task}" for task in TASKS} | {"answer merged"}
CELLS = TUNED | {"answer zero_shot"}
OF_STRIPES = {"answer individual/stripes", "answer merged"}


def changed(before: Plan, after: Plan) -> set[str]:
    """The labels of the artefacts of ``after`` that ``before`` does not have."""
    known = {node.fingerprint for node in nodes(before).values()}
    return {label for label, node in nodes(after).items() if node.fingerprint not in known}


def test_the_plan_is_the_one_these_tests_know(config):
    assert set(nodes(Plan(config()))) == {"base weights", *HEADS, *EXAMPLES, *VECTORS, *CELLS}


@pytest.mark.parametrize(
    ("overrides", "touched"),
    [
        (["finetune.lr=1e-3"], VECTORS | TUNED),
        (["finetune.weight_decay=0"], VECTORS | TUNED),
        (["finetune.steps=7"], VECTORS | TUNED),
        (["finetune.augment=none"], VECTORS | TUNED),
        (["seed=1"], VECTORS | TUNED),
        (["compute.precision=bf16"], VECTORS | CELLS),
        (["compute.precision=tf32"], VECTORS | CELLS),
        (["compute.weights=bf16"], CELLS),
        (["protocol.grid=[0,1]"], {"answer merged"}),
        (["protocol.joint=true"], {"vector 3 tasks", "answer joint"}),
        (["suite.tasks=[stripes,corners]"], {"answer zero_shot", "answer merged"}),
        (["backbone.mean=[0.4,0.4,0.4]"], {"base weights"} | HEADS | VECTORS | CELLS),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_setting_touches_what_depends_on_it(overrides, touched, config):
    assert changed(Plan(config()), Plan(config(*overrides))) == touched


@pytest.mark.parametrize(
    "override",
    ["tracker=none", "outputs=/tmp/elsewhere", "compute.device=cpu", "compute.device=cuda:1",
     "compute.weights=fp32", "compute.batch=auto", "compute.batch=9", "compute.compile=true",
     "finetune.checkpoint_every=7", "backbone.recipe.steps=9"],
)  # fmt: skip
def test_a_setting_that_changes_no_result_touches_nothing(override, config):
    before, after = config(), config(override)
    assert changed(Plan(before), Plan(after)) == set()
    assert Plan(before).fingerprint == Plan(after).fingerprint
    assert run_id(before) == run_id(after)


def one_pixel(path: Path) -> None:
    """Change one image of a split by one grey level."""
    import io

    import numpy as np
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(path)
    images = table["image"].to_pylist()
    pixels = np.asarray(Image.open(io.BytesIO(images[5]["bytes"]))).copy()
    pixels[3, 3, 0] ^= 1
    images[5]["bytes"] = world.png(pixels)
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    world.write_table(path, images, table["label"].to_pylist(), names)


def one_label(path: Path) -> None:
    """Change one label of a split."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    labels = table["label"].to_pylist()
    labels[0] = (labels[0] + 1) % 4
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    world.write_table(path, table["image"].to_pylist(), labels, names)


def one_weight_bit(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes(), 8 * (path.stat().st_size - 1000)))


def another_template(path: Path) -> None:
    path.write_text(path.read_text().replace("a photo of", "a drawing of"))


CHANGES: list[tuple[str, Callable[[Path], None], Iterable[str]]] = [
    (
        "data/stripes/train.parquet",
        one_pixel,
        {"examples stripes/train", "vector stripes"} | OF_STRIPES,
    ),
    (
        "data/stripes/train.parquet",
        one_label,
        {"examples stripes/train", "vector stripes"} | OF_STRIPES,
    ),
    (
        "data/stripes/val.parquet",
        one_pixel,
        {"examples stripes/val", "answer zero_shot"} | OF_STRIPES,
    ),
    (
        "data/stripes/test.parquet",
        one_label,
        {"examples stripes/test", "answer zero_shot"} | OF_STRIPES,
    ),
    ("data/control/test.parquet", one_pixel, set()),
    (
        "task/stripes.yaml",
        another_template,
        {"head stripes", "vector stripes", "answer zero_shot"} | OF_STRIPES,
    ),
    (
        "clip/open_clip_model.safetensors",
        one_weight_bit,
        {"base weights"} | HEADS | VECTORS | CELLS,
    ),
]


@pytest.mark.parametrize(
    ("file", "change", "touched"), CHANGES, ids=[f"{f} {c.__name__}" for f, c, _ in CHANGES]
)
def test_a_file_touches_what_depends_on_it(file, change, touched, tiny, config, tmp_path):
    copy = world_copy(tiny, tmp_path)
    before = Plan(config(include=copy))
    assert changed(Plan(config()), before) == set()  # where files are makes no difference
    change(copy / file)
    assert changed(before, Plan(config(include=copy))) == touched


def world_copy(tiny: Path, folder: Path) -> Path:
    copy = Path(shutil.copytree(tiny, folder / "world"))
    for path in copy.glob("*/*.yaml"):
        path.write_text(path.read_text().replace(str(tiny), str(copy)))
    return copy


@pytest.mark.parametrize(
    ("owner", "touched"),
    [
        (Base, {"base weights"} | HEADS | VECTORS | CELLS),
        (Clip, {"base weights"} | HEADS | VECTORS | CELLS),
        (Decoded, EXAMPLES | VECTORS | CELLS),
        (InitialHead, HEADS | VECTORS | CELLS),
        (Rows, VECTORS | CELLS),
        (TunedVector, VECTORS | TUNED),
        (Full, VECTORS | TUNED),
        (CompositionNode, CELLS),
        (AnswerNode, CELLS),
        (Scores, CELLS),
        (TaskArithmetic, {"answer merged"}),
        (Addition, set()),
        (Negation, set()),
    ],
)
def test_a_version_touches_what_depends_on_it(owner, touched, config, monkeypatch):
    """Of a component's class, and of a node's."""
    before = Plan(config())
    assert changed(before, before) == set()  # every fingerprint is known by now
    fingerprint = before.fingerprint
    monkeypatch.setattr(owner, "version", owner.version + 1)
    after = Plan(config())
    assert changed(before, after) == touched
    assert (after.fingerprint != fingerprint) == (owner is not Negation)


def test_only_what_a_changed_file_touches_is_computed(tiny, done, tmp_path):
    """Through the command: one grey level of one training image."""
    copy, words = world_copy(tiny, tmp_path), [*world.FAST, f"outputs={done}"]
    file, change, touched = CHANGES[0]
    change(copy / file)
    shutil.rmtree(done / "runs")
    ended = forked.run(copy, *words, folder=tmp_path / "run", events=True)
    assert ended.returncode == 0, ended.stderr
    events = [
        event for event in forked.events(tmp_path / "run") if event.startswith("compute after ")
    ]
    assert sorted(event.split(" ", 2)[2].rsplit(" ", 1)[0] for event in events) == sorted(touched)
    result = read_result(only(done).path / "result.json")
    flags = {
        label.rsplit(" ", 1)[0]
        for label, usage in result.timing["artefacts"].items()
        if usage["computed"]
    }
    assert flags == touched


def test_a_changed_file_makes_a_finished_run_stale(tiny, done, tmp_path, monkeypatch, capsys):
    """The run's folder stays the same; its result no longer stands, and the same command replaces it."""
    copy, words = world_copy(tiny, tmp_path), [*world.FAST, f"outputs={done}"]
    shutil.rmtree(done / "runs")
    assert forked.run(copy, *words, folder=tmp_path / "first", events=True).returncode == 0
    one_label(copy / "data/corners/test.parquet")
    monkeypatch.setenv("TASKVEC_INCLUDE", str(copy))
    assert cli.main(["status", "--outputs", str(done)]) == 0
    assert capsys.readouterr().out.startswith("stale ")
    before = only(done).result()
    assert forked.run(copy, *words, folder=tmp_path / "second", events=True).returncode == 0
    after = only(done).result()
    assert after.fingerprint != before.fingerprint
    assert cli.main(["status", "--outputs", str(done)]) == 0
    assert capsys.readouterr().out.startswith("done ")
