"""Locks between processes: freed when their holder dies, on file systems with and without ``flock``."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from taskvec.errors import UserError

log = logging.getLogger(__name__)
NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
# After which the marker of a silent holder on another machine counts as left behind
LEASE_SECONDS = 15.0


@contextmanager
def held(path: Path, purpose: str) -> Iterator[None]:
    """Hold the lock file ``path``; where another process has it, say so once and wait.

    Raises:
        UserError: if the file cannot be created.
    """
    with _writable(path):
        lock = taken(path)
        if lock is None:
            log.info("waiting for another process that %s", purpose)
            lock = taken(path, wait=True)
    with released(lock):
        yield


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Make the folder of a lock file, and say in one line what keeps it from being written.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written: {error.strerror}; set outputs=FOLDER"
        ) from error


@contextmanager
def at_once(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path`` if that is possible without waiting, and say whether it is.

    Raises:
        UserError: if the file cannot be created.
    """
    with _writable(path):
        lock = taken(path)
    with released(lock):
        yield lock is not None


def is_held(path: Path) -> bool:
    """Return whether a living process holds the lock file ``path``; nothing is written where nobody ever held it."""
    markers = (path, _marker(path))
    if not any(os.path.lexists(marker) for marker in markers):
        return False
    try:
        lock = taken(path)
    except OSError:  # a read-only folder: nobody can work in it
        return False
    with released(lock):
        return lock is None


def taken(path: Path, *, wait: bool = False) -> BaseFileLock | None:
    """Return the acquired lock, None where another process has it and ``wait`` is not set.

    The operating system frees a ``flock`` with its holder. Where the file system has none, a marker is kept fresh by
    its holder: one of a dead process of this machine ends at once, any other when it has been silent for
    :data:`LEASE_SECONDS`.

    Raises:
        OSError: if the file cannot be created.
    """
    timeout = -1 if wait else 0
    lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
    try:
        return _acquired(lock, timeout)
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
    return _acquired(SoftFileLease(_marker(path), lease_duration=LEASE_SECONDS), timeout)


@contextmanager
def released(lock: BaseFileLock | None) -> Iterator[None]:
    """Free a lock at the end of a block; one whose file is gone or cannot be touched any more is free already."""
    try:
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.release()


def _acquired(lock: BaseFileLock, timeout: float) -> BaseFileLock | None:
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return None
    return lock


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.lease")
