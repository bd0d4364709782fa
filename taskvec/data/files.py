"""The identity of files: what is read from them, not what they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from taskvec.errors import UserError


def sha256(path: Path) -> str:
    """Return a file's SHA-256, remembered for as long as its place, size and time of change stay the same.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        found = path.stat()
        return _hashed(
            str(path.resolve()), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=4096)
def _hashed(path: str, *version: int) -> str:
    """Return the SHA-256 of one version of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joint_sha256(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of one file, or of several files' sums in their order.

    Raises:
        UserError: if a file cannot be read.
    """
    sums = [sha256(path) for path in paths]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()
