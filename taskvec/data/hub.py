"""Data sets of the Hugging Face hub, at the commit that their branch or tag points to when the run is planned."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.data.locate import VAL
from taskvec.data.tasks import BY_HAND, Task
from taskvec.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetBuilder

    from taskvec.data.tables.saved import DatasetTable

MIRROR = "suite.data_dir=FOLDER takes a local mirror"


def open_hub(name: str, task: Task, split: str) -> DatasetTable:
    """Return the table of a data set's split, fetching it first.

    Raises:
        UserError: if it cannot be fetched.
    """
    import datasets

    from taskvec.data.tables.base import first_line
    from taskvec.data.tables.saved import DatasetTable

    source, _ = hub_split(name, task, split)
    builder = _builder(name, task)
    try:
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=source)
    except Exception as error:  # whatever the library, the network or the data set's files raise
        reason = first_line(error)
        raise UserError(
            f"task {name}: data set {task.path!r} cannot be loaded: {reason}; {MIRROR}"
        ) from error
    for column in task.columns:
        if isinstance(dataset.features.get(column), datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return DatasetTable(f"task {name}", dataset, (), f"{task.path}/{source}")


def hub_split(name: str, task: Task, split: str) -> tuple[str, bool]:
    """Return the data set's name of a split, that of train for a validation split that is held out of it, and whether.

    Raises:
        UserError: if the data set cannot be reached where the task does not say what its validation split is called.
    """
    if split != "val":
        return task.splits[split], False
    val = task.splits.get("val")
    if "val" not in task.splits:
        builder = _builder(name, task)
        present = builder.info.splits or getattr(builder.config, "data_files", None) or ()
        usual = [called for called in VAL if called in present]
        val = usual[0] if usual else None
    return (task.splits["train"], True) if val is None else (val, False)


def hub_commit(name: str, task: Task) -> str:
    """Return the commit of a data set that a run reads.

    Raises:
        UserError: if it cannot be reached.
    """
    return _builder(name, task).hash


def hub_count(name: str, task: Task, source: str) -> int | None:
    """Return how many rows a data set says that a split has, None if it does not say before it is fetched.

    Raises:
        UserError: if the data set cannot be reached.
    """
    splits = _builder(name, task).info.splits or {}
    return splits[source].num_examples if source in splits else None


def hub_class_names(name: str, task: Task) -> tuple[str, ...]:
    """Return the class names of the label's feature, () if it has none or they are not known before fetching.

    Raises:
        UserError: if the data set cannot be reached.
    """
    features = _builder(name, task).info.features or {}
    return tuple(getattr(features.get(task.label), "names", None) or ())


def _builder(name: str, task: Task) -> DatasetBuilder:
    """Return the data set's builder at its commit.

    Raises:
        UserError: if it cannot be reached, or only another commit than the one asked for is in the cache.
    """
    if task.path.startswith(BY_HAND):
        own = task.path.removeprefix(BY_HAND)
        source = task.facts.source or "its original archive"
        raise UserError(
            f"task {name}: no copy on the hub is in published use; make FOLDER/{own} from {source}, then give "
            "suite.data_dir=FOLDER"
        )
    if os.path.exists(task.path):
        # `datasets` would read it in place of the hub's, wherever the command happens to be run
        raise UserError(
            f"task {name}: {task.path!r} is a folder here; paths in task/{name}.yaml start at that file"
        )
    try:
        builder = _opened(task.path, task.config, task.revision)
    except Exception as error:  # whatever the library or the network raise
        from taskvec.data.tables.base import first_line

        reason = first_line(error)
        raise UserError(
            f"task {name}: data set {task.path!r} cannot be read: {reason}; {MIRROR}"
        ) from error
    asked = _asked_commit(task)
    if asked and builder.hash != asked:
        # without network the library takes the latest commit in its cache, whatever was asked for
        raise UserError(
            f"task {name}: {task.path} is in the cache at commit {builder.hash}, not at {asked}"
        )
    return builder


def _asked_commit(task: Task) -> str | None:
    """Return the commit that a task's revision means as far as this machine knows."""
    from huggingface_hub import try_to_load_from_cache

    if re.fullmatch("[0-9a-f]{40}", task.revision or ""):
        return task.revision
    card = try_to_load_from_cache(
        task.path, "README.md", repo_type="dataset", revision=task.revision
    )
    return Path(card).parent.name if isinstance(card, str) else None


@cache
def _opened(path: str, config: str | None, revision: str | None) -> DatasetBuilder:
    """Resolve a branch or tag once per process, so that planning and computing see one commit."""
    import datasets

    return datasets.load_dataset_builder(path, config, revision=revision)
