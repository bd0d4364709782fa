"""Signals end the program as Ctrl-C does: what it works on is recorded as interrupted, and no child outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from taskvec.errors import Terminated

IN_SWEEP = "TASKVEC_SWEEP"  # in a job's environment: the process of its sweep
ENDING = ("SIGTERM", "SIGHUP", "SIGXCPU")
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of sys/prctl.h
POLL_SECONDS = 1.0


def install() -> None:
    """Turn signals whose default is to kill into :class:`taskvec.errors.Terminated`; one that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    sys.unraisablehook = _unraisable


def _end(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


def _unraisable(problem: Any) -> None:
    """Send a signal again that arrived in a finaliser, where Python drops what is raised."""
    if isinstance(problem.exc_value, KeyboardInterrupt):
        number = getattr(problem.exc_value, "number", signal.SIGINT)
        os.kill(os.getpid(), number)


def die_with_sweep() -> None:
    """Let a job of a sweep be terminated when the process of its sweep dies, however that dies.

    Raises:
        Terminated: if it is dead already.
    """
    named = os.environ.get(IN_SWEEP, "")
    if not named.isdecimal():
        return
    parent = int(named)
    if sys.platform == "linux":
        # the kernel sends it when the thread that started this process ends, which is the parent's main thread
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before this was asked for
        raise Terminated(signal.SIGTERM)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
