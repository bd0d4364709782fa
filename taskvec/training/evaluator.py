"""From weights and needs to logits, predictions and features: the one place that knows how models are evaluated.

Standard or linearised at theta_0, in which precision, in which batches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taskvec.errors import NotFinite
from taskvec.needs import Examples, View
from taskvec.training import linearise
from taskvec.training.linearise import exact, jvp_features
from taskvec.training.readouts import read_out
from taskvec.training.walk import Found, Predictions, Reader, Rows, Surprise, held, walk
from taskvec.vectors import Tensors

if TYPE_CHECKING:
    from taskvec.models.base import Model
    from taskvec.models.batching import Batching
    from taskvec.vectors.composition import Alpha, Composition

Alphas = Sequence[float] | Mapping[Hashable, "Alpha"]
Excluded = dict[Hashable, str]  # why a coefficient has no outcome


class Evaluator:
    """Asks one model, with any weights, about the examples of needs; ``view_of`` grants them.

    ``bf16`` takes the matrix products of logits and predictions in bfloat16, and losses in float32. ``rounded``
    predicts with a composition's weights in bfloat16, so the whole model computes in it. Features and derivatives,
    which are compared with each other, stay in the precision of the weights. ``compiled`` is the same model with a
    compiled forward pass, which serves all that is not linearised nor compared. ``batching`` says how many examples
    are predicted at once.
    """

    def __init__(
        self,
        model: Model,
        view_of: Callable[[Examples], View],
        *,
        bf16: bool = False,
        rounded: bool = False,
        compiled: Model | None = None,
        batching: Batching | None = None,
    ):
        self.model, self.view_of, self.bf16 = model, view_of, bf16
        self.dtype = torch.bfloat16 if rounded else None
        self.forward = compiled or model
        self.batching = batching

    # Differentiable

    def scores(
        self,
        inputs: Tensor,
        head: Tensor,
        weights: Tensors,
        direction: Tensors | None = None,
        readout: Tensors | None = None,
    ) -> Tensor:
        """Return the logits [N, C] of inputs under a head, differentiable in weights, direction, head and readout.

        Weights that are absent are the base's. With a ``direction`` tau they are those of the model linearised at
        theta_0, g(x; theta_0 + tau) = f(x) + J(x) tau, whatever the weights. A ``readout`` changes the logits
        (:mod:`taskvec.training.readouts`).
        """
        features = self.states(inputs, head, weights, direction)
        scored_by = weights if direction is None else None
        with self._autocast():
            logits = self.model.logits(features, head, scored_by)
            return read_out(readout or {}, features, logits)

    def states(
        self, inputs: Tensor, head: Tensor, weights: Tensors, direction: Tensors | None = None
    ) -> Tensor:
        """Return the features [N, d] that :meth:`scores` takes the logits of, differentiable likewise."""
        with self._autocast():
            if direction is None:
                return exact(self.forward.features(weights, inputs, head))
            start, derivative = jvp_features(self.model, direction, inputs, head)
            return exact(start) + exact(derivative)

    def logits(
        self, weights: Tensors, need: Examples, rows: Rows, direction: Tensors | None = None
    ) -> Tensor:
        """Return the logits [n, C] of some rows of a need, as :meth:`scores`."""
        view = self.view_of(need)
        return self.scores(view.take(rows), view.head, weights, direction)

    # Predictions

    def predictions(
        self, composition: Composition, needs: Sequence[Examples], alphas: Alphas
    ) -> tuple[dict[Hashable, dict[Examples, Tensor]], Excluded]:
        """Return the prediction for every example by coefficient and need, and the coefficients without any.

        Predictions [N] on the CPU are classes int64, or scores. ``alphas`` are coefficients, or by any key one
        coefficient or one for each vector. A linearised composition with a direction costs one jvp for each example,
        any other a forward pass for each example and coefficient. Coefficients at which weights or logits are not
        finite come with the reason in place of predictions.

        Raises:
            NotFinite: naming tensor or task, if that is so at every coefficient.
        """
        model = self._model_for(composition)
        readers = []
        for need in needs:
            view = self.view_of(need)
            readout = composition.readout(need.task)
            head = readout.get("head", view.head)
            readers.append(Predictions(model, need, view, head, readout, self.batching))
        return self._walk(composition, readers, alphas)

    def surprise(
        self, composition: Composition, need: Examples, alphas: Alphas
    ) -> tuple[dict[Hashable, Tensor], Excluded]:
        """Return each document's negative log-likelihood and predicted tokens, [N, 2] float64, by coefficient.

        The linearised model's states are scored by its output embedding. Coefficients as in :meth:`predictions`.

        Raises:
            NotFinite: if the likelihoods are not finite at any coefficient.
            UserError: if the backbone gives no probability of a text.
        """
        model = self._model_for(composition)
        reader = Surprise(model, need, self.view_of(need), head=None, batching=self.batching)
        found, excluded = self._walk(composition, [reader], alphas)
        return {key: outcomes[need] for key, outcomes in found.items()}, excluded

    def weights(
        self, composition: Composition, alpha: Alpha, task: str | None = None
    ) -> dict[str, Tensor]:
        """Return all weights of a composition as predictions use them."""
        return {**self.model.parameters, **held(self.model, composition, alpha, task, self.dtype)}

    # Features

    def features(self, weights: Tensors, need: Examples, rows: Rows) -> Tensor:
        """Return the features f(x; theta) [n, d] of some rows of a need.

        Raises:
            NotFinite: naming the task.
        """
        view = self.view_of(need)
        return _finite(self.model.features(weights, view.take(rows), view.head), need)

    def linearised(self, direction: Tensors, need: Examples, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return f(x; theta_0) and J(x) tau, both [n, d], of some rows of a need.

        Raises:
            NotFinite: naming the task.
        """
        view = self.view_of(need)
        features, derivative = jvp_features(self.model, direction, view.take(rows), view.head)
        return _finite(features, need), _finite(derivative, need)

    def along(self, vectors: Sequence[Tensors]) -> Along:
        """Return the function of (need, rows) that gives features and their derivatives along several vectors."""
        return Along(self, vectors)

    def classify(self, features: Tensor, need: Examples, weights: Tensors | None = None) -> Tensor:
        """Return the logits [N, C] of features under a need's head; weights None are those of the base."""
        return self.model.logits(features, self.view_of(need).head, weights)

    # Inside

    def _walk(self, composition: Composition, readers: Sequence[Reader], alphas: Alphas) -> Found:
        keyed = alphas if isinstance(alphas, Mapping) else dict(zip(alphas, alphas, strict=True))
        with self._autocast():
            return walk(self.model, composition, readers, keyed, self.dtype)

    def _model_for(self, composition: Composition) -> Model:
        """Return the model that predicts: the compiled one has no forward-mode derivative."""
        return self.model if composition.forward == "tangent" else self.forward

    def _autocast(self) -> torch.autocast:
        device = next(iter(self.model.parameters.values())).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.bf16)


class Along:
    """f(x; theta_0) and its derivatives along several vectors, which are stacked once for all batches."""

    def __init__(self, evaluator: Evaluator, vectors: Sequence[Tensors]):
        self.view_of, self.count = evaluator.view_of, len(vectors)
        self.product = linearise.along(evaluator.model, vectors)

    def __call__(
        self, need: Examples, rows: Rows, *, block: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return f [n, d] and J tau_t [T, n, d] of some rows, ``block`` examples at a time.

        Raises:
            NotFinite: naming the task.
        """
        view = self.view_of(need)
        inputs = view.take(rows)
        features, derivatives = [], []
        for part in inputs.split(block or len(inputs)):
            feature, derivative = self.product(part, view.head)
            features.append(feature)
            derivatives.append(derivative)
        return _finite(torch.cat(features), need), _finite(torch.cat(derivatives, dim=1), need)


def _finite(x: Tensor, need: Examples) -> Tensor:
    if not x.isfinite().all():
        raise NotFinite(
            f"the features on {need.task}/{need.split}, or their derivatives, are not finite"
        )
    return x
