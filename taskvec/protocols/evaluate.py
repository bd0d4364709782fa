"""Answering a cell: accuracies along the grid on validation, then on test at the coefficients that are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.data.views import TaskView
from taskvec.protocols.predict import predict
from taskvec.protocols.question import REPORT, SELECTION, Answer, Cell
from taskvec.protocols.selection import choose

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.composition import Composition
    from taskvec.models.base import Model

Views = Callable[[str], Mapping[str, TaskView]]


def answer(
    cell: Cell,
    model: Model,
    composition: Composition,
    views: Views,
    needs: Mapping[str, Answer],
    *,
    tangent: bool = False,
    bf16: bool = False,
) -> tuple[Answer, dict[str, Tensor]]:
    """Return a cell's answer, and for each reported coefficient and task which test examples are right [N] bool.

    Each split is decoded and moved to the device once, whatever the length of the grid. ``tangent`` evaluates the model
    linearised at theta_0.
    """

    def masks(alphas: Iterable[float], data: Mapping[str, TaskView]) -> dict[float, dict[str, Tensor]]:
        return correct(model, composition, data, sorted(set(alphas)), tangent=tangent, bf16=bf16)

    grid = set(cell.grid) | (set(cell.fixed) if cell.on_selection else set())
    selection = _means(masks(grid, views(SELECTION))) if grid else {}
    alpha = choose(cell, {a: selection[a] for a in cell.grid}, needs) if cell.rule else None
    reported = masks({*cell.fixed, *([alpha] if alpha is not None else [])}, views(REPORT))
    tensors = {f"correct/{a}/{task}": mask for a, at in reported.items() for task, mask in at.items()}
    return Answer(alpha=alpha, rule=cell.rule, selection=selection, report=_means(reported)), tensors


def correct(
    model: Model,
    composition: Composition,
    views: Mapping[str, TaskView],
    alphas: Sequence[float],
    *,
    tangent: bool = False,
    bf16: bool = False,
) -> dict[float, dict[str, Tensor]]:
    """Return, per coefficient and task, which examples the composition classifies correctly, [N] bool on the CPU."""
    predicted = predict(model, composition, views, alphas, tangent=tangent, bf16=bf16)
    labels = {task: view.labels.cpu() for task, view in views.items()}
    return {alpha: {task: classes == labels[task] for task, classes in at.items()} for alpha, at in predicted.items()}


def _means(masks: Mapping[float, Mapping[str, Tensor]]) -> dict[float, dict[str, float]]:
    return {alpha: {task: mask.double().mean().item() for task, mask in at.items()} for alpha, at in masks.items()}
