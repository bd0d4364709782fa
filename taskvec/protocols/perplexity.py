"""Perplexity of a corpus along a composition's coefficients: the control where a suite names a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskvec.data.images import batches

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.data.views import TaskView
    from taskvec.merge.composition import Composition
    from taskvec.models.base import Model

BATCH = 32


def surprise(
    model: Model, composition: Composition, corpus: TaskView, alphas: Sequence[float], *, tangent: bool = False
) -> dict[float, Tensor]:
    """Return, per coefficient, each document's negative log-likelihood and predicted tokens, [N, 2] float64.

    ``tangent`` takes the states of the model linearised at theta_0.

    Raises:
        UserError: if the backbone gives no probability of a text.
    """
    import torch

    found = {}
    with torch.no_grad():
        for alpha in alphas:
            parameters = composition.parameters(alpha)
            rows = []
            for at in batches(len(corpus), BATCH):
                inputs = corpus.inputs[at]
                log_probs = model.token_log_probs(parameters, inputs, linearised=tangent)
                counted = (inputs >= 0).sum(1) - 1
                rows.append(torch.stack([-log_probs.double().sum(1).cpu(), counted.double().cpu()], dim=1))
            found[alpha] = torch.cat(rows)
    return found


def perplexity(documents: Tensor) -> float:
    """Return exp(sum of negative log-likelihoods / number of tokens) of documents [N, 2]."""
    nll, tokens = documents.sum(0)
    return (nll / tokens).exp().item()
