"""What a task gives a backbone to make its head from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Prompt(NamedTuple):
    """A word for each class, and how it is asked for.

    ``templates`` are those of a zero-shot head, each with one ``{}`` for the word; ``before`` is what stands between
    the last text of a frame and the word that a language model answers with.
    """

    words: Sequence[str]
    templates: Sequence[str] = ()
    before: str = ""
