"""Signals end the program as Ctrl-C does: what it works on is recorded as interrupted, and no child outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

from taskvec.errors import Terminated

IN_SWEEP = "TASKVEC_SWEEP"  # in a job's environment: the process of its sweep
ENDING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU")
PATIENCE_SECONDS = 2.0
AFTERWARDS_SECONDS = 0.05
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of sys/prctl.h
POLL_SECONDS = 1.0


def install() -> None:
    """Turn signals whose default is to kill into :class:`taskvec.errors.Terminated`; one that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in _handlers().items():
        if handler is signal.SIG_DFL or isinstance(handler, Again):
            signal.signal(number, _end)
    sys.unraisablehook = _unraisable


def end_in_silence() -> None:
    """Let signals kill from now on, for the time in which the interpreter takes itself apart."""
    for number, handler in _handlers().items():
        if handler is _end or isinstance(handler, Again):
            signal.signal(number, signal.SIG_DFL)


def arrived() -> int | None:
    """Return the signal that the program is ending by, None if it is not.

    What a signal raises may come out as another error: libraries wrap whatever is raised in the middle of their work.
    """
    for handler in _handlers().values():
        if isinstance(handler, Again):
            return handler.ended_by
    return None


def require_none(error: Exception) -> None:
    """Check that no signal led to an error; to be called where errors are noted and the work goes on.

    Raises:
        Terminated: if one did.
    """
    number = arrived()
    if number is not None:
        raise Terminated(number) from error


def numbers() -> list[int]:
    """Return the signals that end a program, as far as the system has them."""
    return [getattr(signal, name) for name in ENDING if hasattr(signal, name)]


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in numbers()}


def _end(number: int, frame: FrameType | None) -> None:
    again = Again(number, time.monotonic() + PATIENCE_SECONDS)
    for other, handler in _handlers().items():
        if handler is _end:
            signal.signal(other, again)
    raise Terminated(number)


@dataclass(frozen=True)
class Again:
    """What signals do while the program ends by signal ``ended_by``: nothing until ``deadline``, so that it can record
    how, then they kill.
    """

    ended_by: int
    deadline: float

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Pass over a signal that comes with the first one; end at once what hangs."""
        if time.monotonic() > self.deadline:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _unraisable(problem: Any) -> None:
    """Send a signal again that arrived in a finaliser, where Python drops what is raised; here it would drop it too."""
    if isinstance(problem.exc_value, KeyboardInterrupt):
        number = getattr(problem.exc_value, "number", signal.SIGINT)
        install()
        sender = threading.Timer(AFTERWARDS_SECONDS, os.kill, (os.getpid(), number))
        sender.daemon = True
        sender.start()


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
