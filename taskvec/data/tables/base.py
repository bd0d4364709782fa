"""What every table can do: say what it holds, give a column of labels, stream the rows that are wanted."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import types

from taskvec.errors import UserError

BATCH = 256  # rows of one batch of images; texts are read in larger ones
MAX_ROWS = 50_000_000  # of a split


class Batch(NamedTuple):
    """Some rows of a table: their numbers [n] int64, and the columns asked for."""

    rows: np.ndarray
    columns: pa.RecordBatch


class Table(ABC):
    """The rows of one split, in file order.

    ``owner`` begins every error ("task NAME"), ``files`` are what the rows are read from, ``schema`` the columns with
    their Arrow types (of a dictionary: its values'). ``typed`` is False where every cell is text, as in CSV;
    ``labels_are_words`` says that labels are the class names themselves although the table names its classes.
    """

    typed: ClassVar[bool] = True
    labels_are_words: ClassVar[bool] = False

    def __init__(self, owner: str, files: Sequence[Path]):
        self.owner, self.files = owner, tuple(files)

    @property
    def place(self) -> str:
        """The file, or the first of several."""
        more = len(self.files) - 1
        return f"{self.files[0]} (and {more} more)" if more else str(self.files[0])

    @property
    def folder(self) -> Path:
        """The folder that relative paths of images start from."""
        return self.files[0].parent

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column: labels, which are small. Texts come as dictionaries of what is distinct.

        Raises:
            UserError: if it cannot be read.
        """

    @abstractmethod
    def batches(
        self, columns: Sequence[str], rows: np.ndarray, size: int = BATCH
    ) -> Iterator[Batch]:
        """Yield columns of the wanted ``rows`` [n], ascending, at most ``size`` rows at a time.

        Raises:
            UserError: if they cannot be read.
        """

    def class_names(self, column: str) -> tuple[str, ...]:
        """Return the class names that the table itself gives to the numbers in a column, () if it has none."""
        return ()

    def where(self, row: int) -> str:
        """Return where a row stands, for errors."""
        return f"row {row} of {self.place}"

    def encoded(self, cell: Any) -> bytes | Path:
        """Return an image cell's bytes, or the file that it names: relative paths start beside the table.

        Raises:
            ValueError: if it holds neither.
        """
        content, path = (
            (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
        )
        if isinstance(content, str):
            content, path = None, content
        if content is not None:
            return content
        if not path:
            raise ValueError("its bytes are missing")
        return self.folder / path

    def embedded(self, column: str) -> bool:
        """Return whether every image of a column is known to hold its bytes, so that no path is ever read."""
        return False

    def damaged(self, error: Exception, place: Path | str | None = None) -> UserError:
        """Return the error of a file that cannot be read."""
        reason = first_line(error)
        return UserError(f"{self.owner}: {place or self.place} is damaged: {reason}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def feature_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """Return the class names that `datasets` has written for a column into a schema's metadata, () if none."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema with the values' types in place of dictionaries."""
    for index, field in enumerate(schema):
        if types.is_dictionary(field.type):
            schema = schema.set(index, field.with_type(field.type.value_type))
    return schema


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type holds text."""
    return types.is_string(kind) or types.is_large_string(kind)


def coded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as a dictionary over all its chunks."""
    if not types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.unify_dictionaries()


def cells(batch: Batch) -> Iterator[tuple[int, list[Any]]]:
    """Yield row number and cells of each row; one row's cells are made at a time."""
    for place, row in enumerate(batch.rows.tolist()):
        yield row, [column[place].as_py() for column in batch.columns.columns]


def among(rows: np.ndarray, start: int, count: int) -> np.ndarray:
    """Return those of ascending ``rows`` that lie among ``count`` rows from ``start``."""
    low, high = np.searchsorted(rows, (start, start + count))
    return rows[low:high]
