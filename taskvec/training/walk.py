"""What a composition says of every example along its coefficients: a forward pass for each, or one jvp for them all.

g(x; theta_0 + alpha tau) = f(x) + alpha J(x) tau is affine in alpha, so wherever a linearised composition has a
direction each example costs one jvp, however long the grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from taskvec.errors import NotFinite
from taskvec.models.batching import Batching
from taskvec.needs import Examples, View
from taskvec.training.finite import broken
from taskvec.training.linearise import exact, jvp_along
from taskvec.training.readouts import read_out
from taskvec.vectors import Tensors

if TYPE_CHECKING:
    from taskvec.models.base import Model
    from taskvec.vectors.composition import Alpha, Composition

IMAGES, TEXTS, DOCUMENTS = 500, 64, 32  # of a batch, unless compute.batch says otherwise

Rows = Tensor | slice
Look = Callable[[Rows], Any]


class Reader(ABC):
    """What is read off a model for every example of a need: ``hidden`` depends on the weights, ``read`` on hidden."""

    def __init__(
        self,
        model: Model,
        need: Examples,
        view: View,
        head: Tensor | None,
        readout: Tensors | None = None,
        batching: Batching | None = None,
    ):
        self.model, self.need, self.view, self.head = model, need, view, head
        self.readout = readout or {}
        self.batching = batching or Batching()

    @abstractmethod
    def usual(self) -> int:
        """Return the number of examples of a batch where nothing else is wished."""

    @abstractmethod
    def order(self) -> Tensor | None:
        """Return the order [N] in which examples are looked at; None for that of the view."""

    def batches(self, way: Hashable, look: Look) -> Iterator[Rows]:
        """Yield the rows of each batch; ``look`` computes some rows, in a ``way`` that takes memory of its own."""
        lengths = self.view.lengths()
        heaviest = torch.arange(len(self.view))
        if lengths is not None:
            heaviest = lengths.cpu().argsort(descending=True, stable=True)
        shape = tuple(self.view.take(slice(0, 1)).shape[1:])
        size = self.batching.size(
            self.usual(),
            most=len(self.view),
            key=(self.model.module, type(self), way, shape),
            trial=lambda count: look(heaviest[:count]),
            device=next(iter(self.model.parameters.values())).device,
        )
        return self.view.batches(size, self.order())

    @abstractmethod
    def hidden(self, weights: Tensors, inputs: Tensor) -> Tensor:
        """Return what the linearised model is linear in."""

    @abstractmethod
    def read(
        self, hidden: Tensor, inputs: Tensor, weights: Tensors | None
    ) -> tuple[Tensor, Tensor]:
        """Return the outcome of each example [n, ...], and what must be finite for it to mean anything.

        Tensors None are those of the base.
        """

    def at(self, weights: Tensors) -> Tensor:
        """Return the outcomes [N, ...] of the model with some weights."""

        def look(rows: Rows) -> tuple[Tensor, Tensor]:
            inputs = self.view.take(rows)
            hidden = exact(self.hidden(weights, inputs))
            return self.read(hidden, inputs, weights)

        outcomes = _Outcomes(len(self.view))
        dtypes = frozenset(weight.dtype for weight in weights.values())
        for rows in self.batches(dtypes, look):
            outcomes.put(rows, *look(rows))
        return outcomes.finished(self.need)

    def along(
        self, direction: Tensors, alphas: Mapping[Hashable, float]
    ) -> dict[Hashable, _Outcomes]:
        """Return the outcomes of the model linearised at theta_0, at theta_0 + alpha * direction for every alpha."""

        def look(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
            inputs = self.view.take(rows)
            start, slope = jvp_along(
                lambda weights: self.hidden(weights, inputs), self.model, direction
            )
            return inputs, exact(start), exact(slope)

        found = {key: _Outcomes(len(self.view)) for key in alphas}
        for rows in self.batches("jvp", look):
            inputs, start, slope = look(rows)
            for key, alpha in alphas.items():
                # 0 times an overflow would not be 0
                hidden = start + alpha * slope if alpha else start
                found[key].put(rows, *self.read(hidden, inputs, None))
        return found


class Predictions(Reader):
    """The predicted class [N] int64 of each example, or its score [N] where the task is a regression."""

    def usual(self) -> int:
        """Return the number of images, or of texts."""
        return IMAGES if self.view.lengths() is None else TEXTS

    def order(self) -> Tensor | None:
        """Return the order of texts by length, so that little padding is computed; images have none."""
        lengths = self.view.lengths()
        return None if lengths is None else lengths.cpu().argsort(stable=True)

    def hidden(self, weights: Tensors, inputs: Tensor) -> Tensor:
        """Return the features [n, d]."""
        return self.model.features(weights, inputs, self.head)

    def read(
        self, hidden: Tensor, inputs: Tensor, weights: Tensors | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the logits [n, C] decide, and the logits."""
        plain = self.model.logits(hidden, self.head, weights)
        logits = read_out(self.readout, hidden, plain)
        return decide(logits, scores=self.view.regression), logits


