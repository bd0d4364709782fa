"""Folders that `datasets` saved, and data sets of the hub that it has fetched: Arrow tables, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from taskvec.data.tables.base import BATCH, Batch, Table, coded, first_line, is_text, plain_schema
from taskvec.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


class DatasetTable(Table):
    """The rows of a data set of the library `datasets`; ``place`` is the folder or the name it came from."""

    def __init__(self, owner: str, dataset: Dataset, files: Sequence[Path], place: str):
        super().__init__(owner, files)
        self.dataset = dataset.with_format("arrow")
        self._place = place

    @property
    def place(self) -> str:
        """The folder or the name."""
        return self._place

    @property
    def folder(self) -> Path:
        """The folder beside which paths start; those that `datasets` writes are absolute."""
        return self.files[0].parent if self.files else Path("/")

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return plain_schema(self.dataset.features.arrow_schema)

    def __len__(self) -> int:
        return len(self.dataset)

    def class_names(self, column: str) -> tuple[str, ...]:
        """Return the names of a ClassLabel."""
        return tuple(getattr(self.dataset.features.get(column), "names", None) or ())

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column."""
        column = self._read(lambda: self.dataset.select_columns([name])[:])[name]
        return coded(column) if is_text(column.type) else column

    def batches(
        self, columns: Sequence[str], rows: np.ndarray, size: int = BATCH
    ) -> Iterator[Batch]:
        """Yield the wanted rows; no others are read."""
        narrowed = self.dataset.select_columns(list(columns))
        for start in range(0, len(rows), size):
            own = rows[start : start + size]
            table = self._read(lambda own=own: narrowed[own.tolist()])
            (batch,) = table.select(list(columns)).combine_chunks().to_batches()
            yield Batch(own, batch)

    def _read(self, read: Any) -> pa.Table:
        try:
            return read()
        except (pa.ArrowException, OSError, IndexError) as error:
            raise self.damaged(error) from error

    def embedded(self, column: str) -> bool:
        """Return whether no image lacks its bytes."""
        stored = self.dataset.data.table[column]
        if not types.is_struct(stored.type):
            return stored.null_count == 0
        return all(
            chunk.null_count == 0 and chunk.field("bytes").null_count == 0
            for chunk in stored.chunks
        )


def open_saved(owner: str, folder: Path) -> DatasetTable:
    """Return the table of a folder that `datasets` saved.

    Raises:
        UserError: if it cannot be read.
    """
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever the library makes of a damaged folder
        raise UserError(
            f"{owner}: {folder} cannot be read by datasets: {first_line(error)}"
        ) from error
    files = sorted(path for path in folder.iterdir() if path.suffix in (".arrow", ".json"))
    return DatasetTable(owner, dataset, files, str(folder))
