"""Configuration errors in one line: the key, where it was set, what is allowed, the nearest match."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from pydantic import ValidationError

from taskvec.config import Config
from taskvec.registry import did_you_mean


def composition(
    error: Exception,
    overrides: Sequence[str],
    known_keys: Callable[[str, Sequence[str]], list[str]],
    options: Callable[[str], list[str]],
    presets: Callable[[Sequence[str]], list[Path]],
) -> str:
    """Return Hydra's composition error as one line that names key, place and nearest match."""
    cause = error.__cause__
    full_key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    missing = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    if isinstance(error, MissingConfigException) and missing:
        group, _, option = missing[1].rpartition("/")
        while group and not options(group) and "/" in group:
            group, _, head = group.rpartition("/")
            option = f"{head}/{option}"
        files = presets(overrides)
        chosen = re.compile(rf"\b{re.escape(group)}\s*:.*\b{re.escape(option)}\b")
        naming = [
            f"{file.parent.name}/{file.name}" for file in files if chosen.search(file.read_text(encoding="utf-8"))
        ]
        where = place(group, overrides, [])
        where = naming[0] if naming and where == "default" else where
        return f"{group} ({where}): unknown option {option!r}{did_you_mean(option, options(group))}"
    if isinstance(error, OverrideParseException):
        return unparsed(getattr(error, "override", None) or "", str(error))
    if str(error).startswith("Ambiguous value"):
        word = next((word for word in overrides if str(error).split("'")[1].startswith(word.lstrip("+"))), "")
        key, _, value = (word or str(error).split("'")[1]).partition("=")
        one = shlex.quote(f"{key}={quote(value)}")
        return f"{key} (command line): {value!r} is a list of values: -m runs a sweep over them, {one} is one value"
    if full_key:
        parent, _, key = full_key.rpartition(".")
        hint = did_you_mean(key, known_keys(parent, overrides))
        return f"{full_key} ({place(full_key, overrides, [])}): unknown key{hint}"
    return " ".join(str(error).split())


def unparsed(word: str, reason: str) -> str:
    """Return why Hydra cannot read an override, with the quoted form of it that Hydra takes as it was meant."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word!r} (command line): not of the form key=value"
    for quoted in (f"{key}={quote(value)}", f"{key}={value}"):
        if literal(quoted) == value:
            return f"{key} (command line): {value} needs quotes of its own: {shlex.quote(quoted)}"
    return f"{word!r} (command line): cannot be read: {reason.splitlines()[0]}"


def quote(value: str) -> str:
    """Return a text as Hydra's grammar quotes it, so that nothing in it means more than itself."""
    mark = "'" if '"' in value and "'" not in value else '"'
    # only the backslashes before a quotation mark, and those at the end, escape
    doubled = re.sub(rf"(\\*)({mark}|$)", lambda found: found[1] * 2 + (f"\\{mark}" if found[2] else ""), value)
    return mark + doubled.replace("${", "\\${") + mark


def literal(override: str) -> str | None:
    """Return the text that an override sets, None if Hydra cannot read it or it is no text."""
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException:
        return None
    text = value.text if isinstance(value, QuotedString) else value
    return text.replace("\\${", "${") if isinstance(text, str) else None


class InvalidError(ValueError):
    """A config node that does not fit its schema."""

    def __init__(self, prefix: str, schema: type[Config], error: ValidationError):
        super().__init__(str(error))
        self.prefix, self.schema, self.error = prefix, schema, error

    def explain(self, overrides: Sequence[str], sources: list[tuple[str, Path]]) -> str:
        """Return the first complaint as one line that names the key and the file that set it."""
        detail = self.error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in (*([self.prefix] if self.prefix else []), *detail["loc"]))
        where = place(path, overrides, sources)
        more = f" (and {self.error.error_count() - 1} more)" if self.error.error_count() > 1 else ""
        if detail["type"] == "extra_forbidden":
            known = [name for name in self.schema.model_fields if name not in ("kind", "choices")]
            return f"{path} ({where}): unknown key{did_you_mean(str(detail['loc'][-1]), known)}{more}"
        if detail["type"] == "literal_error":
            allowed = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
            hint = did_you_mean(str(detail["input"]), allowed)
            return f"{path} ({where}): unknown value {detail['input']!r}{hint}{more}"
        message = detail["msg"].removeprefix("Value error, ")
        got = "" if isinstance(detail["input"], Mapping) else f", got {detail['input']!r}"  # a group has many values
        return f"{path} ({where}): {message}{got}{more}"


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
        if (inside or not prefix) and OmegaConf.select(OmegaConf.load(file), key, default=None) is not None:
            return f"{file.parent.name}/{file.name}"
    return "default"
