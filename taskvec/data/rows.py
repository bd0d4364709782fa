"""The rows of a split that a task uses: after the hold-out, with a label, of the classes it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskvec.data.labels import SCORE, Classes, LabelRule, read_labels
from taskvec.data.locate import locate
from taskvec.data.splits import hold_out
from taskvec.data.tables import open_table
from taskvec.data.tasks import Task
from taskvec.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from taskvec.data.tables.base import Table


@dataclass(frozen=True)
class SplitRows:
    """A split's table, the numbers of the rows in use [n] ascending, their labels [n], and the task's classes.

    ``empty`` are the classes that no row of the split has, before ``keep`` leaves any out.
    """

    table: Table
    held_out: bool
    classes: Classes
    rows: np.ndarray
    labels: np.ndarray
    empty: tuple[str, ...]


def read_split(name: str, task: Task, split: str) -> SplitRows:
    """Return the rows of a split; of their inputs only the columns' types are looked at.

    Raises:
        UserError: if the data cannot be read, a column is missing or of another type, a label is neither a class nor a
            score, or the split is empty.
    """
    import numpy as np

    table, held_out = open_split(name, task, split)
    check_columns(task, table)
    classes = classes_of(name, task)
    _check_names(name, task, table)
    if not len(table):
        raise UserError(f"task {name}: {table.place} holds no examples")
    rule = LabelRule(classes, task.no_label, table.typed)
    labels, present = read_labels(table.column(task.label), rule, f"task {name}", table.place)
    used = present.copy()
    if held_out:
        part = hold_out(len(labels))[split == "val"].numpy()
        used &= np.isin(np.arange(len(labels)), part)
    empty = () if task.regression else _empty(classes, labels[used])
    if task.keep:
        used &= np.isin(labels, _kept(name, task, classes))
    rows = np.flatnonzero(used)
    if not len(rows):
        raise UserError(f"task {name}: split {split!r} holds no examples ({len(table)} in {table.place})")
    return SplitRows(table, held_out, classes, rows, labels[rows], empty)


def open_split(name: str, task: Task, split: str) -> tuple[Table, bool]:
    """Return the table of a split, and whether validation is held out of train (for train and val).

    Raises:
        UserError: if it cannot be found or read.
    """
    if task.folder is None:
        from taskvec.data.hub import open_hub

        return open_hub(name, task, split)
    located = locate(name, task, split)
    held_out = split != "test" and locate(name, task, "val").held_out
    return open_table(name, task, located), held_out


def check_columns(task: Task, table: Table) -> None:
    """Check that a table has a task's columns, and that they can hold its inputs.

    Raises:
        UserError: naming the first that is missing or of another type.
    """
    schema = table.schema
    for column in (*task.columns, task.label):
        if column not in schema.names:
            present = ", ".join(schema.names)
            raise UserError(f"{table.owner}: {table.place} has no column {column!r} (it has {present})")
    for column in task.columns:
        kind = schema.field(column).type
        if not task.takes(kind):
            raise UserError(f"{table.owner}: {table.place}: column {column!r} holds {kind}, not {task.holds}")


def classes_of(name: str, task: Task) -> Classes:
    """Return a task's classes: those its files name, else ``classes``, else the distinct label words of train, sorted.

    Folders of images name their classes. ``classes`` beside names in the files replaces them in prompts.

    Raises:
        UserError: if nothing names the classes, or two sources contradict each other.
    """
    if task.regression:
        return Classes(SCORE, {}, highest=len(task.words) - 1)
    test, _ = open_split(name, task, "test")
    check_columns(task, test)
    own = test.class_names(task.label)
    if own and not test.labels_are_words:
        return _named(name, test.place, own, task.classes, words=False)
    if task.classes and not test.labels_are_words:
        return Classes(task.classes, _numbered(task.classes))
    train, _ = open_split(name, task, "train")
    check_columns(task, train)
    own = train.class_names(task.label) if train.labels_are_words else _words(train, task)
    if not own:
        raise UserError(f"task {name}: {test.place} has no class names; give them as 'classes' in task/{name}.yaml")
    return _named(name, train.place, own, task.classes, words=True)


def _named(name: str, place: str, own: tuple[str, ...], given: tuple[str, ...] | None, *, words: bool) -> Classes:
    """Return the classes of names found in files, under the names that the task gives, if any.

    With ``words`` the labels are the names themselves, so that ``given`` may list them in another order; numbers would
    come to stand for other classes then.

    Raises:
        UserError: if names repeat, or those of the task do not fit.
    """
    repeated = sorted({word for word in own if own.count(word) > 1})
    if repeated or "" in own:
        fault = f"names the class {repeated[0]!r} more than once" if repeated else "has a class without a name"
        raise UserError(f"task {name}: {place} {fault}")
    if not given or given == own:
        return Classes(own, _numbered(own))
    shared = set(given) & set(own)
    if len(given) != len(own):
        raise UserError(f"task {name}: {len(given)} 'classes' in task/{name}.yaml, {len(own)} in {place}")
    if words and len(shared) == len(own):
        return Classes(given, _numbered(given))
    if len(shared) == len(own):
        order = ", ".join(own)
        raise UserError(f"task {name}: 'classes' in task/{name}.yaml has another order than {place}: {order}")
    if words and shared:
        unknown = ", ".join(sorted(set(own) - shared))
        raise UserError(f"task {name}: 'classes' in task/{name}.yaml lacks {unknown}, which {place} has")
    return Classes(given, _numbered(own))


def _numbered(names: tuple[str, ...]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _words(table: Table, task: Task) -> tuple[str, ...]:
    """Return the distinct words of a label column of text, sorted; () if it holds something else."""
    from pyarrow import types

    kind = table.schema.field(task.label).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        return ()
    words = set(table.column(task.label).unique().to_pylist())
    return tuple(sorted(words - {None, str(task.no_label)}))


def _check_names(name: str, task: Task, table: Table) -> None:
    """Check that a split has the class names of the test split.

    Raises:
        UserError: with both lists.
    """
    if task.regression or table.labels_are_words:
        return
    own = table.class_names(task.label)
    test, _ = open_split(name, task, "test")
    expected = test.class_names(task.label)
    if own != expected:
        here, there = ", ".join(own), ", ".join(expected)
        raise UserError(f"task {name}: {table.place} has the classes {here}; {test.place} has {there}")


def _empty(classes: Classes, labels: np.ndarray) -> tuple[str, ...]:
    """Return the names of classes without a row."""
    import numpy as np

    counts = np.bincount(labels, minlength=len(classes.names))
    return tuple(name for name, count in zip(classes.names, counts.tolist(), strict=True) if not count)


def _kept(name: str, task: Task, classes: Classes) -> list[int]:
    """Return the numbers of the classes that a task keeps.

    Raises:
        UserError: if one is unknown.
    """
    unknown = [word for word in task.keep if word not in classes.names]
    if unknown:
        known = ", ".join(classes.names)
        raise UserError(f"task {name}: 'keep' names unknown classes {', '.join(unknown)} (it has {known})")
    return [classes.names.index(word) for word in task.keep]
