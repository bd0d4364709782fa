"""Tokenising a split's texts once, into one padded tensor of ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from taskvec.data.locate import locate_file
from taskvec.data.rows import TaskData
from taskvec.data.tables import open_table
from taskvec.data.tasks import Corpus, TextTask
from taskvec.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor

    from taskvec.data.tables.base import Table

    Tokenize = Callable[[Sequence[Sequence[str]]], Tensor]

BATCH = 4096  # rows read at once
FIRST = {"val": 0, "test": 1}  # row of a corpus's split; every other row from there is its own


def tokenise_split(
    name: str, task: TextTask, split: str, tokenize: Tokenize, *, framed: bool
) -> dict[str, Tensor]:
    """Return ``inputs`` [N, L] int32 (token ids, padded on the right with -1) and ``labels`` [N] int64.

    The labels of a regression are float32 scores. ``tokenize`` takes examples as (before, text, after) or (before,
    text, between, text, after); ``framed`` False leaves the fixed pieces empty.

    Raises:
        UserError: if a split is empty or a cell holds no text; the message names the row.
    """
    import torch

    from taskvec.data.tables.base import cells

    data = TaskData(name, task).read(split)
    check_texts(data.table, task.columns, split, task.max_text_mb)
    columns, fixed = _frame(task, framed)
    parts = []
    for batch in data.table.batches(columns, data.rows, BATCH):
        examples = []
        for _, texts in cells(batch):
            examples.append(_interleaved(fixed, texts))
        parts.append(tokenize(examples))
    return {"inputs": _padded(parts), "labels": torch.from_numpy(data.labels)}


def _frame(task: TextTask, framed: bool) -> tuple[tuple[str, ...], list[str]]:
    """Return a task's columns in the order in which they are read, and the fixed pieces around them."""
    columns = task.columns
    if not framed:
        return columns, [""] * (len(columns) + 1)
    if task.pair:
        pair_first = task.frame.index("{pair}") < task.frame.index("{text}")
        columns = columns[::-1] if pair_first else columns
    return columns, re.split(r"{text}|{pair}", task.frame)


def _interleaved(fixed: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return before, text, (between, text,) after."""
    pieces = [fixed[0]]
    for text, after in zip(texts, fixed[1:], strict=True):
        pieces += [text, after]
    return pieces


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Return token ids [n, L] of different L in one tensor, padded on the right with -1."""
    import torch
    import torch.nn.functional as F

    longest = max(part.shape[1] for part in parts)
    equal = []
    for part in parts:
        missing = longest - part.shape[1]
        equal.append(F.pad(part, (0, missing), value=-1))
    return torch.cat(equal)


def check_texts(
    table: Table, columns: Sequence[str], split: str, max_mb: int, *, blank: bool = False
) -> None:
    """Check that every row holds a text (one of two may be empty; ``blank``: all may), within ``max_mb`` in all.

    What a file expands to has no relation to its size: 50 kB of compressed Parquet can hold a gigabyte of text.

    Raises:
        UserError: naming the first row without a text, or the limit.
    """
    import numpy as np

    size = 0
    every_row = np.arange(len(table))
    for batch in table.batches(columns, every_row, BATCH):
        missing = np.zeros(len(batch.rows), bool)
        empty = np.ones(len(batch.rows), bool)
        for column in batch.columns.columns:
            texts = _Measured.of(column)
            size += texts.bytes
            missing |= texts.missing
            empty &= texts.empty
        if size > max_mb << 20:
            over = f"the texts of {table.place} take more than {max_mb} MB"
            raise UserError(f"{table.owner}: {over}; set max_text_mb if that is meant")
        bad = missing | empty
        if bad.any() and not blank:
            row = int(batch.rows[bad.argmax()])
            raise UserError(f"{table.owner}: {split} row {row} holds no text ({table.where(row)})")


class _Measured(NamedTuple):
    """What a column of texts takes, and which of its cells [n] are missing or nothing but space."""

    bytes: int
    missing: np.ndarray
    empty: np.ndarray

    @classmethod
    def of(cls, column: pa.Array) -> _Measured:
        """Measure each distinct text once; the repeated ones are never made."""
        from pyarrow import compute, types

        texts = column if types.is_dictionary(column.type) else column.dictionary_encode()
        lengths = compute.binary_length(texts.dictionary)
        trimmed = compute.utf8_trim_whitespace(texts.dictionary)
        space = compute.equal(trimmed, "")
        total = compute.sum(lengths.take(texts.indices)).as_py()
        empty = compute.fill_null(space.take(texts.indices), True)
        missing = texts.is_null()
        return cls(
            total or 0, missing.to_numpy(zero_copy_only=False), empty.to_numpy(zero_copy_only=False)
        )


def corpus_table(name: str, corpus: Corpus) -> Table:
    """Return the table of a corpus.

    Raises:
        UserError: if it cannot be found or read, or has no column of text of that name.
    """
    from taskvec.data.tables.base import is_text

    located = locate_file(name, corpus.folder, corpus.file)
    table = open_table(name, corpus, located)
    if corpus.text not in table.schema.names:
        present = ", ".join(table.schema.names)
        raise UserError(
            f"task {name}: {table.place} has no column {corpus.text!r} (it has {present})"
        )
    kind = table.schema.field(corpus.text).type
    if not is_text(kind):
        raise UserError(
            f"task {name}: {table.place}: column {corpus.text!r} holds {kind}, not text"
        )
    return table


def tokenise_corpus(name: str, corpus: Corpus, split: str, tokenize: Tokenize) -> dict[str, Tensor]:
    """Return ``inputs`` [N, L] int32, the documents of a split cut to the backbone's longest input.

    Raises:
        UserError: if the file cannot be read or the split holds no text.
    """
    import numpy as np

    table = corpus_table(name, corpus)
    check_texts(table, (corpus.text,), split, corpus.max_text_mb, blank=True)
    rows = np.arange(FIRST[split], len(table), 2)
    parts = []
    for texts in _documents(table, corpus.text, rows):
        examples = [("", text, "") for text in texts]
        parts.append(tokenize(examples))
    if not parts:
        raise UserError(
            f"task {name}: split {split!r} holds no text ({len(table)} rows in {table.place})"
        )
    return {"inputs": _padded(parts)}


def _documents(table: Table, column: str, rows: np.ndarray) -> Iterator[list[str]]:
    """Yield the texts of each batch that are not empty."""
    from taskvec.data.tables.base import cells

    for batch in table.batches([column], rows, BATCH):
        texts = [text for _, (text,) in cells(batch) if text]
        if texts:
            yield texts
