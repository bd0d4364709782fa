"""Data sets of the Hugging Face hub, at the commit that their branch or tag points to when the run is planned."""

from __future__ import annotations

import contextlib
import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.data.hub_card import HubCard, read_hub_card, write_hub_card
from taskvec.data.locate import VAL
from taskvec.data.remote import reachable
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
    try:
        dataset = prepared(name, task).as_dataset(split=source)
    except UserError:
        raise
    except Exception as error:  # whatever the library or the data set's files raise
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
        present = hub_card(name, task).rows
        usual = [called for called in VAL if called in present]
        val = usual[0] if usual else None
    return (task.splits["train"], True) if val is None else (val, False)


def hub_commit(name: str, task: Task) -> str:
    """Return the commit of a data set that a run reads.

    Raises:
        UserError: if it cannot be reached.
    """
    return hub_card(name, task).commit


def hub_count(name: str, task: Task, source: str) -> int | None:
    """Return how many rows a data set says that a split has, None if it does not say before it is fetched.

    Raises:
        UserError: if the data set cannot be reached.
    """
    return hub_card(name, task).rows.get(source)


def hub_class_names(name: str, task: Task) -> tuple[str, ...]:
    """Return the class names of the label's feature, () if it has none or they are not known before fetching.

    Raises:
        UserError: if the data set cannot be reached.
    """
    return hub_card(name, task).classes.get(task.label, ())


def hub_card(name: str, task: Task) -> HubCard:
    """Return what is known of a task's data set: from its card, else from the data set's builder.

    Raises:
        UserError: if neither is to be had.
    """
    _check_name(name, task)
    return read_hub_card(task) or _described(task, hub_builder(name, task))


def prepared(name: str, task: Task) -> DatasetBuilder:
    """Return the builder of a data set whose files are in the cache, where they are fetched to, and write its card.

    Raises:
        UserError: if they cannot be fetched.
    """
    from taskvec.data.tables.base import first_line

    builder = hub_builder(name, task)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever the library, the network or the data set's files raise
        reason = first_line(error)
        raise UserError(
            f"task {name}: data set {task.path!r} cannot be loaded: {reason}; {MIRROR}"
        ) from error
    with contextlib.suppress(OSError):  # a cache that others own; planning asks the builder then
        write_hub_card(task, _described(task, builder))
    return builder


def _described(task: Task, builder: DatasetBuilder) -> HubCard:
    """Return the card of a data set by its builder."""
    info = builder.info
    known = info.splits or getattr(builder.config, "data_files", None) or {}
    rows = {str(split): getattr(known[split], "num_examples", None) for split in known}
    features = (info.features or {}).items()
    names = {column: getattr(feature, "names", None) for column, feature in features}
    files = sorted(info.download_checksums or ())
    return HubCard(
        path=task.path,
        config=task.config,
        revision=task.revision,
        commit=builder.hash,
        rows=rows,
        classes={column: tuple(called) for column, called in names.items() if called},
        files=tuple(files),
        download_bytes=info.download_size,
        folder=builder.cache_dir,
    )


def hub_builder(name: str, task: Task) -> DatasetBuilder:
    """Return the data set's builder at its commit.

    Raises:
        UserError: if it cannot be reached, or only another commit than the one asked for is in the cache.
    """
    _check_name(name, task)
    pinned = _pinned_commit(task)
    try:
        builder = _opened(task.path, task.config, pinned or task.revision)
    except Exception as error:  # whatever the library or the network raise
        from taskvec.data.tables.base import first_line

        reason = first_line(error)
        raise UserError(
            f"task {name}: data set {task.path!r} cannot be read: {reason}; {MIRROR}"
        ) from error
    asked = pinned or _cached_commit(task)
    if asked and builder.hash != asked:
        # without network the library takes the latest commit in its cache, whatever was asked for
        raise UserError(
            f"task {name}: {task.path} is in the cache at commit {builder.hash}, not at {asked}"
        )
    return builder


def _check_name(name: str, task: Task) -> None:
    """Check that the name is one of the hub, and that no folder is called so.

    Raises:
        UserError: if one is: `datasets` would read it in place of the hub's, wherever the command happens to be run;
            and for data that the hub does not have.
    """
    if task.path.startswith(BY_HAND):
        own = task.path.removeprefix(BY_HAND)
        source = task.facts.source or "its original archive"
        raise UserError(
            f"task {name}: no copy on the hub is in published use; make FOLDER/{own} from {source}, then give "
            "suite.data_dir=FOLDER"
        )
    if os.path.exists(task.path):
        raise UserError(
            f"task {name}: {task.path!r} is a folder here; paths in task/{name}.yaml start at that file"
        )


def _pinned_commit(task: Task) -> str | None:
    """Return the commit that a task's revision is, or that it was when the card was written."""
    if re.fullmatch("[0-9a-f]{40}", task.revision or ""):
        return task.revision
    card = read_hub_card(task)
    return card.commit if card else None


def _cached_commit(task: Task) -> str | None:
    """Return the commit that a branch or tag has in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    described = try_to_load_from_cache(
        task.path, "README.md", repo_type="dataset", revision=task.revision
    )
    return Path(described).parent.name if isinstance(described, str) else None


def forget() -> None:
    """Let the next look at a branch or tag see its present commit."""
    _opened.cache_clear()


@cache
def _opened(path: str, config: str | None, revision: str | None) -> DatasetBuilder:
    """Resolve a branch or tag once per process, so that planning and computing see one commit."""
    reachable()
    import datasets

    return datasets.load_dataset_builder(path, config, revision=revision)
