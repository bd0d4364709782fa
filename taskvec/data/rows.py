"""The rows of a split that a task uses: after the hold-out, with a label, of the classes it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from taskvec.data.labels import SCORE, Classes, LabelRule, numbered, read_labels
from taskvec.data.locate import Located, locate
from taskvec.data.splits import OF_TEST, hold_out
from taskvec.data.tables import open_table
from taskvec.data.tasks import Task
from taskvec.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from taskvec.data.tables.base import Table

Names = tuple[str, ...]


@dataclass(frozen=True)
class SplitRows:
    """A split's table, the numbers of the rows in use [n] ascending, and their labels [n].

    ``empty`` are the classes that no row of the split has, before ``keep`` leaves any out.
    """

    table: Table
    rows: np.ndarray
    labels: np.ndarray
    empty: tuple[str, ...]


class TaskData:
    """The files of one task, each found and opened once."""

    def __init__(self, name: str, task: Task):
        self.name, self.task = name, task
        self.owner = f"task {name}"
        self._located: dict[str, Located] = {}
        self._tables: dict[str, Table] = {}

    def located(self, split: str) -> Located:
        """Return where a local split is.

        Raises:
            UserError: if it cannot be found.
        """
        if split not in self._located:
            self._located[split] = locate(self.name, self.task, split)
        return self._located[split]

    def table(self, split: str) -> Table:
        """Return the table of a split; that of train where validation is held out of it.

        Raises:
            UserError: if it cannot be found or read, or a column is missing or of another type.
        """
        if split not in self._tables:
            table = self._open(self.stored_in(split))
            check_columns(self.task, table)
            self._tables[split] = table
        return self._tables[split]

    def _open(self, split: str) -> Table:
        if self.task.folder is not None:
            return open_table(self.name, self.task, self.located(split))
        from taskvec.data.hub import open_hub

        return open_hub(self.name, self.task, split)

    def stored_in(self, split: str) -> str:
        """Return the split whose files hold the examples of one: test where validation is a part of it."""
        return "test" if split == "val" and self.held_out_of == "test" else split

    @cached_property
    def held_out_of(self) -> str | None:
        """The split that validation is held out of, None where it has files of its own."""
        if self.task.split_rule in OF_TEST:
            return "test"
        return "train" if self._without_val() else None

    def _without_val(self) -> bool:
        if self.task.folder is not None:
            return self.located("val").held_out
        from taskvec.data.hub import hub_split

        _, held_out = hub_split(self.name, self.task, "val")
        return held_out

    @cached_property
    def classes(self) -> Classes:
        """The task's classes: those its files name, else ``classes``, else the distinct label words of train, sorted.

        Folders of images name their classes. ``classes`` beside names in the files replaces them in prompts.

        Raises:
            UserError: if nothing names the classes, or two sources contradict each other.
        """
        task = self.task
        if task.regression:
            return Classes(SCORE, {}, highest=len(task.words) - 1)
        test = self.table("test")
        if not test.labels_are_words:
            named = test.class_names(task.label)
            if named:
                return _of_numbers(self.name, test.place, named, task.classes)
            if task.classes:
                return Classes(task.classes, numbered(task.classes))
        train = self.table("train")
        words = train.class_names(task.label) if train.labels_are_words else _words(train, task)
        if not words:
            remedy = f"give them as 'classes' in task/{self.name}.yaml"
            raise UserError(f"{self.owner}: {test.place} has no class names; {remedy}")
        return _of_words(self.name, train.place, words, task.classes)

    def read(self, split: str) -> SplitRows:
        """Return the rows of a split; of their inputs only the columns' types are looked at.

        Raises:
            UserError: if the data cannot be read, a label is neither a class nor a score, or the split is empty.
        """
        import numpy as np

        table = self.table(split)
        self._check_names(table)
        total = len(table)
        if not total:
            raise UserError(f"{self.owner}: {table.place} holds no examples")
        self.check_count(split, total)
        rule = LabelRule(self.classes, self.task.no_label, table.typed)
        column = table.column(self.task.label)
        labels, used = read_labels(column, rule, self.owner, table.place)
        used &= self._own_part(split, total)
        empty = self._empty(labels[used])
        if self.task.keep:
            used &= np.isin(labels, self._kept())
        rows = np.flatnonzero(used)
        if not len(rows):
            raise UserError(
                f"{self.owner}: split {split!r} holds no examples ({total} in {table.place})"
            )
        return SplitRows(table, rows, labels[rows], empty)

    def _own_part(self, split: str, total: int) -> np.ndarray:
        """Return which of a table's rows [N] bool are the split's, after the hold-out."""
        import numpy as np

        if self.held_out_of is None or split not in ("val", self.held_out_of):
            return np.ones(total, bool)
        rest, val = hold_out(total, self.task.split_rule)
        part = np.zeros(total, bool)
        own = val if split == "val" else rest
        part[own.numpy()] = True
        return part

    def check_count(self, split: str, total: int) -> None:
        """Check that a split's files hold as many rows as the task's card says.

        Raises:
            UserError: with both numbers.
        """
        # validation that is held out lies in the files of another split
        stored = self.held_out_of if split == "val" and self.held_out_of else split
        called = self.task.splits.get(stored)
        expected = self.task.facts.rows.get(called)
        if expected not in (None, total):
            raise UserError(
                f"{self.owner}: {called} holds {total:,} rows, its card says {expected:,}; "
                "suite.check_counts=false reads it all the same"
            )

    def _empty(self, labels: np.ndarray) -> tuple[str, ...]:
        """Return the names of classes without a label [n]."""
        import numpy as np

        if self.task.regression:
            return ()
        names = self.classes.names
        counts = np.bincount(labels, minlength=len(names))
        return tuple(names[number] for number in np.flatnonzero(counts == 0))

    def _check_names(self, table: Table) -> None:
        """Check that a split's numbers mean the classes of the test split.

        Raises:
            UserError: with both lists.
        """
        if self.task.regression or table.labels_are_words:
            return
        test = self.table("test")
        names = table.class_names(self.task.label)
        expected = test.class_names(self.task.label)
        if names != expected:
            here = ", ".join(names)
            there = ", ".join(expected)
            raise UserError(
                f"{self.owner}: {table.place} has the classes {here}; {test.place} has {there}"
            )

    def _kept(self) -> list[int]:
        """Return the numbers of the classes that the task keeps.

        Raises:
            UserError: if one is unknown.
        """
        names = self.classes.names
        unknown = [word for word in self.task.keep if word not in names]
        if unknown:
            known = ", ".join(names)
            others = ", ".join(unknown)
            raise UserError(f"{self.owner}: 'keep' names unknown classes {others} (it has {known})")
        return [names.index(word) for word in self.task.keep]


def check_columns(task: Task, table: Table) -> None:
    """Check that a table has a task's columns, and that they can hold its inputs.

    Raises:
        UserError: naming the first that is missing or of another type.
    """
    schema = table.schema
    for column in (*task.columns, task.label):
        if column not in schema.names:
            present = ", ".join(schema.names)
            raise UserError(
                f"{table.owner}: {table.place} has no column {column!r} (it has {present})"
            )
    for column in task.columns:
        kind = schema.field(column).type
        if not task.takes(kind):
            raise UserError(
                f"{table.owner}: {table.place}: column {column!r} holds {kind}, not {task.holds}"
            )


def _of_numbers(name: str, place: str, named: Names, given: Names | None) -> Classes:
    """Return the classes of labels that are numbers, which a file names; ``given`` names replace them.

    Raises:
        UserError: if names repeat, or the given ones do not fit.
    """
    _distinct(name, place, named)
    if not given:
        return Classes(named, numbered(named))
    _as_many(name, place, named, given)
    if given != named and set(given) == set(named):
        # each number would come to stand for another class
        order = ", ".join(named)
        raise UserError(
            f"task {name}: 'classes' in task/{name}.yaml has another order than {place}: {order}"
        )
    return Classes(given, numbered(named))


def _of_words(name: str, place: str, words: Names, given: Names | None) -> Classes:
    """Return the classes of labels that are words; ``given`` lists them in its own order, or renames them in theirs.

    Raises:
        UserError: if the given names are partly others.
    """
    _distinct(name, place, words)
    if not given:
        return Classes(words, numbered(words))
    _as_many(name, place, words, given)
    unknown = sorted(set(words) - set(given))
    if not unknown:
        return Classes(given, numbered(given))
    if len(unknown) < len(words):
        lacking = ", ".join(unknown)
        raise UserError(
            f"task {name}: 'classes' in task/{name}.yaml lacks {lacking}, which {place} has"
        )
    return Classes(given, numbered(words))


def _distinct(name: str, place: str, names: Names) -> None:
    if len(set(names)) < len(names):
        repeated = next(word for word in names if names.count(word) > 1)
        raise UserError(f"task {name}: {place} names the class {repeated!r} more than once")
    if "" in names:
        raise UserError(f"task {name}: {place} has a class without a name")


def _as_many(name: str, place: str, names: Names, given: Names) -> None:
    if len(given) != len(names):
        raise UserError(
            f"task {name}: {len(given)} 'classes' in task/{name}.yaml, {len(names)} in {place}"
        )


def _words(table: Table, task: Task) -> Names:
    """Return the distinct words of a label column of text, sorted; () if it holds something else."""
    from taskvec.data.tables.base import is_text

    if not is_text(table.schema.field(task.label).type):
        return ()
    distinct = table.column(task.label).unique()
    words = set(distinct.to_pylist()) - {None, str(task.no_label)}
    return tuple(sorted(words))
