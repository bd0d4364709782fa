"""Configuration errors in one line: the key, where it was set, what is allowed, the nearest match."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from pydantic import ValidationError

from taskvec.config import Config
from taskvec.registry import did_you_mean
from taskvec.runner.quoting import AMBIGUOUS, ambiguous, unparsed


def composition(
    error: Exception,
    overrides: Sequence[str],
    known_keys: Callable[[str, Sequence[str]], list[str]],
    options: Callable[[str], list[str]],
    presets: Callable[[Sequence[str]], list[Path]],
) -> str:
    """Return Hydra's composition error as one line that names key, place and nearest match."""
    message = str(error)
    if isinstance(error, MissingConfigException):
        missing = re.search(r"Could not (?:find|load) '([^']+)'", message)
        if missing:
            return unknown_option(missing[1], overrides, options, presets(overrides))
    if isinstance(error, OverrideParseException):
        return unparsed(getattr(error, "override", None) or "", message)
    if message.startswith(AMBIGUOUS):
        return ambiguous(message, overrides)
    full_key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None)
    if not full_key:
        return " ".join(message.split())
    parent, _, key = full_key.rpartition(".")
    known = known_keys(parent, overrides)
    return f"{full_key} ({place(full_key, overrides, [])}): unknown key{nearest(key, known)}"


def nearest(key: str, known: Sequence[str]) -> str:
    """Return the hint for an unknown key; one of a group's own (``lr``) is looked for inside the groups too."""
    here = [name for name in known if "." not in name]
    inside = [name for name in known if name.endswith(f".{key}")]
    if inside and not get_close_matches(key, here, n=1, cutoff=0.8):
        return f"; did you mean {' or '.join(inside)}?"
    return did_you_mean(key, here)


def unknown_option(
    path: str, overrides: Sequence[str], options: Callable[[str], list[str]], files: Sequence[Path]
) -> str:
    """Return that a group has no such option, who asked for it, and the nearest one."""
    group, _, option = path.rpartition("/")
    # An option in a folder: ``paper/two`` of ``suite``
    while group and not options(group) and "/" in group:
        group, _, head = group.rpartition("/")
        option = f"{head}/{option}"
    where = place(group, overrides, [])
    if where == "default":
        chosen = re.compile(rf"\b{re.escape(group)}\s*:.*\b{re.escape(option)}\b")
        naming = [file for file in files if chosen.search(_text(file))]
        if naming:
            where = f"{naming[0].parent.name}/{naming[0].name}"
    return f"{group} ({where}): unknown option {option!r}{did_you_mean(option, options(group))}"


def _text(file: Path) -> str:
    """Return a file's text, nothing of one that cannot be read: it is named where it is wanted."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


class InvalidError(ValueError):
    """A config node that does not fit its schema."""

    def __init__(self, prefix: str, schema: type[Config], error: ValidationError):
        super().__init__(str(error))
        self.prefix, self.schema, self.error = prefix, schema, error

    def explain(self, overrides: Sequence[str], sources: list[tuple[str, Path]]) -> str:
        """Return the first complaint as one line that names the key and the file that set it."""
        detail = most_telling(self.error)
        parts = [str(part) for part in detail["loc"]]
        if self.prefix:
            parts = [self.prefix, *parts]
        path = ".".join(parts)
        where = place(path, overrides, sources)
        count = self.error.error_count()
        more = f" (and {count - 1} more)" if count > 1 else ""
        return f"{path} ({where}): {self._complaint(detail)}{more}"

    def _complaint(self, detail: Mapping[str, Any]) -> str:
        given = detail["input"]
        if detail["type"] == "extra_forbidden":
            known = [name for name in self.schema.model_fields if name not in ("kind", "choices")]
            return f"unknown key{did_you_mean(str(detail['loc'][-1]), known)}"
        if detail["type"] == "literal_error":
            allowed = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
            return f"unknown value {given!r}{did_you_mean(str(given), allowed)}"
        message = detail["msg"].removeprefix("Value error, ")
        if isinstance(given, Mapping):  # a group, which has many values
            return message
        return f"{message}, got {given!r}"


def most_telling(error: ValidationError) -> Mapping[str, Any]:
    """Return the complaint that says most: a misspelt key before the one that is missing for it, else the first."""
    details = error.errors(include_url=False)
    unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
    return (unknown or details)[0]


def taken_away(word: str) -> str:
    """Return why ``~key`` is no override, and what to type in its place."""
    key = word.removeprefix("~").partition("=")[0]
    if "." in key:
        remedy = f"{key}=null leaves it to the defaults where there is one"
    elif key in ("transform", "tracker", "merge"):
        remedy = f"{key}=none is the way to have none"
    else:
        remedy = "leave the word out"
    return f"~{key} (command line): nothing is taken away from a config; {remedy}"


def checked(schema: type[Config], data: Mapping[str, Any], prefix: str) -> Any:
    """Return the typed form of a config node.

    Raises:
        InvalidError: if it does not fit; ``prefix`` is the node's place in the config.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise InvalidError(prefix, schema, error) from error


def place(path: str, overrides: Sequence[str], sources: list[tuple[str, Path]]) -> str:
    """Return where a key was set: the command line, else the last config file that names it, else the defaults."""
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        inside = "." in key and path.startswith(f"{key}.")  # ``group=option`` only selects a file
        if key == path or inside or key.startswith(f"{path}."):
            return "command line"
    for prefix, file in sources:
        inside = prefix and path.startswith(f"{prefix}.")
        key = path.removeprefix(f"{prefix}.") if inside else path
        if (inside or not prefix) and OmegaConf.select(
            OmegaConf.load(file), key, default=None
        ) is not None:
            return f"{file.parent.name}/{file.name}"
    named = [file for prefix, file in sources if prefix and path == f"{prefix}.kind"]
    return f"{named[0].parent.name}/{named[0].name}" if named else "default"
