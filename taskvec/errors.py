"""The ways a run can end other than well, and how any error is told in one line."""

import os


class UserError(ValueError):
    """Input that cannot be worked with: one line naming the cause and the remedy; the command exits with 2."""


class NotFinite(FloatingPointError):
    """A number that must be finite is not: one line naming it (tensor, task, coefficient, step)."""


class NoFeasibleCoefficientError(RuntimeError):
    """No coefficient of the grid satisfies the selection rule; the run is recorded as failed with this reason."""


def describe(error: BaseException) -> str:
    """Return an error as one line; of an unexpected one the kind and the place too."""
    message = " ".join(str(error).split())
    if isinstance(error, (UserError, NoFeasibleCoefficientError, FloatingPointError)):
        return message
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {message}{place}"
