"""Tokenising a split's texts once, into one padded tensor of ids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from taskvec.data.rows import read_rows
from taskvec.data.tasks import Corpus, TextTask
from taskvec.errors import UserError

SPLITS = ("val", "test")  # of a corpus, whose rows alternate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def tokenise_split(
    name: str, task: TextTask, split: str, tokenize: Callable[[Sequence[Sequence[str]]], Tensor], *, framed: bool
) -> dict[str, Tensor]:
    """Return ``inputs`` [N, L] int32 (token ids, padded on the right with -1) and ``labels`` [N] int64.

    The labels of a regression are float32 scores. ``tokenize`` takes examples as (before, text, after) or (before,
    text, between, text, after); ``framed`` False leaves the fixed pieces empty.

    Raises:
        UserError: if a split is empty or a cell holds no text; the message names the row.
    """
    import torch

    columns, labels, rows = read_rows(name, task, split)
    for row, *cells in zip(rows, *columns, strict=True):
        if not all(isinstance(cell, str) for cell in cells) or not any(cell.strip() for cell in cells):
            raise UserError(f"task {name}: {split} row {row} holds no text")
    fixed = re.split(r"{text}|{pair}", task.frame) if framed else [""] * (len(columns) + 1)
    if framed and task.pair and task.frame.index("{pair}") < task.frame.index("{text}"):
        columns = columns[::-1]
    examples = [
        [piece for pair in zip(fixed, texts, strict=False) for piece in pair] + [fixed[-1]]
        for texts in zip(*columns, strict=True)
    ]
    kind = torch.float32 if task.regression else torch.int64
    return {"inputs": tokenize(examples), "labels": torch.tensor(labels, dtype=kind)}


def tokenise_corpus(
    name: str, corpus: Corpus, split: str, tokenize: Callable[[Sequence[Sequence[str]]], Tensor]
) -> dict[str, Tensor]:
    """Return ``inputs`` [N, L] int32, the documents of a split cut to the backbone's longest input.

    Raises:
        UserError: if the file cannot be read or the split holds no text.
    """
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        texts = parquet.read_table(corpus.location, columns=[corpus.text])[corpus.text].to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"task {name}: {corpus.location} cannot be read: {str(error).splitlines()[0]}") from error
    chosen = [text for text in texts[SPLITS.index(split) :: 2] if text]
    if not chosen:
        raise UserError(f"task {name}: split {split!r} holds no text ({len(texts)} rows in {corpus.location})")
    return {"inputs": tokenize([("", text, "") for text in chosen])}
