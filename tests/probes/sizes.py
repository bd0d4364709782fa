"""A question of its own: how large each vector is, and what a statistic of the user's own says of the data."""

from __future__ import annotations

from typing import Literal

from taskvec.needs import Budget, Examples, Statistics
from taskvec.protocols.base import Answer
from taskvec.protocols.questions.looking import OfVectors
from taskvec.protocols.rows import metric
from taskvec.registry import lookup, register


@register("question", "sizes")
class Sizes(OfVectors):
    """||tau_t|| of each vector, and the examples that the statistic saw."""

    kind: Literal["sizes"] = "sizes"

    def needs(self, scope):
        """Ask for the statistic on test examples without labels."""
        return [self._counted(task) for task in scope.tasks]

    def _counted(self, task):
        on = Examples(task, "test", "report", budget=Budget(count=7))
        return Statistics(lookup("statistic", "counted").schema(), on)

    def answer(self, given, composition, vectors):
        """Return norms and counts."""
        norms = {vector.tasks[0]: float(vector.delta.norm()) for vector in vectors}
        counts = {task: given[self._counted(task)] for task in norms}
        return Answer(values={"norms": norms, "counts": counts}), {}

    def summary(self, answer):
        """Return both as rows."""
        norms, counts = answer.values["norms"], answer.values["counts"]
        return {
            "norm": metric(norms, unit="norm", better="neither"),
            "examples": metric(counts, unit="examples"),
        }
