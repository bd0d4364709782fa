"""Texts to token ids: frames that survive truncation, and the special tokens around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Pieces = Sequence[str]  # (before, text, after) or (before, text, between, text, after)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of ids as int32 [N, longest row], padded on the right with -1."""
    import torch

    width = max((len(row) for row in rows), default=0)
    filled = torch.full((len(rows), width), -1, dtype=torch.int32)
    for place, row in enumerate(rows):
        filled[place, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return filled


def encode_pairs(tokenizer: Any, examples: Sequence[Pieces], max_length: int) -> list[list[int]]:
    """Return the ids of one or two texts each, with the tokenizer's own special tokens; the longer text is cut first.

    ``examples`` alternate fixed pieces and texts as for :func:`encode_framed`; the pieces join the text before them.
    """
    rows: list[list[int]] = [[]] * len(examples)
    for paired in (False, True):
        places = [place for place, pieces in enumerate(examples) if (len(pieces) > 3) == paired]
        if not places:
            continue
        first = ["".join(examples[place][:3]) for place in places]
        second = None
        if paired:
            second = ["".join(examples[place][3:]) for place in places]
        encoded = tokenizer(first, second, truncation="longest_first", max_length=max_length)
        for place, row in zip(places, encoded["input_ids"], strict=True):
            rows[place] = row
    return rows


def encode_framed(
    tokenizer: Any, examples: Sequence[Pieces], max_length: int, end: int | None
) -> list[list[int]]:
    """Return the ids of examples as one string each, with what the tokenizer puts before a text.

    A text too long is cut from its end, the longest first, so that the fixed pieces around it are kept whole. The last
    id is ``end``; where that is None, what the tokenizer puts after a text is left out.

    Raises:
        UserError: if the fixed pieces alone are longer than ``max_length``.
    """
    whole = ["".join(pieces) for pieces in examples]
    rows = []
    for pieces, ids in zip(examples, _encode(tokenizer, whole, end), strict=True):
        kept = list(pieces)
        while len(ids) > max_length:
            _cut(tokenizer, kept, len(ids) - max_length)
            (ids,) = _encode(tokenizer, ["".join(kept)], end)
        rows.append(ids)
    return rows


def opening(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer itself puts before a text."""
    return _around(tokenizer)[0]


def started(row: list[int], start: int | None = None) -> list[int]:
    """Return ids that begin with ``start`` exactly once: it is added, or its repetitions are dropped."""
    if start is None:
        return row
    rest = row
    while rest[:1] == [start]:
        rest = rest[1:]
    return [start, *rest]


def _encode(tokenizer: Any, texts: Sequence[str], end: int | None) -> list[list[int]]:
    # Too long for the model is what is looked for
    rows = tokenizer(list(texts), verbose=False)["input_ids"]
    if end is not None:
        return [_ended(row, end) for row in rows]
    closing = len(_around(tokenizer)[1])
    return [row[: len(row) - closing] for row in rows]


def _ended(row: list[int], end: int) -> list[int]:
    return row if row[-1:] == [end] else [*row, end]


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for first in range(len(whole) - len(bare) + 1):
        last = first + len(bare)
        if whole[first:last] == bare:
            return whole[:first], whole[last:]
    return [], []


def _cut(tokenizer: Any, pieces: list[str], excess: int) -> None:
    """Shorten the longest of the texts by at most ``excess`` of its tokens.

    Raises:
        UserError: if no text is left.
    """
    starts: dict[int, list[int]] = {}
    for place in range(1, len(pieces), 2):
        encoded = tokenizer(
            pieces[place], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        starts[place] = [start for start, _ in encoded["offset_mapping"]]
    *_, longest = sorted(starts, key=lambda place: (len(starts[place]), -place))
    length = len(starts[longest])
    if not length:
        frame = " ... ".join(pieces[::2])
        raise UserError(
            f"backbone.max_length: {frame!r} leaves no room for the text by {excess} tokens"
        )
    others = [len(found) for place, found in starts.items() if place != longest]
    gap = length - max(others, default=length - excess)
    # Two texts share the cut once they are equally long, half each.
    share = max(gap, (excess + 1) // 2)
    kept = max(length - min(excess, share), 0)
    text = pieces[longest]
    # Characters of several tokens would not get shorter
    end = min(starts[longest][kept], len(text) - 1)
    pieces[longest] = text[:end]


def special_id(tokenizer: Any, token: str) -> int:
    """Return the id of one token of the vocabulary.

    Raises:
        UserError: if the vocabulary lacks it.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    if token not in vocabulary:
        raise UserError(f"backbone.start_token: the tokenizer has no token {token!r}")
    return vocabulary[token]
