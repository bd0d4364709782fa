"""Reading and checking task files without loading torch: schema, class names, counts, checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.data.splits import held_out
from taskvec.data.tasks import Task
from taskvec.errors import UserError


@dataclass(frozen=True)
class SplitFile:
    """One split of a local task: where it is, and the split it is cut from when the task has none of its own."""

    path: Path
    held_out_of_train: bool


def sha256(path: Path) -> str:
    """Return a file's SHA-256.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def locate(name: str, task: Task, split: str) -> SplitFile:
    """Return the Parquet file of a local task's split.

    Raises:
        UserError: if the folder or the file does not exist.
    """
    file = task.splits.get(split)
    held_out = split == "val" and file is None
    path = task.folder / f"{task.splits['train'] if held_out else file}.parquet"
    if not task.folder.is_dir():
        raise UserError(f"task {name}: no folder {task.folder}; see 'path' in task/{name}.yaml")
    if not path.is_file():
        raise UserError(f"task {name}: no {path.name} in {task.folder} (split {split!r})")
    return SplitFile(path, held_out)


def class_names(name: str, task: Task, path: Path) -> tuple[str, ...]:
    """Return the class names of the label column, after checking the columns a task needs.

    Raises:
        UserError: if the file is not Parquet, a column is missing or of another type, or names and prompts differ in
            number.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        schema = parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"task {name}: {path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    for column in (*task.columns, task.label):
        if column not in schema.names:
            raise UserError(f"task {name}: {path} has no column {column!r} (it has {', '.join(schema.names)})")
    for column in task.columns:
        if not task.takes(found := schema.field(column).type):
            raise UserError(f"task {name}: {path}: column {column!r} holds {found}, not {task.holds}")
    names = _label_names(schema.metadata, task.label)
    if not names and not task.classes:
        raise UserError(f"task {name}: {path} has no class names; give them as 'classes' in task/{name}.yaml")
    if names and task.classes and len(names) != len(task.classes):
        raise UserError(f"task {name}: {len(task.classes)} 'classes' in task/{name}.yaml, {len(names)} in {path}")
    return task.classes or names


def _label_names(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (ValueError, KeyError, TypeError):
        return ()


def read_labels(name: str, task: Task, path: Path, classes: int) -> list[int]:
    """Return the labels of a file.

    Raises:
        UserError: if they cannot be read, there are none, or one is not a class index.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        labels = parquet.read_table(path, columns=[task.label])[task.label].to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"task {name}: {path} is damaged: {str(error).splitlines()[0]}") from error
    if not labels:
        raise UserError(f"task {name}: {path} holds no examples")
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < classes:
            raise UserError(f"task {name}: {path} has label {label!r}, but the task has {classes} classes")
    return labels


def describe(name: str, task: Task, split: str) -> dict[str, Any]:
    """Return what identifies a split's examples (checksum, rule, classes kept), after checking its file.

    Raises:
        UserError: for a missing or malformed file, other classes than the test split's, unknown classes in ``keep``, or
            an empty split.
    """
    if task.folder is None:
        return {"hub": task.path, "split": task.splits.get(split), "keep": task.keep and list(task.keep)}
    file = locate(name, task, split)
    names = class_names(name, task, file.path)
    test = locate(name, task, "test").path
    if names != (expected := class_names(name, task, test)):
        here, there = (", ".join(listed) for listed in (names, expected))
        raise UserError(f"task {name}: {file.path} has the classes {here}; {test.name} has {there}")
    unknown = [c for c in task.keep or () if c not in names]
    if unknown:
        raise UserError(f"task {name}: 'keep' names unknown classes {', '.join(unknown)} (it has {', '.join(names)})")
    labels = read_labels(name, task, file.path, len(names))
    kept = [label for label in labels if task.keep is None or names[label] in task.keep]
    if not kept or file.held_out_of_train and not held_out(len(labels)):
        raise UserError(f"task {name}: split {split!r} holds no examples ({len(labels)} in {file.path})")
    return {
        "sha256": sha256(file.path),
        "split": split,
        "held_out_of_train": task.splits.get("val") is None and split != "test",
        "keep": task.keep and list(task.keep),
        "columns": [*task.columns, task.label],
    }
