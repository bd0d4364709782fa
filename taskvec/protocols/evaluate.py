"""Answering a cell: accuracies along the grid on validation, then on test at the coefficients that are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from taskvec.data.images import batches
from taskvec.data.views import TaskView
from taskvec.protocols.question import REPORT, SELECTION, Answer, Cell
from taskvec.protocols.selection import choose

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.composition import Composition
    from taskvec.models.base import Model

BATCH = 500
Views = Callable[[str], Mapping[str, TaskView]]


def answer(
    cell: Cell, model: Model, composition: Composition, views: Views, needs: Mapping[str, Answer], *, bf16: bool = False
) -> tuple[Answer, dict[str, Tensor]]:
    """Return a cell's answer, and for each reported coefficient and task which test examples are right [N] bool.

    Each split is decoded and moved to the device once, whatever the length of the grid.
    """

    def accuracies(alphas: Iterable[float], data: Mapping[str, TaskView]) -> dict[float, dict[str, Tensor]]:
        return {alpha: correct(model, composition, data, alpha, bf16=bf16) for alpha in sorted(set(alphas))}

    grid = set(cell.grid) | (set(cell.fixed) if cell.on_selection else set())
    selection = _means(accuracies(grid, views(SELECTION))) if grid else {}
    alpha = choose(cell, {a: selection[a] for a in cell.grid}, needs) if cell.rule else None
    reported = {*cell.fixed, *([alpha] if alpha is not None else [])}
    masks = accuracies(reported, views(REPORT))
    tensors = {f"correct/{a}/{task}": mask for a, at in masks.items() for task, mask in at.items()}
    return Answer(alpha=alpha, rule=cell.rule, selection=selection, report=_means(masks)), tensors


def correct(
    model: Model, composition: Composition, views: Mapping[str, TaskView], alpha: float, *, bf16: bool = False
) -> dict[str, Tensor]:
    """Return per task which examples the composition at ``alpha`` classifies correctly, [N] bool on the CPU."""
    import torch

    shared = None if composition.per_task else composition.parameters(alpha)
    device = next(iter(model.parameters.values())).device.type
    out = {}
    with torch.no_grad():
        for task, view in views.items():
            parameters = composition.parameters(alpha, task) if shared is None else shared
            parts = []
            for rows in batches(len(view), BATCH):
                with torch.autocast(device, torch.bfloat16, enabled=bf16):
                    features = model.features(parameters, view.inputs[rows])
                parts.append(model.logits(features.float(), view.head).argmax(1) == view.labels[rows])
            out[task] = torch.cat(parts).cpu()
    return out


def _means(masks: Mapping[float, Mapping[str, Tensor]]) -> dict[float, dict[str, float]]:
    return {alpha: {task: mask.double().mean().item() for task, mask in at.items()} for alpha, at in masks.items()}