class Surprise(Reader):
    """The negative log-likelihood and the number of predicted tokens of each document [N, 2] float64."""

    def usual(self) -> int:
        """Return the number of documents."""
        return DOCUMENTS

    def order(self) -> None:
        """Documents are looked at in their order."""
        return

    def hidden(self, weights: Tensors, inputs: Tensor) -> Tensor:
        """Return the states of all tokens [n, L, d]."""
        return self.model.token_states(weights, inputs)

    def read(
        self, hidden: Tensor, inputs: Tensor, weights: Tensors | None
    ) -> tuple[Tensor, Tensor]:
        """Return both numbers, and the likelihoods."""
        log_probs = self.model.token_log_probs(hidden, inputs, weights)
        surprise = -log_probs.double().sum(1)
        counted = (inputs >= 0).sum(1) - 1
        return torch.stack([surprise, counted.to(surprise)], dim=1), surprise


class _Outcomes:
    """Outcomes of examples as they are read, and whether all is finite, without waiting for the device."""

    def __init__(self, count: int):
        self.count = count
        self.values: Tensor | None = None
        self.finite: Tensor | None = None

    def put(self, rows: Rows, values: Tensor, evidence: Tensor) -> None:
        """Take the outcomes of some rows, and what must be finite."""
        finite = evidence.isfinite().all()
        if self.values is None:
            self.values = values.new_empty(self.count, *values.shape[1:])
            self.finite = finite
        self.values[rows] = values
        self.finite = self.finite & finite

    def finished(self, need: Examples) -> Tensor:
        """Return the outcomes of all examples, on the CPU.

        Raises:
            NotFinite: naming the task if something was not finite.
        """
        if not self.finite:
            raise NotFinite(f"the model's outputs on {need.task}/{need.split} are not finite")
        return self.values.cpu()


def decide(logits: Tensor, *, scores: bool) -> Tensor:
    """Return the class [N] of highest logit, or with ``scores`` the score [N].

    A score is that of the one output, or the mean of 0, 1, ... under the softmax over words that stand for them.
    """
    if not scores:
        return logits.argmax(1)
    if logits.shape[1] == 1:
        return logits[:, 0]
    # Weighted in float32: a matrix product would be bfloat16 under autocast
    weights = exact(logits).softmax(1)
    numbers = torch.arange(logits.shape[1], device=logits.device)
    return (weights * numbers).sum(1)


class Found(NamedTuple):
    """Outcomes by coefficient and need, on the CPU, and why some coefficients have none."""

    outcomes: dict[Hashable, dict[Examples, Tensor]]
    excluded: dict[Hashable, str]


