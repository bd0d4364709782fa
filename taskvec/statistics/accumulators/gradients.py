"""Gradients of losses and log-likelihoods with respect to all editable parameters: their mean, signs and squares."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.errors import UserError
from taskvec.statistics.passes.accumulator import Accumulator, Forward, Root
from taskvec.statistics.passes.tokens import probe
from taskvec.statistics.values import ParameterGradient


class _Sums:
    """float64 sums by parameter name, handed back in the parameters' own dtype, in float32 at least."""

    def __init__(self) -> None:
        self.totals = {}
        self.dtypes = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add tensors by name."""
        for name, value in values.items():
            if name in self.totals:
                self.totals[name] += value
            else:
                self.totals[name] = value.to(torch.float64, copy=True)
                self.dtypes[name] = exact(value)

    def mean(self, count: int) -> dict[str, Tensor]:
        """Return the sums divided by a count; the sums themselves are used up."""
        means = {}
        for name in list(self.totals):
            total = self.totals.pop(name)
            means[name] = total.div_(count).to(self.dtypes[name])
        return means


class GradientSums(Accumulator):
    """The gradient of the labels' loss, and with ``votes`` its sign on each example."""

    weights = True

    def __init__(self, votes: bool):
        self.group = 1 if votes else None
        self.sums = _Sums()
        self.votes: dict[str, Tensor] | None = {} if votes else None

    def roots(self, forward: Forward) -> list[Root]:
        """Return the summed loss of the examples."""
        return [Root(loss(forward), receive=self._add)]

    def _add(self, gradients: Mapping[str, Tensor]) -> None:
        self.sums.add(gradients)
        if self.votes is None:
            return
        for name, gradient in gradients.items():
            sign = gradient.sign().to(torch.int32)
            if name in self.votes:
                self.votes[name] += sign
            else:
                self.votes[name] = sign

    def finish(self, examples: int) -> ParameterGradient:
        """Return the mean gradient and the votes."""
        return ParameterGradient(self.sums.mean(examples), self.votes, examples)


class FisherSums(Accumulator):
    """Squares of the gradients of log-likelihoods, each summed over ``group`` examples first."""

    weights = True

    def __init__(self, outcome: str, group: int, seed: int):
        self.outcome, self.group, self.seed = outcome, group, seed
        self.sums = _Sums()

    def roots(self, forward: Forward) -> list[Root]:
        """Return a backward pass for each class, or one."""
        if self.outcome == "label":
            return [Root(loss(forward), receive=self._square)]
        terms = weighted_log_likelihoods(forward.logits)
        if self.outcome == "every":
            columns = terms.sum(0).unbind()
            return [Root(column, receive=self._square) for column in columns]
        if self.outcome == "signed":
            normal = probe(self.seed, 0, forward.first, *terms.shape)
            terms = terms * normal.sign().to(terms)
        return [Root(terms.sum(), receive=self._square)]

    def _square(self, gradients: Mapping[str, Tensor]) -> None:
        squares = {}
        for name, gradient in gradients.items():
            gradient = gradient.to(exact(gradient))
            squares[name] = gradient.square()
        self.sums.add(squares)

    def finish(self, examples: int) -> dict[str, Tensor]:
        """Return the diagonal by parameter."""
        return self.sums.mean(examples)


def loss(forward: Forward) -> Tensor:
    """Return the labels' loss summed over the examples, a scalar: the loss that fine-tuning minimises.

    Cross-entropy, or the squared error where a head of one output meets labels that are scores.

    Raises:
        UserError: if the labels were not granted.
    """
    logits, labels = forward.logits, forward.labels
    if labels is None:
        raise UserError("a loss needs labels, and they were not granted")
    if labels.is_floating_point() and logits.shape[1] == 1:
        return F.mse_loss(logits[:, 0], labels, reduction="sum")
    if labels.is_floating_point():
        labels = labels.round().long()  # the nearest of the words that stand for 0, 1, ...
    return F.cross_entropy(logits, labels, reduction="sum")


def weighted_log_likelihoods(logits: Tensor) -> Tensor:
    """Return sqrt(p_c) log p_c [N, C] of the model's own predictions p, whose square roots are constants.

    The squares of their gradients sum to the expectation of a squared score. A head of one output predicts a Gaussian
    whose negative log-likelihood is the squared error: variance 1/2, expected squared score 2 f'^2.
    """
    if logits.shape[1] == 1:
        return logits * 2**0.5
    scores = logits.log_softmax(dim=1)
    probabilities = scores.detach().exp()
    return probabilities.sqrt() * scores


def exact(tensor: Tensor) -> torch.dtype:
    """Return the dtype that a statistic of a tensor is kept in: its own, but float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)
