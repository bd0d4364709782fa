"""Reading and checking task files without loading torch: schema, class names, counts, checksums."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        UserError: if the file is not Parquet, a column is missing, or names and prompts differ in number.
    """
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        schema = parquet.read_schema(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"task {name}: {path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    for column in (task.image, task.label):
        if column not in schema.names:
            raise UserError(f"task {name}: {path} has no column {column!r} (it has {', '.join(schema.names)})")
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = tuple(features.get(task.label, {}).get("names") or ())
    if not names and not task.classes:
        raise UserError(f"task {name}: {path} has no class names; give them as 'classes' in task/{name}.yaml")
    if names and task.classes and len(names) != len(task.classes):
        raise UserError(f"task {name}: {len(task.classes)} 'classes' in task/{name}.yaml, {len(names)} in {path}")
    return task.classes or names


def read_labels(name: str, task: Task, path: Path, classes: int) -> list[int]:
    """Return the labels of a file.

    Raises:
        UserError: if there are none, or one is not a class index.
    """
    import pyarrow.parquet as parquet

    labels = parquet.read_table(path, columns=[task.label])[task.label].to_pylist()
    if not labels:
        raise UserError(f"task {name}: {path} holds no examples")
    wrong = next((label for label in labels if not isinstance(label, int) or not 0 <= label < classes), None)
    if wrong is not None:
        raise UserError(f"task {name}: {path} has label {wrong!r}, but the task has {classes} classes")
    return labels


def describe(name: str, task: Task, split: str) -> dict[str, Any]:
    """Return what identifies a split's examples (checksum, rule, classes kept), after checking its file.

    Raises:
        UserError: for a missing or malformed file, unknown classes in ``keep``, or an empty split.
    """
    if task.folder is None:
        return {"hub": task.path, "split": task.splits.get(split), "keep": task.keep and list(task.keep)}
    file = locate(name, task, split)
    names = class_names(name, task, file.path)
    unknown = [c for c in task.keep or () if c not in names]
    if unknown:
        raise UserError(f"task {name}: 'keep' names unknown classes {', '.join(unknown)} (it has {', '.join(names)})")
    read_labels(name, task, file.path, len(names))
    return {
        "sha256": sha256(file.path),
        "split": split,
        "held_out_of_train": task.splits.get("val") is None and split != "test",
        "keep": task.keep and list(task.keep),
        "columns": [task.image, task.label],
    }
