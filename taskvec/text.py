"""Text of others (names, messages) made safe to show: in a terminal, on a page, in a picture."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # they shape letters of Persian and Indic scripts, and emoji
# Controls, formats (direction overrides), surrogates, line separators
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """Return one line in which every character that would steer a terminal or break a line is spelt out.

    An escape character becomes the four characters that Python writes it with. So do all control and format characters
    (direction overrides, invisible marks), line separators and lone surrogates, which no encoding can write.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelt(character) for character in text)


def printable_lines(text: str) -> str:
    """Return text with every line made :func:`printable`."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _spelt(character: str) -> str:
    if unicodedata.category(character) not in UNSAFE or character in JOINERS:
        return character
    return character.encode("unicode_escape").decode("ascii")
