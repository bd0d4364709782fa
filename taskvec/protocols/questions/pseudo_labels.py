"""What a model that learned from its own predictions took for true, and how often it was right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from taskvec.needs import Examples, Given, Needs, Scope, Signed
from taskvec.protocols.base import REPORT, Answer, Question
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors.composition import Composition

QUANTITIES = ("trusted", "precision", "accepted")


@register("question", "pseudo_labels", paper="spec atlas 6.3")
class PseudoLabels(Question):
    """The share of a target's test examples that is trusted, its labels' precision, the accepted share of the rest.

    They are those of the last estimate of the objective, with the learned model. Objectives without pseudo-labels leave
    the answer empty.
    """

    kind: Literal["pseudo_labels"] = "pseudo_labels"
    target: str

    @property
    def examples(self) -> Examples:
        """The test examples with their labels."""
        return Examples(self.target, REPORT, "report", labels=True)

    def needs(self, scope: Scope) -> Needs:
        """Return the test examples."""
        return (self.examples,)

    def answer(
        self, given: Given, composition: Composition, vectors: Sequence[Signed]
    ) -> tuple[Answer, dict[str, Tensor]]:
        """Compare the notes of the composition with the labels."""
        notes = getattr(composition, "notes", {})
        prefix = f"{self.target}/"
        if f"{prefix}trusted" not in notes:
            return Answer(), {}
        labels = given[self.examples].labels().cpu()
        rows, classes = notes[f"{prefix}trusted"].cpu(), notes[f"{prefix}classes"].cpu()
        right = classes == labels[rows]
        values = {
            "trusted": len(rows) / len(labels),
            "precision": right.double().mean().item(),
            "accepted": notes[f"{prefix}accepted"].item(),
        }
        return Answer(values=values), {}
