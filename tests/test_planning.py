"""What planning does and leaves undone: components by name, libraries that only runs need, files hashed once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import huggingface_hub.constants as constants
import numpy as np
import pytest
import world

from taskvec import registry
from taskvec.data import describe as describing
from taskvec.data import files, hub
from taskvec.data.describe import class_names, describe
from taskvec.data.hub_card import HubCard, write_hub_card
from taskvec.data.rows import SplitRows, TaskData
from taskvec.data.tasks import ImageTask
from taskvec.graph.nodes.examples import Decoded
from taskvec.graph.plan import Plan
from taskvec.merge.base import Merge
from taskvec.runner import compose

PLANNED = """
import sys
from taskvec.graph.plan import Plan
from taskvec.runner import compose
compose.register_all()
Plan(compose.resolve(compose.compose(["suite=mini8", "merge=ties"]))).fingerprint
print(*sys.modules)
"""
HEAVY = {"torch", "transformers", "open_clip", "datasets", "pandas", "scipy", "sklearn", "wandb"}


def test_the_names_that_are_read_are_those_that_are_registered():
    registered = {(e.group, e.name): e.source for e in registry.entries() if e.shipped}
    assert registry.shipped() == registered
    for group in registry.PACKAGES:
        listed = registry.names(group)
        assert listed == [entry.name for entry in registry.entries(group)] and listed


def test_planning_imports_neither_what_only_runs_need_nor_other_components():
    done = subprocess.run([sys.executable, "-c", PLANNED], capture_output=True, text=True)
    modules = set(done.stdout.split())
    assert not HEAVY & modules
    assert "taskvec.merge.sparse.ties" in modules
    merges = {path.stem for (group, _), path in registry.shipped().items() if group == "merge"}
    imported = {name.rpartition(".")[2] for name in modules if name.startswith("taskvec.merge.")}
    assert merges & imported == {"ties"}


def test_a_name_of_ours_is_taken_before_its_component_is_imported(monkeypatch):
    others = {key: entry for key, entry in registry._entries.items() if key != ("merge", "ties")}
    monkeypatch.setattr(registry, "_entries", others)

    class Mine(Merge):
        kind: Literal["ties"] = "ties"

    with pytest.raises(ValueError, match=r"merge=ties is registered by ties\.py already"):
        registry.register("merge", "ties")(Mine)


@pytest.mark.parametrize("words", [["suite=mini8"], ["source=mini_clip_m", "transform=theseus"]])
def test_plans_hash_every_file_once(words, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    compose.register_all()
    config = compose.resolve(compose.compose(words))
    counted: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counting(file, name):
        counted[file.name] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    files._hashed.cache_clear()
    first = Plan(config).fingerprint
    assert str(config.backbone.weights) in counted
    assert set(counted.values()) == {1}
    assert Plan(config).fingerprint == first and set(counted.values()) == {1}


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large and as settled, with how often its bytes are read."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(files, "LARGE", 8)
    monkeypatch.setattr(files, "SETTLED_NS", -1)
    read = []
    digest = hashlib.file_digest

    def noting(file, name):
        read.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noting)
    path = tmp_path / "weights"
    path.write_bytes(b"sixteen bytes of")
    return path, read


def in_a_new_process(path: Path) -> str:
    files._hashed.cache_clear()
    return files.remembered_sha256(path)


def test_the_hash_of_a_large_file_is_remembered_until_the_file_changes(large):
    path, read = large
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert [in_a_new_process(path) for _ in range(3)] == [expected] * 3 and len(read) == 1
    files._hashed.cache_clear()
    assert files.sha256(path) == expected and len(read) == 2, "verification reads the bytes"
    # as large as before and of the same age: what a copy with its times leaves behind
    before = path.stat()
    path.write_bytes(b"sixteen other by")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = hashlib.sha256(path.read_bytes()).hexdigest()
    assert changed != expected and in_a_new_process(path) == changed
    assert in_a_new_process(path) == changed and len(read) == 3


def test_a_hash_that_may_not_hold_is_not_remembered(large, tmp_path, monkeypatch):
    path, read = large
    expected = in_a_new_process(path)
    (record,) = (tmp_path / "assets").rglob("*.json")
    for damaged in (b"", b"{}", record.read_bytes()[:-9]):
        record.write_bytes(damaged)
        assert in_a_new_process(path) == expected
    assert len(read) == 4
    record.unlink()
    monkeypatch.setattr(files, "SETTLED_NS", 3600 * 10**9)
    assert in_a_new_process(path) == expected and not record.exists()
    monkeypatch.setattr(files, "LARGE", 17)
    assert in_a_new_process(path) == expected and not record.exists()


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What a task of small tables says, by a process of its own, and which splits were read for it."""
    assets = tmp_path / "assets"
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(assets))
    monkeypatch.setattr(files, "SETTLED_NS", -1)
    for seed, split in enumerate(("train", "test")):
        world.write_split(tmp_path / "t" / f"{split}.parquet", "t", 30, seed)
    read = []
    reading = TaskData.read

    def noting(data: TaskData, split: str) -> SplitRows:
        read.append(split)
        return reading(data, split)

    monkeypatch.setattr(TaskData, "read", noting)

    def tell(split: str = "test", forgetful: bool = False, **card) -> tuple[dict, tuple[str, ...]]:
        task = ImageTask(path=str(tmp_path / "t"), templates=("{}",), **card)
        if forgetful:
            shutil.rmtree(assets)
        files._hashed.cache_clear()
        return describe("t", task, split), class_names("t", task)

    tell.read, tell.assets, tell.folder = read, assets, tmp_path / "t"
    return tell


