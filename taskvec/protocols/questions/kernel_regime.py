"""How close a fine-tuned model is to its linearisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from taskvec.needs import Given, Signed
from taskvec.protocols.base import Answer
from taskvec.protocols.questions.looking import OfVectors, Subject
from taskvec.protocols.rows import Metric, metric
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import TaskVector
    from taskvec.vectors.composition import Composition


@register("question", "kernel_regime", paper="Jin et al., ICLR 2025, arXiv 2407.07089")
class KernelRegime(OfVectors):
    """Per task the non-linear and post-hoc accuracy and the relative feature error ||f - g|| / ||f - f_0||.

    f is the fine-tuned model's feature, g that of its linearisation at theta_0, f_0 the pre-trained one; norms are over
    all examples of the task's test split (spec 5.3).
    """

    kind: Literal["kernel_regime"] = "kernel_regime"

    def answer(
        self, given: Given, composition: Composition, vectors: Sequence[Signed]
    ) -> tuple[Answer, dict]:
        """Return the three quantities of each task."""
        import torch

        subject = Subject(given, vectors, linearised=True)
        with torch.no_grad():
            values = {
                task: self._of_task(subject, task, vector)
                for task, vector in subject.vectors.items()
            }
        return Answer(values=values), {}

    def _of_task(self, subject: Subject, task: str, vector: TaskVector) -> dict[str, float]:
        evaluator = subject.evaluator
        weights = vector.apply_to(subject.given.model.parameters)
        right = {"non_linear": 0, "post_hoc": 0}
        error, moved = 0.0, 0.0
        for need, rows in subject.batches(task):
            labels = subject.given[need].labels(rows)
            f = evaluator.features(weights, need, rows)
            f0, derivative = evaluator.linearised(vector, need, rows)
            g = f0 + derivative
            tuned = evaluator.classify(f, need, weights).argmax(1)
            linearised = evaluator.classify(g, need).argmax(1)
            right["non_linear"] += int((tuned == labels).sum())
            right["post_hoc"] += int((linearised == labels).sum())
            error += squared(f - g)
            moved += squared(f - f0)
        accuracies = {name: count / subject.size(task) for name, count in right.items()}
        relative = (error / moved) ** 0.5 if moved else 0.0
        return accuracies | {"relative_feature_error": relative}

    def summary(self, answer: Answer) -> dict[str, Metric]:
        """Return both accuracies and the relative error, by task."""
        rows = {}
        for part in ("non_linear", "post_hoc"):
            rows[part] = metric({task: found[part] for task, found in answer.values.items()})
        errors = {task: found["relative_feature_error"] for task, found in answer.values.items()}
        rows["relative_feature_error"] = metric(errors, better="lower")
        return rows


def squared(x: Tensor) -> float:
    """Return the squared norm, summed in float64."""
    return float(x.double().square().sum())
