"""What planning asks of data: class names, and what identifies a split's examples, after checking its files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.data.files import Record, code_version, joint_sha256, remembered_sha256
from taskvec.data.locate import locate_file
from taskvec.data.rows import SplitRows, TaskData
from taskvec.data.tasks import Corpus, ImageTask, Task, TextTask
from taskvec.errors import UserError

if TYPE_CHECKING:
    from taskvec.data.tables.base import Table

log = logging.getLogger(__name__)
# The splits that one is compared with
BESIDE = {"train": (), "val": ("train", "test"), "test": ("train",)}


def class_names(name: str, task: Task) -> tuple[str, ...]:
    """Return the names of a task's classes in the order of their numbers; a regression has one, ``score``.

    Raises:
        UserError: if the data cannot be read or nothing names the classes.
    """
    if task.folder is None and not task.regression:
        from taskvec.data.hub import hub_class_names

        # known without fetching the data set
        known = task.classes or hub_class_names(name, task)
        if known:
            return known
    data = TaskData(name, task)
    if task.folder is None:
        return data.classes.names
    record = _record(data, "classes")
    known = record.read()
    if known is None:
        known = data.classes.names
        record.write(known)
    return tuple(known)


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
    found = {
        "split": split,
        "keep": task.keep and list(task.keep),
        "columns": [*task.columns, task.label],
    } | _reading(task)
    data = TaskData(name, task)
    found["held_out_of_train"] = data.held_out_of == "train" and split != "test"
    if task.split_rule != "authors" and split in ("val", data.held_out_of):
        found["split_rule"] = task.split_rule
    return found | (_local(data, split) if task.folder is not None else _hub(data, split))


def _corpus(name: str, corpus: Corpus, split: str) -> dict[str, Any]:
    from taskvec.data.texts import FIRST, check_texts, corpus_table

    if split not in FIRST:
        raise UserError(
            f"task {name}: a corpus has the splits {' and '.join(FIRST)}, and no {split}"
        )
    located = locate_file(name, corpus.folder, corpus.file)
    record = Record("splits", located.everything(), f"corpus {split} {corpus!r}", code_version())
    sha256 = record.read()
    if sha256 is None:
        table = corpus_table(name, corpus)
        check_texts(table, (corpus.text,), split, corpus.max_text_mb, blank=True)
        sha256 = joint_sha256(table.files)
        record.write(sha256)
    return {"sha256": sha256, "split": split, "column": corpus.text}


def _hub(data: TaskData, split: str) -> dict[str, Any]:
    from taskvec.data.hub import hub_commit, hub_count, hub_split

    name, task = data.name, data.task
    source, _ = hub_split(name, task, data.stored_in(split))
    count = hub_count(name, task, source)
    if count is not None:
        data.check_count(split, count)
    if split == "test" and source == task.splits["train"]:
        raise UserError(f"{data.owner}: splits train and test are both {source!r}")
    commit = hub_commit(name, task)
    seen = task.facts.revision
    if seen and not commit.startswith(seen):
        _warn(f"{data.owner}: {task.path} is read at {commit}; its card was written at {seen}")
    found = {"hub": task.path, "commit": commit, "source": source}
    if task.config:
        found["config"] = task.config
    return found


def _local(data: TaskData, split: str) -> dict[str, Any]:
    record = _record(data, split)
    found = record.read()
    if found is None:
        found, named = _read(data, split)
        # images that a table names are known only once it has been read
        if set(named) <= set(record.paths):
            record.write(found)
    if "empty_classes" in found:
        listed = ", ".join(found["empty_classes"])
        _warn(f"{data.owner}: {split} has no example of some classes: {listed[:200]}")
    if "same_as" in found:
        twins = " and ".join(found["same_as"])
        _warn(f"{data.owner}: {split} is the same file as {twins}")
    return found


def _record(data: TaskData, asked: str) -> Record:
    """Return where is kept what is asked of the files of a task; that a split is not there is a state of them, too."""
    paths: list[Path] = []
    layout = []
    for split in BESIDE:
        try:
            located = data.located(split)
        except UserError as error:
            layout.append(str(error))
            continue
        own = located.everything()
        layout.append(f"{located.form} {located.held_out} {len(own)}")
        paths += own
    key = " ".join([asked, repr(data.task), *layout])
    return Record("splits", paths, key, code_version())


def _read(data: TaskData, split: str) -> tuple[dict[str, Any], list[Path]]:
    """Return what a split's files say, and the images that they name."""
    # here, and not above: only the first plan of some data reads it
    from taskvec.data.texts import check_texts

    task, read = data.task, data.read(split)
    twins = _twins(data, split)
    if isinstance(task, TextTask):
        check_texts(read.table, task.columns, split, task.max_text_mb)
    own, named = _files(read.table, task)
    content = joint_sha256([*own, *named])
    found: dict[str, Any] = {"sha256": content, "labels_sha256": _labels(read)}
    if read.empty:
        found["empty_classes"] = list(read.empty)
    if twins:
        found["same_as"] = twins
    return found, named


@cache
def _warn(message: str) -> None:
    """Say something once per process, however often a plan is made."""
    log.warning(message)


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


def _labels(read: SplitRows) -> str:
    """Return the SHA-256 of the rows in use and their labels, which other files may decide: class words, hold-out."""
    digest = hashlib.sha256(read.rows.tobytes())
    digest.update(read.labels.tobytes())
    return digest.hexdigest()


def _files(table: Table, task: Task) -> tuple[list[Path], list[Path]]:
    """Return all that a split's rows are read from: its files, and the images that they name."""
    from taskvec.data.images import image_files

    own = [path for path in table.files if path.is_file()]
    named = image_files(table, task.image) if isinstance(task, ImageTask) else []
    return own, named


def _twins(data: TaskData, split: str) -> list[str]:
    """Return the other splits that hold the same file, byte for byte.

    Raises:
        UserError: if what is reported on is what is learned from.
    """
    found = []
    if split == "val" and data.held_out_of:
        return found
    for other in BESIDE[split]:
        pair = _same_content(data, split, other)
        if pair and split == "test":
            raise UserError(
                f"{data.owner}: splits test and {other} hold the same file: {pair[0]} and {pair[1]}"
            )
        if pair:
            found.append(other)
    return found


def _same_content(data: TaskData, split: str, other: str) -> tuple[str, str] | None:
    """Return two places of equal content, one of each split, None if there are none."""
    table = data.table(split)
    try:
        beside = data.table(other)
    except UserError:
        return None  # whoever needs that split hears of it
    if data.located(split).form == data.located(other).form == "images":
        if len(table) != len(beside):
            return None
        sums = [joint_sha256(_files(one, data.task)[1]) for one in (table, beside)]
        return (table.place, beside.place) if sums[0] == sums[1] else None
    return _same_file(table.files, beside.files)


def _same_file(first: Sequence[Path], second: Sequence[Path]) -> tuple[str, str] | None:
    """Return two files of equal content, one of each list; sizes are compared first."""
    sizes: dict[int, list[Path]] = {}
    for path in first:
        # descriptions beside the tables of `datasets` are the same for every split
        if path.is_file() and path.suffix != ".json":
            sizes.setdefault(path.stat().st_size, []).append(path)
    for path in second:
        for candidate in sizes.get(path.stat().st_size, ()):
            if remembered_sha256(candidate) == remembered_sha256(path):
                return str(candidate), str(path)
    return None