def test_what_files_say_is_remembered_until_one_of_them_or_the_card_changes(told):
    first = told()
    assert told() == first and told.read == ["test"]
    kept = told(keep=("t 1", "t 2"))
    assert kept[0]["labels_sha256"] != first[0]["labels_sha256"] and len(told.read) == 2
    time.sleep(0.02)  # a file system's clock may tick every few milliseconds
    for seed, split in ((7, "test"), (8, "train"), (9, "val")):
        before = told("val")
        world.write_split(told.folder / f"{split}.parquet", "t", 30, seed)
        after = told("val")
        assert after != before or split == "test"
        assert after == told("val", forgetful=True)
    world.write_split(told.folder / "test.parquet", "other", 9, 1)
    assert told()[1] == tuple(f"other {number}" for number in range(4))


def test_a_damaged_record_is_ignored_and_a_warning_is_given_again(told, caplog):
    world.write_split(told.folder / "val.parquet", "t", 30, 1)  # the same bytes as test's
    first = told("val")
    assert first[0]["same_as"] == ["test"]
    for record in told.assets.rglob("*.json"):
        record.write_bytes(record.read_bytes()[:-5])
    assert told("val") == first and told.read == ["val"] * 2
    describing._warn.cache_clear()
    assert told("val") == first and told.read == ["val"] * 2
    assert "val is the same file as test" in caplog.records[-1].getMessage()


def test_images_beside_a_table_are_looked_at_by_every_plan(told):
    for split in ("train", "test"):
        (told.folder / f"{split}.parquet").unlink()
        for number in range(4):
            path = told.folder / f"{split}{number}.png"
            path.write_bytes(world.png(np.full((4, 4, 3), 60 * number, np.uint8)))
        rows = [f"{split}{number}.png,{number % 2}" for number in range(4)]
        (told.folder / f"{split}.csv").write_text("\n".join(["image,label", *rows]))
    first = told(classes=("even", "odd"))
    (told.folder / "test0.png").write_bytes(world.png(np.full((4, 4, 3), 9, np.uint8)))
    second = told(classes=("even", "odd"))
    assert second[0]["sha256"] != first[0]["sha256"] and told.read == ["test"] * 2


def test_data_that_was_seen_before_is_planned_without_being_opened(tmp_path):
    environment = os.environ | {"HF_ASSETS_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", PLANNED]
    modules = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        modules.append(set(done.stdout.split()))
    assert modules[0] - modules[1] >= {"numpy", "pyarrow"}


@pytest.mark.parametrize(
    "suite, backbone",
    [("glue8", "mini_encoder"), ("nli6", "mini_encoder"), ("vision8", "mini_clip_s")],
)
def test_with_cards_a_suite_of_the_hub_is_planned_without_its_builders(
    suite, backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "hub_builder", None)
    monkeypatch.setattr(hub, "reachable", None)
    compose.register_all()
    words = [f"suite={suite}", f"backbone={backbone}", f"outputs={tmp_path}"]
    config = compose.resolve(compose.compose(words))
    tasks = [task for task in config.suite.definitions.values() if task.folder is None]
    for number, task in enumerate(tasks):
        named = {"path": task.path, "config": task.config, "revision": task.revision}
        rows = task.facts.rows or dict.fromkeys(filter(None, task.splits.values()))
        commit = (task.facts.revision or "").ljust(40, f"{number % 10}")
        names = task.classes or getattr(task, "words", ()) or ("no", "yes")
        card = HubCard(**named, commit=commit, rows=rows, classes={task.label: names})
        write_hub_card(task, card)
    plan = Plan(config)
    commits = {
        node.spec()["examples"]["commit"] for node in plan.nodes if isinstance(node, Decoded)
    }
    assert plan.fingerprint and len(commits) == len(config.suite.tasks)
