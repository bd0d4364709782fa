"""From answers to rows: the pieces that protocols share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskvec.data.tasks import Suite
from taskvec.errors import UserError
from taskvec.protocols.base import SELECTION, Answer, Cell, Composed, Protocol
from taskvec.protocols.questions.scores import scores
from taskvec.protocols.rows import Metric, Row, mean, metric


def only_classes(suite: Suite, what: str) -> None:
    """Check that every task is a classification.

    Raises:
        UserError: naming the tasks whose labels are scores; ``what`` compares predicted classes.
    """
    scored = [
        task for task in suite.tasks if getattr(suite.definitions.get(task), "regression", False)
    ]
    if scored:
        raise UserError(
            f"{what} compares predicted classes; leave {', '.join(scored)} out of suite.tasks"
        )


def zero_shot(
    protocol: Protocol,
    suite: Suite,
    targets: Sequence[str],
    control: str | None = None,
    *,
    on_selection: bool = True,
) -> Cell:
    """Return the cell of the pre-trained model, asked on validation examples too unless ``on_selection`` is False."""
    question = scores(suite, targets, control, fixed=(0.0,), on_selection=on_selection)
    return Cell("zero_shot", Composed(forward=protocol.forward), question)


def individual(
    protocol: Protocol, suite: Suite, task: str, vector: Any, control: str | None = None
) -> Cell:
    """Return the cell of a task's own fine-tuned model, theta_0 + tau_t: the denominator of normalised accuracy."""
    question = scores(suite, (task,), control, fixed=(1.0,), on_selection=True)
    return Cell(
        f"individual/{task}", Composed(((1.0, vector),), forward=protocol.forward), question
    )


class Rows:
    """Makes rows of a suite's answers: accuracies with the metric of each task, controls in their unit."""

    def __init__(self, suite: Suite, denominators: Mapping[str, float] | None = None):
        self.suite, self.denominators = suite, dict(denominators or {})
        self.by_task = {}
        for task in suite.tasks:
            named = getattr(suite.definitions.get(task), "metric", "accuracy")
            if named != "accuracy":
                self.by_task[task] = named

    def row(  # noqa: PLR0913 (what a row says)
        self,
        name: str,
        answer: Answer,
        alpha: float | None,
        targets: Sequence[str],
        *,
        control: str | None = None,
        cell: str | None = None,
        searched: bool = True,
    ) -> Row:
        """Return an answer's line at ``alpha`` on the test split; ``searched`` False says that alpha was given.

        ``cell`` is the name of the answer's cell, by which the row finds the outcomes of its test examples.

        Raises:
            UserError: if the model is not finite at that coefficient.
        """
        if alpha not in answer.report:
            reason = answer.excluded.get(alpha, "it was not evaluated")
            raise UserError(f"{name}: no scores at alpha {alpha}: {reason}")
        at, before = answer.report[alpha], answer.selection.get(alpha, {})
        accuracy = {task: at[task] for task in targets}
        validation = {task: before[task] for task in targets if before}
        chosen = searched and answer.rule is not None
        metrics = {"accuracy": self._accuracy(accuracy)}
        if self.denominators:
            ratios = {task: value / self.denominators[task] for task, value in accuracy.items()}
            metrics["normalised"] = metric(ratios)
        if validation:
            metrics["validation"] = self._accuracy(validation)
        if control:
            metrics |= self._control(control, at)
        selected_on, rule = (SELECTION, answer.rule) if chosen else (None, None)
        return Row(
            row=name,
            alpha=alpha,
            selected_on=selected_on,
            rule=rule,
            metrics=metrics,
            denominators=self.denominators,
            cells={"all": cell or name},
        )

    def _accuracy(self, values: Mapping[str, float]) -> Metric:
        named = {task: kind for task, kind in self.by_task.items() if task in values}
        return metric(values, by_task=named)

    def _control(self, control: str, at: Mapping[str, float]) -> dict[str, Metric]:
        value = {control: at[control]}
        if self.suite.control_metric == "perplexity":
            return {"perplexity": metric(value, unit="perplexity", better="lower")}
        return {"control": metric(value)}

    def joined(self, name: str, parts: Mapping[str, Row]) -> Row:
        """Return the line that holds one target from each of several rows (individual models, negations)."""
        first = next(iter(parts.values()))
        alphas = {task: part.alpha for task, part in parts.items()}
        metrics = {}
        for kind, example in first.metrics.items():
            values = {}
            for task, part in parts.items():
                # A control is one task measured under several models: the value under each target's model.
                (value,) = part.values(kind).values()
                values[task] = value
            about = example.model_dump(include={"unit", "better"})
            named = {
                task: metric_name
                for part in parts.values()
                for task, metric_name in part.metrics[kind].by_task.items()
            }
            metrics[kind] = metric(values, by_task=named, **about)
        denominators = {}
        for part in parts.values():
            denominators |= part.denominators
        return Row(
            row=name,
            alpha=mean(alphas.values()),
            alphas=alphas,
            selected_on=first.selected_on,
            rule=first.rule,
            metrics=metrics,
            denominators=denominators,
            cells={task: part.cells["all"] for task, part in parts.items()},
        )


def curve(
    answer: Answer, targets: Sequence[str], control: str | None = None
) -> list[dict[str, Any]]:
    """Return an answer's selection curve: one point per coefficient of the grid."""
    points = []
    for alpha, at in sorted(answer.selection.items()):
        accuracy = {task: at[task] for task in targets}
        point: dict[str, Any] = {
            "alpha": alpha,
            "mean": mean(accuracy.values()),
            "accuracy": accuracy,
        }
        if control:
            point["control"] = at[control]
        points.append(point)
    return points
