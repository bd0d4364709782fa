"""What planning asks of data: class names, and what identifies a split's examples, after checking its files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.data.files import joint_sha256, sha256
from taskvec.data.images import image_files
from taskvec.data.locate import locate
from taskvec.data.rows import SplitRows, classes_of, read_split
from taskvec.data.tables import open_table
from taskvec.data.tasks import Corpus, ImageTask, Task, TextTask
from taskvec.data.texts import check_texts, corpus_table
from taskvec.errors import UserError

if TYPE_CHECKING:
    from taskvec.data.tables.base import Table

log = logging.getLogger(__name__)
BESIDE = {"train": (), "val": ("train", "test"), "test": ("train",)}  # the splits that one is compared with


def class_names(name: str, task: Task) -> tuple[str, ...]:
    """Return the names of a task's classes in the order of their numbers; a regression has one, ``score``.

    Raises:
        UserError: if the data cannot be read or nothing names the classes.
    """
    if task.folder is None and not task.regression:
        from taskvec.data.hub import hub_class_names

        known = task.classes or hub_class_names(name, task)
        if known:
            return known
    return classes_of(name, task).names


def describe(name: str, task: Task | Corpus, split: str) -> dict[str, Any]:
    """Return what identifies a split's examples and how its labels are read, after checking its files.

    Local files count by their content (``sha256``), data sets of the hub by their commit. ``held_out_of_train`` says
    that validation is a part of train; ``empty_classes`` names classes without an example, ``same_as`` other splits
    that validation is the same file as; both are warned of.

    Raises:
        UserError: for a missing or malformed file, other classes than the test split's, unknown classes in ``keep``, an
            empty split, or one file for train and test.
    """
    if isinstance(task, Corpus):
        return _corpus(name, task, split)
    if task.folder is None:
        return _hub(name, task, split) | _reading(task)
    data = read_split(name, task, split)
    twins = _twins(name, task, split, data.table)
    if isinstance(task, TextTask):
        check_texts(data.table, task.columns, split, task.max_text_mb)
    found = {
        "sha256": _content(data.table, task),
        "labels_sha256": _labels(data),
        "split": split,
        "held_out_of_train": data.held_out,
        "keep": task.keep and list(task.keep),
        "columns": [*task.columns, task.label],
    }
    if data.empty:
        found["empty_classes"] = list(data.empty)
        _warn(f"task {name}: {split} has no example of {len(data.empty)} classes: {', '.join(data.empty)[:200]}")
    if twins:
        found["same_as"] = twins
        _warn(f"task {name}: {split} is the same file as {' and '.join(twins)}")
    return found | _reading(task)


@cache
def _warn(message: str) -> None:
    """Say something once per process, however often a plan is made."""
    log.warning(message)


def _corpus(name: str, corpus: Corpus, split: str) -> dict[str, Any]:
    table = corpus_table(name, corpus)
    check_texts(table, (corpus.text,), split, corpus.max_text_mb, blank=True)
    return {"sha256": joint_sha256(table.files), "split": split, "column": corpus.text}


def _hub(name: str, task: Task, split: str) -> dict[str, Any]:
    from taskvec.data.hub import hub_commit, hub_split

    source, held_out = hub_split(name, task, split)
    if split == "test" and source == task.splits["train"]:
        raise UserError(f"task {name}: splits train and test are both {source!r}")
    found = {
        "hub": task.path,
        "commit": hub_commit(name, task),
        "split": source,
        "held_out_of_train": held_out,
        "part": split,
        "keep": task.keep and list(task.keep),
        "columns": [*task.columns, task.label],
    }
    return found | ({"config": task.config} if task.config else {})


def _reading(task: Task) -> dict[str, Any]:
    """Return what else determines how labels are read, where it is not the default."""
    found: dict[str, Any] = {}
    if task.regression:
        found["regression"] = True
    elif task.classes:
        found["classes"] = list(task.classes)
    if task.no_label is not None:
        found["no_label"] = task.no_label
    return found


def _labels(data: SplitRows) -> str:
    """Return the SHA-256 of the rows in use and their labels, which other files may decide: class words, hold-out."""
    digest = hashlib.sha256(data.rows.tobytes())
    digest.update(data.labels.tobytes())
    return digest.hexdigest()


def _content(table: Table, task: Task) -> str:
    """Return the SHA-256 of all that a split's rows are read from: its files, and the images that they name."""
    named = image_files(table, task.image) if isinstance(task, ImageTask) else []
    files = [path for path in table.files if path.is_file()]
    return joint_sha256([*files, *named])


def _twins(name: str, task: Task, split: str, table: Table) -> list[str]:
    """Return the other splits that hold the same file, byte for byte.

    Raises:
        UserError: if what is reported on is what is learned from.
    """
    located = locate(name, task, split)
    found = []
    for other in () if located.held_out else BESIDE[split]:
        try:
            known = locate(name, task, other)
            beside = open_table(name, task, known)
        except UserError:
            continue  # whoever needs that split hears of it
        if located.form == known.form == "images":
            same = len(table) == len(beside) and _content(table, task) == _content(beside, task)
            pair = (table.place, beside.place) if same else None
        else:
            pair = _same(table.files, beside.files)
        if pair and split == "test":
            raise UserError(f"task {name}: splits test and {other} hold the same file: {pair[0]} and {pair[1]}")
        if pair:
            found.append(other)
    return found


def _same(first: Sequence[Path], second: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return two files of equal content, one of each list, None if there are none; sizes are compared first."""
    for one, two in product(first, second):
        rows = one.suffix != ".json"  # beside the tables of `datasets`, the same for every split
        if rows and one.stat().st_size == two.stat().st_size and sha256(one) == sha256(two):
            return one, two
    return None
