"""The rows of a split: input columns and labels, from a Parquet file or a data set of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskvec.data.files import class_names, locate
from taskvec.data.splits import hold_out
from taskvec.data.tasks import Task
from taskvec.errors import UserError


def read_rows(name: str, task: Task, split: str) -> tuple[list[Sequence[Any]], list[int], list[int]]:
    """Return a split's input columns, its labels, and the row number of each example in the file.

    Raises:
        UserError: if the data cannot be read or the split is empty.
    """
    columns, labels, names = _local(name, task, split) if task.folder is not None else _hub(name, task, split)
    keep: Sequence[int] = range(len(labels))
    if task.splits.get("val") is None and split != "test":
        keep = hold_out(len(labels))[split == "val"]
    if task.keep:
        kept = {names.index(c) for c in task.keep}
        keep = [i for i in keep if labels[i] in kept]
    if not len(keep):
        raise UserError(f"task {name}: split {split!r} holds no examples")
    return [[column[i] for i in keep] for column in columns], [labels[i] for i in keep], list(keep)


def _local(name: str, task: Task, split: str) -> tuple[list[list[Any]], list[int], tuple[str, ...]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    path = locate(name, task, split).path
    try:
        table = parquet.read_table(path, columns=[*task.columns, task.label])
    except (ArrowException, OSError) as error:
        raise UserError(f"task {name}: {path} is damaged: {str(error).splitlines()[0]}") from error
    columns = [table[column].to_pylist() for column in task.columns]
    return columns, table[task.label].to_pylist(), class_names(name, task, path)


def _hub(name: str, task: Task, split: str) -> tuple[list[Sequence[Any]], list[int], tuple[str, ...]]:
    import datasets

    source = task.splits.get(split) or task.splits["train"]
    try:
        table = datasets.load_dataset(task.path, split=source)
    except Exception as error:
        raise UserError(
            f"task {name}: data set {task.path!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    for column in task.columns:
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    names = task.classes or tuple(table.features[task.label].names)
    return [table[column] for column in task.columns], list(table[task.label]), names
