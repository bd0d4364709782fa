"""Predictions of a composition along its coefficients: a forward pass for each, or one jvp for them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.data.views import View
    from taskvec.merge.composition import Composition
    from taskvec.models.base import Model

BATCH, TEXTS = 500, 64
Predictions = dict[float, dict[str, "Tensor"]]


def predict(
    model: Model,
    composition: Composition,
    views: Mapping[str, View],
    alphas: Sequence[float],
    *,
    tangent: bool = False,
    bf16: bool = False,
) -> Predictions:
    """Return the prediction for every example per coefficient and task, [N] on the CPU: classes int64, or scores.

    ``tangent`` predicts with the model linearised at theta_0: g(x; theta_0 + alpha tau) = f(x) + alpha J(x) tau is
    affine in alpha, so wherever the composition has a direction each example costs one jvp, however long the grid.
    """
    import torch

    device = next(iter(model.parameters.values())).device.type
    parts: dict[tuple[float, str], list[Tensor]] = {}
    walk = _linearised if tangent else _standard
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        for alpha, task, logits in walk(model, composition, views, alphas):
            parts.setdefault((alpha, task), []).append(decide(logits, scores=views[task].regression))
    places = {
        task: torch.cat([torch.arange(len(view))[rows] for rows in cuts(view)]).argsort()
        for task, view in views.items()
    }
    return {alpha: {task: torch.cat(parts[alpha, task]).cpu()[places[task]] for task in views} for alpha in alphas}


def cuts(view: View) -> list[Tensor | slice]:
    """Return the rows of each batch: images in their order, texts by length, so that little padding is computed."""
    lengths = view.lengths()
    if lengths is None:
        return list(view.batches(BATCH))
    return list(view.batches(TEXTS, lengths.argsort(stable=True)))


def decide(logits: Tensor, *, scores: bool) -> Tensor:
    """Return the class [N] of highest logit, or with ``scores`` the score [N]: that of the one output, or the mean of
    0, 1, ... under the softmax over words that stand for them.
    """
    import torch

    if not scores:
        return logits.argmax(1)
    if logits.shape[1] == 1:
        return logits[:, 0]
    weights = exact(logits).softmax(1)  # weighted in float32: a matrix product would be bfloat16 under autocast
    return (weights * torch.arange(logits.shape[1], device=logits.device)).sum(1)


Step = tuple[float, str, "Tensor"]


def _standard(
    model: Model, composition: Composition, views: Mapping[str, View], alphas: Sequence[float]
) -> Iterator[Step]:
    for alpha in alphas:  # outermost, so that one set of weights is held at a time
        shared = None if composition.per_task else composition.parameters(alpha)
        for task, view in views.items():
            parameters = composition.parameters(alpha, task) if shared is None else shared
            for rows in cuts(view):
                features = model.features(parameters, view.take(rows), view.head)
                yield alpha, task, model.logits(exact(features), view.head, parameters)


def _linearised(
    model: Model, composition: Composition, views: Mapping[str, View], alphas: Sequence[float]
) -> Iterator[Step]:
    from taskvec.training.linearise import jvp_features

    for task, view in views.items():
        direction = composition.direction(task)
        for rows in cuts(view):
            inputs = view.take(rows)
            if direction is not None:
                features, derivative = map(exact, jvp_features(model, direction, inputs, view.head))
                for alpha in alphas:
                    yield alpha, task, model.logits(features + alpha * derivative, view.head)
                continue
            for alpha in alphas:  # weights that are not affine in alpha
                moved = {n: p - model.parameters[n] for n, p in composition.parameters(alpha, task).items()}
                yield alpha, task, model.logits(exact(sum(jvp_features(model, moved, inputs, view.head))), view.head)


def exact(x: Tensor) -> Tensor:
    """Return bfloat16 features in float32, for the head."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))
