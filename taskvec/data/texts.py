"""Tokenising a split's texts once, into one padded tensor of ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from taskvec.data.locate import locate_file
from taskvec.data.rows import read_split
from taskvec.data.tables import open_table
from taskvec.data.tasks import Corpus, TextTask
from taskvec.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from taskvec.data.tables.base import Table

    Tokenize = Callable[[Sequence[Sequence[str]]], Tensor]

SPLITS = ("val", "test")  # of a corpus, whose rows alternate


def tokenise_split(name: str, task: TextTask, split: str, tokenize: Tokenize, *, framed: bool) -> dict[str, Tensor]:
    """Return ``inputs`` [N, L] int32 (token ids, padded on the right with -1) and ``labels`` [N] int64.

    The labels of a regression are float32 scores. ``tokenize`` takes examples as (before, text, after) or (before,
    text, between, text, after); ``framed`` False leaves the fixed pieces empty.

    Raises:
        UserError: if a split is empty or a cell holds no text; the message names the row.
    """
    import torch

    from taskvec.data.tables.base import cells

    data = read_split(name, task, split)
    check_texts(data.table, task.columns, split, task.max_text_mb)
    fixed = re.split(r"{text}|{pair}", task.frame) if framed else [""] * (len(task.columns) + 1)
    columns = task.columns
    if framed and task.pair and task.frame.index("{pair}") < task.frame.index("{text}"):
        columns = columns[::-1]
    parts = []
    for batch in data.table.batches(columns, data.rows):
        examples = [_interleaved(fixed, texts) for _, texts in cells(batch)]
        parts.append(tokenize(examples))
    return {"inputs": padded(parts), "labels": torch.from_numpy(data.labels)}


def _interleaved(fixed: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return before, text, (between, text,) after."""
    pieces = [fixed[0]]
    for text, after in zip(texts, fixed[1:], strict=True):
        pieces += [text, after]
    return pieces


def padded(parts: Sequence[Tensor]) -> Tensor:
    """Return token ids [n, L] of different L in one tensor, padded on the right with -1."""
    import torch.nn.functional as F
    from torch import cat

    longest = max(part.shape[1] for part in parts)
    return cat([F.pad(part, (0, longest - part.shape[1]), value=-1) for part in parts])


def check_texts(table: Table, columns: Sequence[str], split: str, max_mb: int, *, blank: bool = False) -> None:
    """Check that every row holds a text (one of two may be empty; ``blank``: all may), within ``max_mb`` in all.

    What a file expands to has no relation to its size: 50 kB of compressed Parquet can hold a gigabyte of text.

    Raises:
        UserError: naming the first row without a text, or the limit.
    """
    import numpy as np
    from pyarrow import compute

    size = 0
    for batch in table.batches(columns, np.arange(len(table))):
        missing = np.zeros(len(batch.rows), bool)
        empty = np.ones(len(batch.rows), bool)
        for column in batch.columns.columns:
            texts = column if hasattr(column, "dictionary") else column.dictionary_encode()
            lengths = compute.binary_length(texts.dictionary).take(texts.indices)
            trimmed = compute.equal(compute.utf8_trim_whitespace(texts.dictionary), "").take(texts.indices)
            size += compute.sum(lengths).as_py() or 0
            missing |= texts.is_null().to_numpy(zero_copy_only=False)
            empty &= compute.fill_null(trimmed, True).to_numpy(zero_copy_only=False)
        if size > max_mb << 20:
            over = f"the texts of {table.place} take more than {max_mb} MB"
            raise UserError(f"{table.owner}: {over}; set max_text_mb if that is meant")
        bad = missing | empty
        if bad.any() and not blank:
            row = int(batch.rows[bad.argmax()])
            raise UserError(f"{table.owner}: {split} row {row} holds no text ({table.where(row)})")


def corpus_table(name: str, corpus: Corpus) -> Table:
    """Return the table of a corpus.

    Raises:
        UserError: if it cannot be found or read, or has no column of text of that name.
    """
    from pyarrow import types

    table = open_table(name, corpus, locate_file(name, corpus.folder, corpus.file))
    present = ", ".join(table.schema.names)
    if corpus.text not in table.schema.names:
        raise UserError(f"task {name}: {table.place} has no column {corpus.text!r} (it has {present})")
    kind = table.schema.field(corpus.text).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise UserError(f"task {name}: {table.place}: column {corpus.text!r} holds {kind}, not text")
    return table


def tokenise_corpus(name: str, corpus: Corpus, split: str, tokenize: Tokenize) -> dict[str, Tensor]:
    """Return ``inputs`` [N, L] int32, the documents of a split cut to the backbone's longest input.

    Raises:
        UserError: if the file cannot be read or the split holds no text.
    """
    import numpy as np

    table = corpus_table(name, corpus)
    check_texts(table, (corpus.text,), split, corpus.max_text_mb, blank=True)
    rows = np.arange(SPLITS.index(split), len(table), 2)
    parts = [tokenize([("", text, "") for text in texts]) for texts in _documents(table, corpus.text, rows)]
    if not parts:
        raise UserError(f"task {name}: split {split!r} holds no text ({len(table)} rows in {table.place})")
    return {"inputs": padded(parts)}


def _documents(table: Table, column: str, rows: np.ndarray) -> Iterator[list[str]]:
    """Yield the texts of each batch that are not empty."""
    from taskvec.data.tables.base import cells

    for batch in table.batches([column], rows):
        texts = [text for _, (text,) in cells(batch) if text]
        if texts:
            yield texts
