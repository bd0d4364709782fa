"""The ways a run can end other than well, and how any error is told in one line."""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from taskvec.text import printable

FULL = {errno.ENOSPC, errno.EDQUOT}
LINE = 1_000
NAME = 200  # characters of a file's name in a message
SPACE = "free space or set outputs=FOLDER on another disk; the same command resumes"


class UserError(ValueError):
    """Input that cannot be worked with: one line naming the cause and the remedy; the command exits with 2.

    What a message quotes of the input may break no line, and it is cut to :data:`LINE` characters.
    """

    def __init__(self, message: str = ""):
        message = printable(message)
        if len(message) > LINE:
            message = f"{message[:LINE]} ..."
        super().__init__(message)


class NotFinite(FloatingPointError):
    """A number that must be finite is not: one line naming it (tensor, task, coefficient, step)."""


class NoFeasibleCoefficientError(RuntimeError):
    """No coefficient of the grid satisfies the selection rule; the run is recorded as failed with this reason."""


class Terminated(KeyboardInterrupt):
    """A signal asked the program to end; ``number`` is the signal's."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def as_bad_input() -> Iterator[None]:
    """Tell a file that the system does not let us look at (its name is too long, it is a loop) as bad input.

    Raises:
        UserError: naming the file.
    """
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")[:NAME]
        raise UserError(f"{name}: cannot be read: {error.strerror or error}") from error


def expected(error: BaseException) -> bool:
    """Return whether an error says all there is to say, so that nobody needs its traceback."""
    return isinstance(
        error, (UserError, NoFeasibleCoefficientError, FloatingPointError)
    ) or disk_is_full(error)


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether an error, or what it came from, is a file system without space."""
    while error is not None:
        # safetensors reports the system's number in its text alone
        full = f"os error {errno.ENOSPC}" in str(error) or os.strerror(errno.ENOSPC) in str(error)
        if full or (isinstance(error, OSError) and error.errno in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe(error: BaseException) -> str:
    """Return an error as one line; of an unexpected one the kind and the place too."""
    message = " ".join(str(error).split())
    if disk_is_full(error):
        named = getattr(error, "filename", None)
        place = f" ({named})" if named else ""
        return message if SPACE in message else f"the disk is full{place}: {message}; {SPACE}"
    if expected(error):
        return message
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = (
        f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"
        if trace
        else ""
    )
    return f"{type(error).__name__}: {message}{place}"


def details(error: BaseException) -> str:
    """Return an error's traceback, which belongs into a log file and nowhere else."""
    return "".join(traceback.format_exception(error))
