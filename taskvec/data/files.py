"""Reading and checking task files without loading torch: schema, class names, counts, checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.data.splits import held_out
from taskvec.data.tasks import Task
from taskvec.errors import UserError

SCORE = ("score",)


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
    """Return the class names of the label column (a regression: ``score``), after checking the columns a task needs.

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
    if task.regression:
        return SCORE
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


def read_labels(name: str, task: Task, path: Path, names: Sequence[str]) -> list[int | float | None]:
    """Return the labels of a file as :func:`encode_labels` does.

    Raises:
        UserError: if they cannot be read, there are none, or one is neither a class nor a score.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        labels = parquet.read_table(path, columns=[task.label])[task.label].to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"task {name}: {path} is damaged: {str(error).splitlines()[0]}") from error
    if not labels:
        raise UserError(f"task {name}: {path} holds no examples")
    return encode_labels(name, task, str(path), labels, names)


def encode_labels(
    name: str, task: Task, place: str, labels: Sequence[Any], names: Sequence[str]
) -> list[int | float | None]:
    """Return class indices, or the scores of a regression; None for a row without a label.

    Raises:
        UserError: if a label is neither a class nor a score; ``place`` says where it stands.
    """
    index = {label: number for number, label in enumerate(names)}
    limit = len(getattr(task, "words", None) or ()) - 1
    found: list[int | float | None] = []
    for label in labels:
        number = isinstance(label, int | float) and not isinstance(label, bool)
        if task.no_label is not None and label == task.no_label:
            found.append(None)
        elif task.regression and number and 0 <= label <= limit:
            found.append(float(label))
        elif not task.regression and isinstance(label, int) and 0 <= label < len(names):
            found.append(label)
        elif not task.regression and isinstance(label, str) and label in index:
            found.append(index[label])
        else:
            wanted = f"scores from 0 to {limit}" if task.regression else f"{len(names)} classes"
            raise UserError(f"task {name}: {place} has label {label!r}, but the task has {wanted}")
    return found


def describe(name: str, task: Task, split: str) -> dict[str, Any]:
    """Return what identifies a split's examples (checksum, rule, classes kept), after checking its file.

    Raises:
        UserError: for a missing or malformed file, other classes than the test split's, unknown classes in ``keep``, or
            an empty split.
    """
    if task.folder is None:
        hub = {"hub": task.path, "split": task.splits.get(split), "keep": task.keep and list(task.keep)}
        named = {key: getattr(task, key) for key in ("config", "revision") if getattr(task, key)}
        return hub | named | _reading(task)
    file = locate(name, task, split)
    names = class_names(name, task, file.path)
    test = locate(name, task, "test").path
    if names != (expected := class_names(name, task, test)):
        here, there = (", ".join(listed) for listed in (names, expected))
        raise UserError(f"task {name}: {file.path} has the classes {here}; {test.name} has {there}")
    unknown = [c for c in task.keep or () if c not in names]
    if unknown:
        raise UserError(f"task {name}: 'keep' names unknown classes {', '.join(unknown)} (it has {', '.join(names)})")
    _filled(name, task, split, file.path)
    labels = read_labels(name, task, file.path, names)
    kept = [label for label in labels if label is not None and (task.keep is None or names[label] in task.keep)]
    if not kept or file.held_out_of_train and not held_out(len(labels)):
        raise UserError(f"task {name}: split {split!r} holds no examples ({len(labels)} in {file.path})")
    return {
        "sha256": sha256(file.path),
        "split": split,
        "held_out_of_train": task.splits.get("val") is None and split != "test",
        "keep": task.keep and list(task.keep),
        "columns": [*task.columns, task.label],
    } | _reading(task)


def _filled(name: str, task: Task, split: str, path: Path) -> None:
    """Check that every row holds a text; one of two may be empty.

    Raises:
        UserError: naming the first row that does not.
    """
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException, types

    schema = parquet.read_schema(path)
    kinds = {column: schema.field(column).type for column in task.columns}
    columns = [column for column, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind)]
    if not columns:
        return
    try:
        table = parquet.read_table(path, columns=columns)
    except (ArrowException, OSError) as error:
        raise UserError(f"task {name}: {path} is damaged: {str(error).splitlines()[0]}") from error
    blank = None
    for column in columns:
        empty = compute.fill_null(compute.equal(compute.utf8_trim_whitespace(table[column]), ""), True)
        missing = table[column].is_null()
        blank = empty if blank is None else compute.and_(blank, empty)
        if compute.any(missing).as_py():
            blank = compute.or_(blank, missing)
    if (row := compute.index(blank, True).as_py()) >= 0:
        raise UserError(f"task {name}: {split} row {row} of {path} holds no text")


def _reading(task: Task) -> dict[str, Any]:
    """Return what else determines how labels are read, where it is not the default."""
    found: dict[str, Any] = {"regression": True} if task.regression else {}
    if task.no_label is not None:
        found["no_label"] = task.no_label
    return found | ({"classes": list(task.classes)} if task.classes and not task.regression else {})
