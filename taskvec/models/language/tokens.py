"""Texts to token ids: frames that survive truncation, special tokens, label words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of ids as int32 [N, longest row], padded on the right with -1."""
    import torch

    width = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.int32).view(len(rows), width)


def encode_pairs(tokenizer: Any, examples: Sequence[Sequence[str]], max_length: int) -> list[list[int]]:
    """Return the ids of one or two texts each, with the tokenizer's own special tokens; the longer text is cut first.

    ``examples`` alternate fixed pieces and texts as for :func:`encode_framed`; the pieces join the text before them.
    """
    rows: list[list[int]] = [[]] * len(examples)
    for paired in (False, True):
        places = [place for place, pieces in enumerate(examples) if (len(pieces) > 3) == paired]
        if not places:
            continue
        first = ["".join(examples[place][:3]) for place in places]
        second = ["".join(examples[place][3:]) for place in places] if paired else None
        encoded = tokenizer(first, second, truncation="longest_first", max_length=max_length)["input_ids"]
        for place, row in zip(places, encoded, strict=True):
            rows[place] = row
    return rows


def encode_framed(tokenizer: Any, examples: Sequence[Sequence[str]], max_length: int, end: int | None) -> list:
    """Return the ids of examples (before, text, after) or (before, text, between, text, after) as one string each.

    A text too long is cut from its end, the longest first, so that the fixed pieces around it are kept whole. The last
    id is ``end``; where that is None, an end-of-text token that the tokenizer would add is dropped.

    Raises:
        UserError: if the fixed pieces alone are longer than ``max_length``.
    """
    rows = []
    for pieces, ids in zip(examples, _encode(tokenizer, ["".join(p) for p in examples], end), strict=True):
        pieces = list(pieces)
        while len(ids) > max_length:
            _cut(tokenizer, pieces, len(ids) - max_length)
            (ids,) = _encode(tokenizer, ["".join(pieces)], end)
        rows.append(ids)
    return rows


def _encode(tokenizer: Any, texts: Sequence[str], end: int | None) -> list[list[int]]:
    rows = tokenizer(list(texts), verbose=False)["input_ids"]  # too long for the model is what is looked for
    eos = tokenizer.eos_token_id
    if end is not None:
        return [row if row and row[-1] == end else [*row, end] for row in rows]
    closed = bool(texts) and eos is not None and tokenizer("a")["input_ids"][-1:] == [eos]
    return [row[:-1] for row in rows] if closed else rows


def _cut(tokenizer: Any, pieces: list[str], excess: int) -> None:
    """Shorten the longest of the texts by at most ``excess`` of its tokens.

    Raises:
        UserError: if no text is left.
    """
    places = {}
    for place in range(1, len(pieces), 2):
        encoded = tokenizer(pieces[place], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places[place] = [start for start, _ in encoded["offset_mapping"]]
    lengths = sorted((len(starts) for starts in places.values()), reverse=True)
    longest = max(places, key=lambda place: len(places[place]))
    if not lengths[0]:
        frame = " ... ".join(pieces[::2])
        raise UserError(f"backbone.max_length: {frame!r} leaves no room for the text by {excess} tokens")
    gap = lengths[0] - lengths[1] if len(lengths) > 1 else excess
    kept = max(lengths[0] - min(excess, max(gap, (excess + 1) // 2)), 0)
    text, start = pieces[longest], places[longest][kept]
    pieces[longest] = text[: min(start, len(text) - 1)]  # characters of several tokens would not get shorter


def first_tokens(tokenizer: Any, task: str, words: Sequence[str], before: str) -> list[int]:
    """Return the vocabulary id of each label word's first token, as it stands after the text ``before``.

    Raises:
        UserError: if a word has no token, or two words share their first.
    """
    context = tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
    known: dict[int, str] = {}
    for word in words:
        ids = tokenizer(before + (" " if before else "") + word, add_special_tokens=False)["input_ids"]
        shared = next((i for i, pair in enumerate(zip(ids, context, strict=False)) if pair[0] != pair[1]), len(context))
        remedy = f"set other 'words' in task/{task}.yaml"
        if not ids[shared:]:
            raise UserError(f"task {task}: the label word {word!r} has no token; {remedy}")
        if ids[shared] in known:
            both = f"{known[ids[shared]]!r} and {word!r}"
            raise UserError(f"task {task}: the label words {both} share their first token; {remedy}")
        known[ids[shared]] = word
    return list(known)


def special_id(tokenizer: Any, token: str) -> int:
    """Return the id of one token of the vocabulary.

    Raises:
        UserError: if the vocabulary lacks it.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    if token not in vocabulary:
        raise UserError(f"backbone.start_token: the tokenizer has no token {token!r}")
    return vocabulary[token]
