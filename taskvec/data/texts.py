"""Tokenising a split's texts once, into one padded tensor of ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskvec.data.rows import read_rows
from taskvec.data.tasks import TextTask
from taskvec.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.models.language import LanguageModel


def tokenise_split(name: str, task: TextTask, split: str, backbone: LanguageModel) -> dict[str, Tensor]:
    """Return ``inputs`` [N, L] int32 (token ids, padded on the right with -1) and ``labels`` [N] int64.

    Raises:
        UserError: if a split is empty or a cell holds no text; the message names the row.
    """
    import torch

    columns, labels, rows = read_rows(name, task, split)
    for column in columns:
        for row, cell in zip(rows, column, strict=True):
            if not isinstance(cell, str) or not cell.strip():
                raise UserError(f"task {name}: {split} row {row} holds no text")
    before, after = task.frame.split("{text}")
    pairs = columns[1] if task.pair else [""] * len(labels)
    framed = [(before, text, after.replace("{pair}", pair)) for text, pair in zip(columns[0], pairs, strict=True)]
    return {"inputs": backbone.tokenise(framed, columns[1] if task.pair else None), "labels": torch.tensor(labels)}
