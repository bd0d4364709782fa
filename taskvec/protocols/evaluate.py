"""Answering a cell: metrics along the grid on validation, then on test at the coefficients that are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.data.views import View
from taskvec.protocols.metrics import score
from taskvec.protocols.perplexity import perplexity, surprise
from taskvec.protocols.predict import predict
from taskvec.protocols.question import REPORT, SELECTION, Answer, Cell
from taskvec.protocols.selection import choose

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.composition import Composition
    from taskvec.models.base import Model

Views = Callable[[str], Mapping[str, View]]
Outcomes = dict[float, dict[tuple[str, str], "Tensor"]]


def answer(
    cell: Cell,
    model: Model,
    composition: Composition,
    views: Views,
    needs: Mapping[str, Answer],
    *,
    tangent: bool = False,
    bf16: bool = False,
    metrics: Mapping[str, str] | None = None,
) -> tuple[Answer, dict[str, Tensor]]:
    """Return a cell's answer, and for each reported coefficient and task the outcome on the test examples.

    ``metrics`` names the metric of every task that is not judged by accuracy. The outcome is ``correct/ALPHA/TASK``
    [N] bool, ``predicted/ALPHA/TASK`` [N, 2] float64 (label, prediction) for another metric, or for a corpus, a control
    without labels whose entry is the perplexity, ``surprise/ALPHA/TASK`` as :func:`surprise` returns it. Each split is
    decoded and moved to the device once, whatever the length of the grid. ``tangent`` evaluates the model linearised at
    theta_0.
    """
    metrics = metrics or {}

    def outcomes(alphas: Iterable[float], data: Mapping[str, View]) -> Outcomes:
        chosen = sorted(set(alphas))
        labelled = {task: view for task, view in data.items() if view.labelled}
        found = judged(model, composition, labelled, chosen, metrics, tangent=tangent, bf16=bf16)
        for task in data.keys() - labelled.keys():
            documents = surprise(model, composition, data[task], chosen, tangent=tangent, bf16=bf16)
            for alpha in chosen:
                found[alpha]["surprise", task] = documents[alpha]
        return found

    grid = set(cell.grid) | (set(cell.fixed) if cell.on_selection else set())
    selection = _values(outcomes(grid, views(SELECTION)), metrics) if grid else {}
    alpha = choose(cell, {a: selection[a] for a in cell.grid}, needs) if cell.rule else None
    reported = outcomes({*cell.fixed, *([alpha] if alpha is not None else [])}, views(REPORT))
    tensors = {f"{kind}/{a}/{task}": outcome for a, at in reported.items() for (kind, task), outcome in at.items()}
    return Answer(alpha=alpha, rule=cell.rule, selection=selection, report=_values(reported, metrics)), tensors


def judged(
    model: Model,
    composition: Composition,
    views: Mapping[str, View],
    alphas: Sequence[float],
    metrics: Mapping[str, str],
    *,
    tangent: bool = False,
    bf16: bool = False,
) -> Outcomes:
    """Return each coefficient's outcomes: which examples are right, [N] bool, or labels and predictions, [N, 2]."""
    import torch

    predicted = predict(model, composition, views, alphas, tangent=tangent, bf16=bf16)
    labels = {task: view.labels().cpu() for task, view in views.items()}

    def outcome(task: str, found: Tensor) -> tuple[tuple[str, str], Tensor]:
        if metrics.get(task, "accuracy") == "accuracy":
            return ("correct", task), found == labels[task]
        return ("predicted", task), torch.stack([labels[task].double(), found.double()], dim=1)

    return {alpha: dict(outcome(task, found) for task, found in at.items()) for alpha, at in predicted.items()}


def _values(outcomes: Outcomes, metrics: Mapping[str, str]) -> dict[float, dict[str, float]]:
    def value(kind: str, task: str, outcome: Tensor) -> float:
        if kind == "correct":
            return outcome.double().mean().item()
        return perplexity(outcome) if kind == "surprise" else score(metrics[task], *outcome.numpy().T)

    return {alpha: {key[1]: value(*key, outcome) for key, outcome in at.items()} for alpha, at in outcomes.items()}
