"""The seam between prompt and label: label words tokenised as they stand after the end of a task's frame.

A tokenizer may join the end of a prompt with what follows: GPT-2 reads the space in ``Mood: good`` as the beginning of
``good``, so a prompt that ends in a space ends in a token that no text goes on from. The prompt therefore stops where
the tokens of prompt and label part, and the label's token is the first one after that.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskvec.errors import UserError

# For the text before the end of a frame; a word where the tokenizer lacks it or joins it with a word
STAND_IN = "a"
_QUOTES = "\"'`"
_UNSPACED = (
    "CJK ", "HIRAGANA ", "KATAKANA ", "BOPOMOFO ", "YI ", "IDEOGRAPHIC ", "FULLWIDTH ", "THAI ", "LAO ", "KHMER ",
    "MYANMAR ", "TIBETAN ",
)  # fmt: skip


@dataclass(frozen=True)
class Seam:
    """Where a prompt ends and its labels begin: what the frame's end is cut to, and each label's token."""

    before: str
    tokens: tuple[int, ...]


def seam(tokenizer: Any, words: Sequence[str], before: str) -> Seam:
    """Return the seam between the end of a frame and the words that may follow.

    The prompt ends where the tokens of all texts (end of the frame, space, word) part: within the end, after it, or
    after the space.

    Raises:
        UserError: if a word has no token, if two words share their first, or if they part before the frame's end.
    """
    labels = [before + _space(tokenizer, before, word) + word for word in words]
    beginnings = [label.removesuffix(word) for label, word in zip(labels, words, strict=True)]
    shared = os.path.commonprefix(beginnings)
    ends = [shared[:length] for length in range(len(shared) + 1)]
    for text in (STAND_IN, *words):
        whole = _tokens(tokenizer, [text + label for label in labels])
        parts = _tokens(tokenizer, [text + end for end in ends])
        possible = []
        for place, part in enumerate(parts):
            if all(_begins(ids, part) for ids in whole):
                possible.append(place)
        if possible:
            # Of ends with equally many tokens, the frame's own is taken.
            best = max(possible, key=lambda place: (len(parts[place]), ends[place] == before))
            length = len(parts[best])
            return Seam(ends[best], _first(words, [ids[length:] for ids in whole]))
    raise UserError("the tokenizer joins the text with its label; let 'frame' end in a colon")


def _begins(ids: list[int], part: list[int]) -> bool:
    return ids[: len(part)] == part


def first_tokens(tokenizer: Any, words: Sequence[str]) -> tuple[int, ...]:
    """Return the vocabulary id of the first token of each word that stands alone.

    Raises:
        UserError: if a word has no token, or two words share their first.
    """
    return _first(words, _tokens(tokenizer, words))


def _first(words: Sequence[str], rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    known: dict[int, str] = {}
    for word, ids in zip(words, rows, strict=True):
        if not word.strip() or not ids:
            raise UserError(f"the label word {word!r} has no token; set other 'words'")
        if ids[0] in known:
            both = f"{known[ids[0]]!r} and {word!r}"
            raise UserError(f"the label words {both} share their first token; set other 'words'")
        known[ids[0]] = word
    return tuple(known)


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def _space(tokenizer: Any, before: str, word: str) -> str:
    """Return what separates a word from the end of its frame: a space, where one is written.

    None is written after a space or a line's end, an opening bracket or quote, a special token, and in scripts without
    spaces.
    """
    if _unspaced(word[:1]) or word[:1].isspace():
        return ""
    if not before:
        return " "
    last = before[-1]
    special = before.endswith(tuple(tokenizer.get_added_vocab()))
    return "" if last.isspace() or special or _opens(before) or _unspaced(last) else " "


def _opens(before: str) -> bool:
    """Return whether a text ends in an opening bracket or quote; a straight quote closes right after a word."""
    last, previous = before[-1], before[-2:-1]
    if last in _QUOTES:
        return bool(previous) and not (previous.isalnum() or previous in ".,!?)]}…")
    return unicodedata.category(last) in ("Ps", "Pi")


def _unspaced(character: str) -> bool:
    """Return whether a character belongs to a script without spaces, or is one of its punctuation marks."""
    if not character:
        return False
    name = unicodedata.name(character, "")
    wide = unicodedata.east_asian_width(character) in "WF"
    return name.startswith(_UNSPACED) or (wide and unicodedata.category(character).startswith("P"))
