"""JSON of results and answers: infinities have a form in it, NaN has none, and reading it takes bounded resources."""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import UserError

LIMIT = 64 * 2**20  # bytes of a file
DEPTH = 100  # levels of lists and objects
VALUES = 1_000_000  # values of a document, each of which takes up to 200 bytes of memory
INFINITE = "float"  # {"float": "inf"} and {"float": "-inf"}
BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def encode(value: Any, *, indent: int | None = 1) -> str:
    """Return a value as JSON; an infinity, which JSON has no word for, as ``{"float": "inf"}``.

    Raises:
        ValueError: for what is not a number, naming its place.
    """
    return json.dumps(_written(value, ""), indent=indent, allow_nan=False)


def decode(data: bytes) -> Any:
    """Return the value of a JSON document as :func:`encode` writes it.

    Raises:
        ValueError: in one line, if it is not JSON, holds NaN, is nested too deeply or holds too many values.
    """
    if data.count(b",") > VALUES:
        raise ValueError(f"holds more than {VALUES:,} values")
    if deeper_than(DEPTH, data):
        raise ValueError(f"is nested more than {DEPTH} levels deep")
    try:
        return json.loads(data, parse_constant=_refuse, object_hook=_read)
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg}, line {error.lineno})") from error


def read_json(path: Path) -> Any:
    """Return the value of a JSON file of at most :data:`LIMIT` bytes.

    Raises:
        UserError: in one line, naming the file, if it cannot be read.
    """
    data = read_bytes(path)
    try:
        return decode(data)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """Return a regular file's bytes.

    Raises:
        UserError: naming the file, if it cannot be read or is larger than ``limit``.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
            raise UserError(f"{path}: not a file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null character in the path
        raise UserError(f"{path}: cannot be read: {error}") from error
    if len(data) > limit:
        raise UserError(f"{path}: larger than {limit // 2**20} MB")
    return data


def deeper_than(limit: int, data: bytes) -> bool:
    """Return whether lists and objects of a JSON document are nested more deeply, without building them."""
    depth = 0
    for match in BRACKETS.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def _written(value: Any, place: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise ValueError(f"{place or 'the value'} is not a number")
        return {INFINITE: str(value)}
    if isinstance(value, Mapping):
        written = {}
        for key, child in value.items():
            below = f"{place}.{key}" if place else str(key)
            written[key] = _written(child, below)
        return written
    if isinstance(value, list | tuple):
        return [_written(child, f"{place}[{position}]") for position, child in enumerate(value)]
    return value


def _read(node: dict[str, Any]) -> Any:
    if len(node) == 1 and node.get(INFINITE) in ("inf", "-inf"):
        return float(node[INFINITE])
    return node


def _refuse(constant: str) -> None:
    raise ValueError(f"holds {constant}, which is not JSON")
