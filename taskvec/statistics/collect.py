"""The one collector: few passes over the examples serve all statistics of one model, or of one pair of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from taskvec.errors import UserError
from taskvec.needs import Observe
from taskvec.statistics.base import Accumulator, Statistic
from taskvec.statistics.passes.batches import EMPTY, Batches, Piece, batch_size
from taskvec.statistics.passes.run import Pass
from taskvec.statistics.passes.survey import Survey, survey

__all__ = ["Batches", "batch_size", "collect"]


def collect(  # noqa: PLR0913 (a model at some weights, its examples, and what is wanted of them)
    model: Any,
    batches: Sequence[Tensor] | Sequence[Piece],
    statistics: Sequence[Statistic],
    *,
    parameters: Any = None,
    head: Any = None,
    labels: Tensor | None = None,
    observe: Observe | None = None,
) -> list[Any]:
    """Return the values of several statistics of a model on the same examples, in order.

    ``batches`` are the decoded examples in pieces whose activations fit into memory (see :class:`Batches`); they may be
    gone through several times. ``parameters`` are composed weights theta_0 + tau where a statistic is taken at a
    vector, None for theta_0. ``labels`` [N] belong to all examples in order. For statistics of a pair ``model``,
    ``parameters``, ``head`` and each batch are pairs (source, target).

    One forward pass over the examples serves all statistics, and a further one those that want it (EKFAC: bases, then
    eigenvalues); gradients group by group (:attr:`Accumulator.group`) take a pass of their own for each size of group.
    Without a statistic of gradients no graph is built and no activation outlives its use. Autocast is off. Sums
    depend on how the examples are cut by rounding only; :class:`Batches` may wish for other pieces. ``observe`` is told
    the batches done and in all, once per pass.

    Raises:
        UserError: for no examples, labels or a head that are missing, or a value that is not finite, by its name.
        ValueError: for activations of a layout that a statistic does not know.
        TypeError: for statistics of one model and of a pair together.
    """
    sides = _sides(model, parameters, head)
    _check(statistics, len(sides), labels)
    pieces = _pieces(batches)
    surveys = [survey(*side, inputs) for side, inputs in zip(sides, pieces[0], strict=True)]
    if isinstance(pieces, Batches):
        _fit(pieces, surveys, statistics, labels)
    results = [statistic.accumulator(*surveys) for statistic in statistics]
    while True:
        unfinished = [
            number for number, result in enumerate(results) if isinstance(result, Accumulator)
        ]
        if not unfinished:
            break
        for numbers in _together(results, unfinished):
            members = [results[number] for number in numbers]
            gradient = any(statistics[number].gradient for number in numbers)
            one_pass = Pass(surveys, members, gradient=gradient)
            examples = one_pass(pieces, labels, observe)
            for number in numbers:
                results[number] = results[number].finish(examples)
    for statistic, value in zip(statistics, results, strict=True):
        check_finite(statistic, value)
    return results


def _fit(
    batches: Batches,
    surveys: Sequence[Survey],
    statistics: Sequence[Statistic],
    labels: Tensor | None,
) -> None:
    """Let batches find their size, by the first passes over a few examples for sums that are thrown away.

    Where groups of a fixed size go through the model, larger pieces gain nothing.
    """
    if any(statistic.accumulator(*surveys).group for statistic in statistics):
        return

    def look(piece: Piece) -> None:
        rehearsed = [statistic.accumulator(*surveys) for statistic in statistics]
        for numbers in _together(rehearsed, range(len(rehearsed))):
            members = [rehearsed[number] for number in numbers]
            gradient = any(statistics[number].gradient for number in numbers)
            Pass(surveys, members, gradient=gradient)([piece], labels, observe=None)

    models = tuple(survey.model.module for survey in surveys)
    asked = tuple(statistic.model_dump_json() for statistic in statistics)
    weight = next(iter(surveys[0].model.parameters.values()))
    batches.fit((models, asked), look, weight.device)


def check_finite(statistic: Statistic, value: Any) -> None:
    """Look at every tensor of a statistic's value.

    Raises:
        UserError: naming the statistic and the first tensor that is not finite.
    """
    tensors, _ = statistic.pack(value)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            cause = "the weights or the examples make the model overflow"
            raise UserError(f"statistic {statistic.kind}: {name} is not finite; {cause}")


def _sides(model: Any, parameters: Any, head: Any) -> list[tuple[Any, Any, Any]]:
    """Return model, weights and head of each side: one, or source and target."""
    if not isinstance(model, tuple):
        return [(model, _frozen(parameters), head)]
    if parameters is None:
        parameters = [None for _ in model]
    if head is None:
        head = [None for _ in model]
    weights = [_frozen(own) for own in parameters]
    return list(zip(model, weights, head, strict=True))


def _frozen(weights: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return composed weights without a graph of their own; none at theta_0."""
    if weights is None:
        return {}
    return {name: weight.detach() for name, weight in weights.items()}


def _check(statistics: Sequence[Statistic], sides: int, labels: Tensor | None) -> None:
    """Compare what the statistics want with what there is.

    Raises:
        TypeError: for a statistic of a pair on one model, or the other way round.
        UserError: for labels that are missing.
    """
    for statistic in statistics:
        if statistic.pair != (sides > 1):
            wanted = "a pair of models" if statistic.pair else "one model"
            raise TypeError(f"the statistic {statistic.kind} is one of {wanted}")
        if statistic.labels and labels is None:
            reason = "takes the loss of the labels, and they were not granted"
            raise UserError(f"statistic {statistic.kind} {reason}")


def _pieces(batches: Sequence[Tensor] | Sequence[Piece]) -> Sequence[Piece]:
    """Return the batches as tuples of one model's or two models' inputs.

    Raises:
        UserError: if there is none.
    """
    if isinstance(batches, Batches):
        return batches
    if not len(batches):
        raise UserError(EMPTY)
    return [batch if isinstance(batch, tuple) else (batch,) for batch in batches]


def _together(results: Sequence[Any], unfinished: Sequence[int]) -> list[list[int]]:
    """Return the numbers of accumulators that share a pass: those that take examples in groups of the same size."""
    passes = {}
    for number in unfinished:
        group = results[number].group
        passes.setdefault(group, []).append(number)
    return list(passes.values())
