"""The identity of files: what is read from them, not what they are called."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from taskvec.config import Config
from taskvec.errors import UserError

LARGE = 64 << 20  # bytes from which on hashing is slower than looking up what was hashed before
SETTLED_NS = 2 * 10**9  # after a change: a second one may so far have left the same times behind


class Version(NamedTuple):
    """What of a file changes whenever its content does."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class KnownHash(Config):
    """The SHA-256 of one version of a file, as it is kept between processes."""

    version: Version
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def sha256(path: Path) -> str:
    """Return a file's SHA-256, remembered in this process for as long as the file's version stays the same.

    Raises:
        UserError: if the file cannot be read.
    """
    return _sum(path, version_of(path))


def _sum(path: Path, version: Version) -> str:
    try:
        return _hashed(str(path.resolve()), version)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=4096)
def _hashed(path: str, version: Version) -> str:
    """Return the SHA-256 of one version of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version_of(path: Path) -> Version:
    """Return the present version of a file.

    Raises:
        UserError: if it cannot be looked at.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return Version(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def remembered_sha256(path: Path) -> str:
    """Return a file's SHA-256; that of a large one is remembered between processes, by its version.

    This is for inputs of gigabytes, which every plan hashes. What must notice a damaged disk asks :func:`sha256`.

    Raises:
        UserError: if the file cannot be read.
    """
    version = version_of(path)
    if version.size < LARGE:
        return _sum(path, version)
    place = _record(path)
    with suppress(OSError, ValidationError):
        known = KnownHash.model_validate_json(place.read_bytes())
        if known.version == version:
            return known.sha256
    found = _sum(path, version)
    settled = time.time_ns() - version.changed_ns > SETTLED_NS
    if settled and version_of(path) == version:
        known = KnownHash(version=version, sha256=found)
        with suppress(OSError):  # a cache that others own: the next process hashes again
            write_whole(place, known.model_dump_json())
    return found


def _record(path: Path) -> Path:
    """Return where a file's hash is kept, that of its latest version."""
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return derived("hashes") / f"{digest[:32]}.json"


def derived(kind: str) -> Path:
    """Return the folder for something that is derived from data and weights: in the hub's own for such things."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE, "taskvec", kind)


def write_whole(place: Path, text: str) -> None:
    """Write a file that others read meanwhile, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_suffix(f".{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(place)


def joint_sha256(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of one file, or of several files' sums in their order, each :func:`remembered_sha256`.

    Raises:
        UserError: if a file cannot be read.
    """
    sums = [remembered_sha256(path) for path in paths]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()
