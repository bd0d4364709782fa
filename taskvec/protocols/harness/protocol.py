"""Generation suites: a merged language model on tasks of lm-evaluation-harness."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from taskvec.config import immaterial
from taskvec.errors import UserError
from taskvec.protocols.base import Answer, Ask, Cell, Composed, Protocol
from taskvec.protocols.harness.question import HarnessTask
from taskvec.protocols.harness.tasks import Found, find
from taskvec.protocols.harness.units import Measure, is_accuracy, measure
from taskvec.protocols.rows import Criterion, Metric, Report, Row, metric
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite

CONSENT = "HF_ALLOW_CODE_EVAL"


@register("protocol", "harness", paper="Gao et al., lm-evaluation-harness, zenodo.12608602")
class Harness(Protocol):
    """Evaluates the base model and the merged model at each of ``alphas`` on ``tasks`` and groups of lm-eval.

    A task's number is its first metric under its first filter, as its YAML lists them (a group: its first aggregate);
    ``metrics`` names another one, for example ``{gsm8k: "exact_match,flexible-extract"}``; all are in ``maps``. A
    number keeps its unit and direction: only fractions of which more is better are accuracies.
    ``include_path`` is a folder of YAML tasks that come before lm-eval's own. ``num_fewshot`` None keeps each task's.
    ``allow_code`` is the consent to run code: what the model writes, and Python of the user's tasks (``!function``
    modules, metrics that are scripts); what runs is part of the identity. Templates render in a sandbox.
    Everything about generation comes from the task.
    """

    kind: Literal["harness"] = "harness"
    tasks: tuple[str, ...] = Field(min_length=1)
    # The cells hold the checksums of what it contributes
    include_path: str | None = immaterial(None)
    alphas: tuple[float, ...] = Field((1.0,), min_length=1)
    limit: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    num_fewshot: int | None = Field(None, ge=0)
    allow_code: bool = False
    metrics: dict[str, str] | None = None

    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard"})

    @field_validator("tasks", "alphas")
    @classmethod
    def _distinct(cls, values: tuple) -> tuple:
        if len(set(values)) < len(values):
            raise ValueError("named more than once")
        return values

    @cached_property
    def found(self) -> dict[str, Found]:
        """The definition of each task.

        Raises:
            UserError: if lm-eval is not installed or does not know one.
        """
        return {name: find(name, self.include_path) for name in self.tasks}

    def check(self, suite: Suite) -> None:
        """Check that every task exists and that those which execute the model's code are allowed to.

        Raises:
            UserError: naming the task and the remedy.
        """
        if self.grid is not None or self.post_hoc:
            key = "grid" if self.grid is not None else "post_hoc"
            raise UserError(
                f"protocol.{key}: protocol=harness takes the weights at protocol.alphas; leave it out"
            )
        unknown = sorted(set(self.metrics or ()) - set(self.tasks))
        if unknown:
            raise UserError(
                f"protocol.metrics: {', '.join(unknown)} not in protocol.tasks ({', '.join(self.tasks)})"
            )
        for name, task in self.found.items():
            if task.code and not self.allow_code:
                raise UserError(
                    f"protocol.tasks: {name} {task.code}; where that may happen set protocol.allow_code=true"
                )
            if task.code_eval and os.environ.get(CONSENT) != "1":
                raise UserError(
                    f"protocol.tasks: {name} scores with code_eval, which wants {CONSENT}=1 in the shell too"
                )

    def cells(self, ask: Ask) -> list[Cell]:
        """Return a cell per model and task, those of the base first: they show what is missing before any training."""
        vectors = tuple((1.0, ask.vector(task)) for task in ask.suite.tasks)
        cells = [self._cell(f"zero_shot/{name}", name, Composed(), 0.0) for name in self.tasks]
        merged = Composed(vectors, merge=True)
        for alpha in self.alphas:
            cells += [
                self._cell(f"merged/{alpha}/{name}", name, merged, alpha) for name in self.tasks
            ]
        return cells

    def _cell(self, label: str, name: str, composed: Composed, alpha: float) -> Cell:
        found = self.found[name]
        settings = self.model_dump(include={"limit", "batch_size", "num_fewshot", "allow_code"})
        question = HarnessTask(
            task=name,
            alpha=alpha,
            lm_eval=version("lm_eval"),
            files=found.digest(),
            folders=tuple(str(folder) for folder in found.folders),
            **settings,
        )
        return Cell(label, composed, question)

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot and merged (at each coefficient), and every metric in ``maps``.

        Raises:
            UserError: if ``metrics`` asks for one that a task does not have.
        """
        models = {"zero_shot": ("zero_shot", 0.0)}
        for alpha in self.alphas:
            label = "merged" if len(self.alphas) == 1 else f"merged_{alpha}"
            models[label] = (f"merged/{alpha}", alpha)
        rows, maps = {}, {}
        for label, (prefix, alpha) in models.items():
            values = {name: answers[f"{prefix}/{name}"].values for name in self.tasks}
            cells = {name: f"{prefix}/{name}" for name in self.tasks}
            rows[label] = Row(row=label, alpha=alpha, metrics=self._metrics(values), cells=cells)
            maps[label] = values
        merged = [row for label, row in rows.items() if label != "zero_shot"]
        points = [curve_point(row) for row in merged]
        first, metric_of_first = next(iter(merged[0].metrics.items()))
        criterion = Criterion(
            name=f"merged/{first}",
            value=metric_of_first.mean,
            unit=metric_of_first.unit,
            better=metric_of_first.better,
            split="test",
        )
        return Report(
            rows=tuple(rows.values()), curves={"merged": points}, maps=maps, criterion=criterion
        )

    def _metrics(self, values: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
        """Return the tasks' numbers by metric: accuracies together, others by their own names, each with its unit."""
        grouped: dict[str, dict[str, float]] = {}
        measures: dict[str, Measure] = {}
        judged: dict[str, str] = {}
        for task, said in values.items():
            named = self._main(task, said)
            base = named.partition(",")[0]
            found = measure(base, said["higher_is_better"].get(base))
            group = base
            if is_accuracy(found):
                group = "accuracy"
                judged[task] = base
            grouped.setdefault(group, {})[task] = said["metrics"][named]
            measures[group] = found
        accuracies_first = sorted(grouped, key=lambda group: group != "accuracy")
        metrics = {}
        for group in accuracies_first:
            by_task = judged if group == "accuracy" else {}
            metrics[group] = metric(grouped[group], by_task=by_task, **measures[group]._asdict())
        return metrics

    def _main(self, name: str, said: Mapping[str, Any]) -> str:
        named = (self.metrics or {}).get(name, said["main"])
        if named not in said["metrics"]:
            raise UserError(
                f"protocol.metrics: {name} has {', '.join(said['metrics'])}, but not {named!r}"
            )
        return named


def curve_point(row: Row) -> dict[str, Any]:
    """Return a row as a point of the curve over coefficients: accuracies by task with their mean, others as means."""
    point: dict[str, Any] = {"alpha": row.alpha}
    for name, found in row.metrics.items():
        point |= (
            {"mean": found.mean, name: found.values} if name == "accuracy" else {name: found.mean}
        )
    return point
