"""File locks between processes; the operating system frees the lock of a killed one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from taskvec.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def held(path: Path, purpose: str) -> Iterator[None]:
    """Hold the lock file ``path``; where another process has it, say so once and wait.

    Raises:
        UserError: if the file cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that %s", purpose)
            lock.acquire()
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written: {error.strerror}; set outputs=FOLDER") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def at_once(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path`` if that is possible without waiting, and say whether it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
