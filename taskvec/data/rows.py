"""The rows of a split: input columns and labels, from a Parquet file or a data set of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskvec.data.files import SCORE, class_names, encode_labels, locate, read_labels
from taskvec.data.splits import hold_out
from taskvec.data.tasks import Task
from taskvec.errors import UserError


def read_rows(name: str, task: Task, split: str) -> tuple[list[Sequence[Any]], list[int | float], list[int]]:
    """Return a split's input columns, its labels, and the row number of each example in the file.

    Raises:
        UserError: if the data cannot be read or the split is empty.
    """
    columns, labels, names = _local(name, task, split) if task.folder is not None else _hub(name, task, split)
    keep: Sequence[int] = range(len(labels))
    if task.splits.get("val") is None and split != "test":
        keep = hold_out(len(labels))[split == "val"]
    kept = {names.index(c) for c in task.keep} if task.keep else None
    keep = [i for i in keep if labels[i] is not None and (kept is None or labels[i] in kept)]
    if not keep:
        raise UserError(f"task {name}: split {split!r} holds no examples")
    return [[column[i] for i in keep] for column in columns], [labels[i] for i in keep], keep


def _local(name: str, task: Task, split: str) -> tuple[list[list[Any]], list[int | float | None], tuple[str, ...]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    path = locate(name, task, split).path
    names = class_names(name, task, path)
    try:
        table = parquet.read_table(path, columns=list(task.columns))
    except (ArrowException, OSError) as error:
        raise UserError(f"task {name}: {path} is damaged: {str(error).splitlines()[0]}") from error
    return [table[column].to_pylist() for column in task.columns], read_labels(name, task, path, names), names


def _hub(name: str, task: Task, split: str) -> tuple[list[Sequence[Any]], list[int | float | None], tuple[str, ...]]:
    import datasets

    source = task.splits.get(split) or task.splits["train"]
    try:
        table = datasets.load_dataset(task.path, task.config, split=source, revision=task.revision)
    except Exception as error:
        raise UserError(
            f"task {name}: data set {task.path!r} cannot be loaded: {str(error).splitlines()[0]}; "
            "suite.data_dir=FOLDER takes a local mirror"
        ) from error
    for column in (*task.columns, task.label):
        if column not in table.features:
            raise UserError(f"task {name}: {task.path} has no column {column!r} (it has {', '.join(table.features)})")
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    names = hub_names(name, task, table.features)
    labels = encode_labels(name, task, f"{task.path}/{source}", table[task.label][:], names)
    # Images are fetched one by one as they are decoded; texts at once, which is much faster
    lazy = [column for column in task.columns if isinstance(table.features[column], datasets.Image)]
    return [table[column] if column in lazy else table[column][:] for column in task.columns], labels, names


def hub_class_names(name: str, task: Task) -> tuple[str, ...]:
    """Return the class names of a data set of the hub.

    Raises:
        UserError: if it cannot be reached or has no class names.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(task.path, task.config, revision=task.revision)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"task {name}: data set {task.path!r} cannot be read: {reason}; suite.data_dir=FOLDER takes a local mirror"
        ) from error
    return hub_names(name, task, builder.info.features or {})


def hub_names(name: str, task: Task, features: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names that a task gives, or those of the label's feature; a regression has one, ``score``.

    Raises:
        UserError: if neither has any.
    """
    if task.regression:
        return SCORE
    names = task.classes or tuple(getattr(features.get(task.label), "names", None) or ())
    if not names:
        raise UserError(f"task {name}: {task.path} has no class names; give them as 'classes' in task/{name}.yaml")
    return names