@torch.no_grad()
def walk(
    model: Model,
    composition: Composition,
    readers: Sequence[Reader],
    alphas: Mapping[Hashable, Alpha],
    dtype: torch.dtype | None = None,
) -> Found:
    """Return the outcomes of a composition at each coefficient, or at one for each vector.

    A coefficient at which weights or outcomes are not finite is excluded. Composed weights are rounded to ``dtype``
    (:func:`held`).

    Raises:
        NotFinite: naming tensor or task, if that is so at every coefficient, or for the vector itself.
    """
    found = Found({key: {} for key in alphas}, {})
    direction = _one_direction(composition, alphas)
    if direction is not None:
        for reader in readers:
            own = composition.direction(reader.need.task) if composition.per_task else direction
            _line(own, reader, alphas, found)
    else:
        for key, alpha in alphas.items():
            try:
                _point(model, composition, readers, alpha, dtype, found.outcomes[key])
            except NotFinite as error:
                found.excluded[key] = str(error)
    for key in found.excluded:
        del found.outcomes[key]
    if found.excluded and not found.outcomes:
        first, reason = next(iter(found.excluded.items()))
        others = "" if len(alphas) == 1 else ", and no other coefficient is better"
        raise NotFinite(f"at alpha = {first} {reason}{others}")
    return found


def _one_direction(composition: Composition, alphas: Mapping[Hashable, Alpha]) -> Tensors | None:
    """Return the direction that serves all coefficients, of models per task one of them; None if there is none."""
    if composition.forward != "tangent":
        return None
    for alpha in alphas.values():
        if isinstance(alpha, Mapping):
            return None
    return composition.direction()


def _line(
    direction: Tensors, reader: Reader, alphas: Mapping[Hashable, float], found: Found
) -> None:
    """Evaluate one need at all coefficients that are left, with one jvp for each example.

    Raises:
        NotFinite: naming a tensor of the direction that is not finite.
    """
    name = broken(direction)
    if name:
        raise NotFinite(f"{name} of the task vector is not finite")
    left = {key: alpha for key, alpha in alphas.items() if key not in found.excluded}
    for key, outcomes in reader.along(direction, left).items():
        try:
            found.outcomes[key][reader.need] = outcomes.finished(reader.need)
        except NotFinite as error:
            found.excluded[key] = str(error)


def _point(
    model: Model,
    composition: Composition,
    readers: Sequence[Reader],
    alpha: Alpha,
    dtype: torch.dtype | None,
    found: dict[Examples, Tensor],
) -> None:
    """Evaluate every need at one coefficient; one set of weights is held at a time."""
    weights = None
    for reader in readers:
        if composition.per_task:
            weights = _moved(model, composition, alpha, reader.need.task, dtype)
        elif weights is None:
            weights = _moved(model, composition, alpha, None, dtype)
        if composition.forward == "tangent":  # weights that are not affine in alpha
            deltas = {name: weight - model.parameters[name] for name, weight in weights.items()}
            (only,) = reader.along(deltas, {1.0: 1.0}).values()
            found[reader.need] = only.finished(reader.need)
        else:
            found[reader.need] = reader.at(weights)


def held(
    model: Model,
    composition: Composition,
    alpha: Alpha,
    task: str | None,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Return the weights that a model is evaluated with, of ``dtype`` all parameters of its module; None: unrounded.

    theta(alpha) is composed in the dtype of theta_0 and rounded once, to the nearest, ties to even. Buffers stay.
    """
    if dtype is None:
        return dict(composition.parameters(alpha, task))
    weights = dict(composition.rounded(dtype, alpha, task))
    for name, parameter in model.module.named_parameters():
        if name not in weights:
            weights[name] = parameter.to(dtype)
    return weights


def _moved(
    model: Model,
    composition: Composition,
    alpha: Alpha,
    task: str | None,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Return the weights that are not the base's own.

    Raises:
        NotFinite: naming one that is not finite.
    """
    weights = held(model, composition, alpha, task, dtype)
    moved = {
        name: weight for name, weight in weights.items() if weight is not model.parameters.get(name)
    }
    name = broken(moved)
    if name:
        raise NotFinite(f"the merged {name} is not finite")
    return moved
