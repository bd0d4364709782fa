"""Parquet in any number of files, each opened by its own name, so that no folder is searched for partitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from taskvec.data.tables.base import (
    BATCH,
    MAX_ROWS,
    Batch,
    Table,
    among,
    coded,
    feature_names,
    first_line,
    is_text,
    plain_schema,
)
from taskvec.errors import UserError

ERRORS = (pa.ArrowException, OSError)


class ParquetTable(Table):
    """The rows of some Parquet files, one after the other.

    Texts and bytes are read as dictionaries and made cell by cell: a file of kilobytes may stand for gigabytes.
    """

    def __init__(self, owner: str, files: Sequence[Path]):
        super().__init__(owner, files)
        for path, stored in zip(self.files, self._stored, strict=True):
            self._same_as_first(path, stored)
        if len(self) > MAX_ROWS:
            raise UserError(
                f"{owner}: {self.place} holds {len(self):,} rows, more than {MAX_ROWS:,}"
            )

    def _same_as_first(self, path: Path, stored: pa.Schema) -> None:
        first = self._stored[0]
        if not stored.equals(first):
            raise UserError(f"{self.owner}: the columns of {path} are not those of {self.files[0]}")
        for column in stored.names:
            own = feature_names(stored.metadata, column)
            if own != feature_names(first.metadata, column):
                raise UserError(
                    f"{self.owner}: {path} has other class names of {column!r} than {self.files[0]}"
                )

    @cached_property
    def _stored(self) -> list[pa.Schema]:
        return [metadata.schema.to_arrow_schema() for metadata in self._metadata]

    @cached_property
    def _metadata(self) -> list[parquet.FileMetaData]:
        found = []
        for path in self.files:
            try:
                found.append(parquet.read_metadata(path))
            except ERRORS as error:
                reason = first_line(error)
                raise UserError(
                    f"{self.owner}: {path} is not a readable Parquet file: {reason}"
                ) from error
        return found

    @property
    def schema(self) -> pa.Schema:
        """The columns of the first file, which all share."""
        return plain_schema(self._stored[0])

    def __len__(self) -> int:
        return sum(metadata.num_rows for metadata in self._metadata)

    def class_names(self, column: str) -> tuple[str, ...]:
        """Return the names that `datasets` wrote into the schema."""
        return feature_names(self._stored[0].metadata, column)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column."""
        found = []
        for path, metadata in zip(self.files, self._metadata, strict=True):
            try:
                file = self._open(path, metadata, [name])
                for batch in file.iter_batches(65536, columns=[name], use_threads=False):
                    found.append(batch.column(0))
            except ERRORS as error:
                raise self.damaged(error, path) from error
        kind = self.schema.field(name).type
        # Chunks say what they are; of none it has to be told
        told = None if found else kind
        column = pa.chunked_array(found, told)
        return coded(column) if is_text(kind) else column

    def batches(
        self, columns: Sequence[str], rows: np.ndarray, size: int = BATCH
    ) -> Iterator[Batch]:
        """Yield columns of the wanted rows; row groups without any are passed over."""
        first = 0
        for path, metadata in zip(self.files, self._metadata, strict=True):
            own = among(rows, first, metadata.num_rows)
            try:
                file = self._open(path, metadata, columns)
                for batch in _wanted(file, columns, own - first, size):
                    yield Batch(batch.rows + first, batch.columns)
            except ERRORS as error:
                raise self.damaged(error, path) from error
            first += metadata.num_rows

    def _open(
        self, path: Path, metadata: parquet.FileMetaData, columns: Sequence[str]
    ) -> parquet.ParquetFile:
        inside = tuple(f"{column}." for column in columns)
        coded_leaves = [leaf for leaf in self._leaves if leaf in columns or leaf.startswith(inside)]
        # one page at a time instead of a whole row group's compressed bytes
        return parquet.ParquetFile(
            path,
            metadata=metadata,
            read_dictionary=coded_leaves,
            buffer_size=1 << 20,
            pre_buffer=False,
        )

    @cached_property
    def _leaves(self) -> list[str]:
        """The columns of bytes or text, those inside structs with dots."""
        schema = self._metadata[0].schema
        leaves = [schema.column(index) for index in range(len(schema))]
        return [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]

    def where(self, row: int) -> str:
        """Return file and row in it."""
        for path, metadata in zip(self.files, self._metadata, strict=True):
            if row < metadata.num_rows:
                return f"row {row} of {path}"
            row -= metadata.num_rows
        return super().where(row)

    def embedded(self, column: str) -> bool:
        """Return whether the files' statistics say that no image lacks its bytes."""
        names = (column, f"{column}.bytes")
        for metadata in self._metadata:
            for group in range(metadata.num_row_groups):
                chunk = _chunk(metadata.row_group(group), names)
                if chunk is None or not chunk.is_stats_set or chunk.statistics.null_count != 0:
                    return False
        return True


def _chunk(
    group: parquet.RowGroupMetaData, names: Sequence[str]
) -> parquet.ColumnChunkMetaData | None:
    """Return the first column of a row group that has one of some names."""
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema in names:
            return chunk
    return None


def _wanted(
    file: parquet.ParquetFile, columns: Sequence[str], rows: np.ndarray, size: int
) -> Iterator[Batch]:
    """Yield columns of the wanted rows of one file."""
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if not len(among(rows, start, count)):
            start += count
            continue
        for batch in file.iter_batches(
            size, row_groups=[group], columns=list(columns), use_threads=False
        ):
            own = among(rows, start, len(batch))
            if len(own):
                inside = pa.array(own - start)
                yield Batch(own, batch.select(columns).take(inside))
            start += len(batch)
