"""The two ways a run can end other than well."""


class UserError(ValueError):
    """Input that cannot be worked with: one line naming the cause and the remedy; the command exits with 2."""


class NoFeasibleCoefficientError(RuntimeError):
    """No coefficient of the grid satisfies the selection rule; the run is recorded as failed with this reason."""
