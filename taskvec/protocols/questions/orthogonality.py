"""Cosines between task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from taskvec.needs import Given, Needs, Scope, Signed
from taskvec.protocols.base import Answer
from taskvec.protocols.questions.drift import on_others
from taskvec.protocols.questions.looking import OfVectors
from taskvec.protocols.rows import Metric, metric
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.vectors.composition import Composition


@register(
    "question", "orthogonality", paper="Ilharco et al., ICLR 2023, arXiv 2212.04089, figure 3"
)
class Orthogonality(OfVectors):
    """<tau_s, tau_t> / (||tau_s|| ||tau_t||) of all pairs of vectors; it looks at no examples."""

    kind: Literal["orthogonality"] = "orthogonality"

    def needs(self, scope: Scope) -> Needs:
        """Return nothing."""
        return ()

    def answer(
        self, given: Given, composition: Composition, vectors: Sequence[Signed]
    ) -> tuple[Answer, dict]:
        """Return the matrix of cosines and the norms."""
        deltas = {vector.tasks[0]: vector.delta for vector in vectors}
        norms = {task: float(delta.norm()) for task, delta in deltas.items()}
        matrix = []
        for task, delta in deltas.items():
            line = []
            for other, another in deltas.items():
                scale = norms[task] * norms[other]
                cosine = float(delta.dot(another)) / scale if scale else 0.0
                line.append(cosine)
            matrix.append(line)
        tasks = list(deltas)
        values = {"rows": tasks, "columns": tasks, "matrix": matrix, "norms": list(norms.values())}
        return Answer(values=values), {}

    def summary(self, answer: Answer) -> dict[str, Metric]:
        """Return each vector's mean absolute cosine with the others."""
        return {self.kind: metric(on_others(answer.values), unit="cosine", better="lower")}
