"""Values that Hydra's grammar cannot read as they were typed, and the quotes with which it can."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

AMBIGUOUS = "Ambiguous value for argument '"


def unparsed(word: str, reason: str) -> str:
    """Return why Hydra cannot read an override, with the quoted form of it that Hydra takes as it was meant."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word!r} (command line): not of the form key=value"
    quoted = f"{key}={quote(value)}"
    if literal(quoted) == value:
        return f"{key} (command line): {value} needs quotes of its own: {shlex.quote(quoted)}"
    return f"{word!r} (command line): cannot be read: {reason.splitlines()[0]}"


def ambiguous(reason: str, overrides: Sequence[str]) -> str:
    """Return why ``key=a,b`` is no value of one run, and the quoted form that is."""
    rest = reason.removeprefix(AMBIGUOUS)
    named = [word for word in overrides if rest.startswith(word.lstrip("+"))]
    word = named[0] if named else rest.partition("'")[0]
    key, _, value = word.partition("=")
    one = shlex.quote(f"{key}={quote(value)}")
    return f"{key} (command line): {value!r} is a list of values: -m runs a sweep over them, {one} is one value"


def quote(value: str) -> str:
    """Return a text as Hydra's grammar quotes it, so that nothing in it means more than itself."""
    mark = '"'
    if '"' in value and "'" not in value:
        mark = "'"

    def escaped(found: re.Match) -> str:
        backslashes, ended = found[1], found[2]
        return backslashes * 2 + (f"\\{mark}" if ended else "")

    # a backslash means itself but before a quotation mark and at the end
    inner = re.sub(rf"(\\*)({mark}|$)", escaped, value)
    inner = inner.replace("${", "\\${")  # no interpolation
    return f"{mark}{inner}{mark}"


def literal(override: str) -> str | None:
    """Return the text that an override sets, None if Hydra cannot read it or it is no text."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return None
    value = parsed.value()
    text = value.text if isinstance(value, QuotedString) else value
    if not isinstance(text, str):
        return None
    return text.replace("\\${", "${")
