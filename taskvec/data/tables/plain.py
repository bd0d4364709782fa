"""CSV and JSON lines, read record by record.

The readers of pandas and `datasets` are not used: they turn words such as "NA", "None" or "null" into missing values,
strings of digits or dates into something else, and copy every file into a cache.
"""

from __future__ import annotations

import csv
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np
import pyarrow as pa

from taskvec.data.tables.base import (
    BATCH,
    MAX_ROWS,
    Batch,
    Table,
    among,
    coded,
    first_line,
    is_text,
)
from taskvec.errors import UserError

Record = Mapping[str, Any]
LINE = 64 << 20  # the longest line, in characters
CELL = 16 << 20  # the longest cell of a CSV file
ERRORS = (OSError, ValueError, csv.Error, RecursionError, pa.ArrowException, TypeError)


class PlainTable(Table):
    """The records of some text files, one after the other; a column's type is that of its first value."""

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        count = 0
        for _ in self._records():
            count += 1
            if count > MAX_ROWS:
                raise UserError(f"{self.owner}: {self.place} holds more than {MAX_ROWS:,} rows")
        return count

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the first records, with the types of what they hold."""
        head = list(islice(self._records(), BATCH))
        names = dict.fromkeys(name for record in head for name in record)
        fields = []
        for name in names:
            values = [record.get(name) for record in head]
            fields.append(pa.field(name, self._array(values, None).type))
        return pa.schema(fields)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column."""
        kind = self.schema.field(name).type
        found = []
        records = self._records()
        while batch := list(islice(records, 65536)):
            found.append(self._array([record.get(name) for record in batch], kind))
        column = pa.chunked_array(found, kind)
        return coded(column) if is_text(kind) else column

    def batches(
        self, columns: Sequence[str], rows: np.ndarray, size: int = BATCH
    ) -> Iterator[Batch]:
        """Yield columns of the wanted rows."""
        start = 0
        records = self._records()
        while batch := list(islice(records, size)):
            own = among(rows, start, len(batch))
            if len(own):
                wanted = [batch[row - start] for row in own.tolist()]
                yield Batch(own, self._batch(wanted, columns))
            start += len(batch)

    def _batch(self, records: Sequence[Record], columns: Sequence[str]) -> pa.RecordBatch:
        arrays = []
        for name in columns:
            values = [record.get(name) for record in records]
            arrays.append(self._array(values, self.schema.field(name).type))
        return pa.RecordBatch.from_arrays(arrays, list(columns))

    def _array(self, values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
        try:
            return pa.array(values, kind)
        except ERRORS as error:
            reason = first_line(error)
            raise UserError(
                f"{self.owner}: {self.place} mixes values of different types: {reason}"
            ) from error

    def _records(self) -> Iterator[Record]:
        for path in self.files:
            try:
                # the mark that spreadsheet programs put first is no part of a column's name
                with path.open(encoding="utf-8-sig", newline="") as file:
                    yield from self.parse(file)
            except ERRORS as error:
                if isinstance(error, UserError):
                    raise
                raise self.damaged(error, path) from error

    @abstractmethod
    def parse(self, file: TextIO) -> Iterator[Record]:
        """Yield the records of a file.

        Raises:
            ValueError: naming the first line that is malformed.
        """


class CsvTable(PlainTable):
    """CSV with a header line; every cell is text."""

    typed: ClassVar[bool] = False

    def __init__(self, owner: str, files: Sequence[Path]):
        super().__init__(owner, files)
        csv.field_size_limit(CELL)
        first = tuple(self.schema.names)
        for path in self.files[1:]:
            if self._names(path) != first:
                raise UserError(f"{owner}: the columns of {path} are not those of {self.files[0]}")

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns that the first file names, all of text."""
        return pa.schema([(name, pa.string()) for name in self._names(self.files[0])])

    def _names(self, path: Path) -> tuple[str, ...]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                lines = csv.reader(limited(file), strict=True)
                names = tuple(next(lines, ()))
        except ERRORS as error:
            raise self.damaged(error, path) from error
        if not names or len(set(names)) < len(names):
            raise UserError(f"{self.owner}: the first line of {path} must name each column, once")
        return names

    def parse(self, file: TextIO) -> Iterator[Record]:
        """Yield the lines after the first.

        Raises:
            ValueError: if one has another number of cells than the first.
        """
        reader = csv.reader(limited(file), strict=True)
        names = next(reader, [])
        for cells in reader:
            if not cells:
                continue  # an empty line, such as the last one of many editors
            if len(cells) != len(names):
                raise ValueError(
                    f"line {reader.line_num} has {len(cells)} cells, the header {len(names)}"
                )
            yield dict(zip(names, cells, strict=True))


class JsonTable(PlainTable):
    """JSON lines: one object a line."""

    def parse(self, file: TextIO) -> Iterator[Record]:
        """Yield the object of each line.

        Raises:
            ValueError: if a line holds something else.
        """
        for number, line in enumerate(limited(file), start=1):
            if not line.strip():
                continue
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"line {number} is no JSON object; one object a line is read")
            yield record


def limited(file: TextIO) -> Iterator[str]:
    """Yield a file's lines.

    Raises:
        ValueError: if one is longer than :data:`LINE`.
    """
    while line := file.readline(LINE + 1):
        if len(line) > LINE:
            raise ValueError(f"a line is longer than {LINE:,} characters")
        yield line
