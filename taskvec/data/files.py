"""The identity of files: what is read from them, not what they are called."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from taskvec.errors import UserError

LARGE = 1 << 20  # bytes from which on hashing is slower than looking up what was hashed before
# They decide the values that are read, and the rows that are held out
READERS = ("pyarrow", "datasets", "numpy", "torch")
SETTLED_NS = 2 * 10**9  # after a change: a second one may so far have left the same times behind


class Version(NamedTuple):
    """What of a file changes whenever its content does."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class Record:
    """What was found out about files, kept between processes for as long as their versions stay the same.

    ``key`` says what else it depends on, ``by`` which code finds it: a record of other code is replaced. Found is a
    JSON value.

    Raises:
        UserError: if a file cannot be looked at.
    """

    def __init__(self, kind: str, paths: Iterable[Path], key: str = "", by: str = ""):
        self.paths, self.by = list(paths), by
        self.versions = [version_of(path) for path in self.paths]
        names = [key, *(os.path.abspath(path) for path in self.paths)]
        digest = hashlib.sha256(os.fsencode("\0".join(names))).hexdigest()
        self.place = derived(kind) / f"{digest[:32]}.json"

    def read(self) -> Any:
        """Return what is known of the present versions, None if nothing is."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            known = json.loads(self.place.read_bytes())
            if known["check"] == self._check(known["found"]):
                return known["found"]
        return None

    def write(self, found: Any) -> None:
        """Keep what was found, unless a file has just changed, so that a further change might not show."""
        latest = max((version.changed_ns for version in self.versions), default=0)
        settled = time.time_ns() - latest > SETTLED_NS
        now = [version_of(path) for path in self.paths]
        if not settled or now != self.versions:
            return
        known = {"check": self._check(found), "found": found}
        with suppress(OSError):  # a cache that others own: the next process looks again
            write_whole(self.place, json.dumps(known))

    def _check(self, found: Any) -> str:
        """Return a checksum that fits what this code found in these versions, and nothing else."""
        return hashlib.sha256(json.dumps([self.by, self.versions, found]).encode()).hexdigest()


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

    This is for inputs that every plan hashes. What must notice a damaged disk asks :func:`sha256`.

    Raises:
        UserError: if the file cannot be read.
    """
    version = version_of(path)
    if version.size < LARGE:
        return _sum(path, version)
    record = Record("hashes", [path])
    known = record.read()
    if known is None:
        known = _sum(path, version)
        record.write(known)
    return known


@cache
def code_version() -> str:
    """Return what changes with every edit of the code that reads data, and with the libraries that it reads with."""
    code = sorted(Path(__file__).parent.rglob("*.py"))
    libraries = [Path(find_spec(name).origin) for name in READERS]
    versions = [version_of(path) for path in (*code, *libraries)]
    return hashlib.sha256(json.dumps(versions).encode()).hexdigest()


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
