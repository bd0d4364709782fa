"""Perplexity of a corpus along a composition's coefficients: the control where a suite names a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.protocols.predict import exact

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.data.views import View
    from taskvec.merge.composition import Composition
    from taskvec.models.base import Model

BATCH = 32


def surprise(
    model: Model,
    composition: Composition,
    corpus: View,
    alphas: Sequence[float],
    *,
    tangent: bool = False,
    bf16: bool = False,
) -> dict[float, Tensor]:
    """Return, per coefficient, each document's negative log-likelihood and predicted tokens, [N, 2] float64.

    ``tangent`` takes the states of the model linearised at theta_0, scored by its output embedding: affine in alpha
    wherever the composition has a direction, so that each document costs one jvp and a scoring per coefficient.
    ``bf16`` takes matrix products in bfloat16, losses in float32.

    Raises:
        UserError: if the backbone gives no probability of a text.
    """
    import torch

    device = next(iter(model.parameters.values())).device.type
    rows: dict[float, list[Tensor]] = {alpha: [] for alpha in alphas}
    walk = _linearised if tangent else _standard
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        for alpha, inputs, states, parameters in walk(model, composition, corpus, alphas):
            log_probs = model.token_log_probs(states, inputs, parameters)
            counted = (inputs >= 0).sum(1) - 1
            rows[alpha].append(torch.stack([-log_probs.double().sum(1).cpu(), counted.double().cpu()], dim=1))
    return {alpha: torch.cat(parts) for alpha, parts in rows.items()}


def perplexity(documents: Tensor) -> float:
    """Return exp(sum of negative log-likelihoods / number of tokens) of documents [N, 2]."""
    nll, tokens = documents.sum(0)
    return (nll / tokens).exp().item()


Step = tuple[float, "Tensor", "Tensor", "Mapping[str, Tensor] | None"]


def _standard(model: Model, composition: Composition, corpus: View, alphas: Sequence[float]) -> Iterator[Step]:
    for alpha in alphas:
        parameters = composition.parameters(alpha)
        for at in corpus.batches(BATCH):
            inputs = corpus.take(at)
            yield alpha, inputs, model.token_states(parameters, inputs), parameters


def _linearised(model: Model, composition: Composition, corpus: View, alphas: Sequence[float]) -> Iterator[Step]:
    from taskvec.training.linearise import jvp_along

    direction = composition.direction()
    for at in corpus.batches(BATCH):
        inputs = corpus.take(at)

        def states_of(parameters: Mapping[str, Tensor], inputs: Tensor = inputs) -> Tensor:
            return model.token_states(parameters, inputs)

        if direction is not None:
            states, derivative = map(exact, jvp_along(states_of, model, direction))
        for alpha in alphas:
            if direction is None:  # weights that are not affine in alpha
                moved = {n: p - model.parameters[n] for n, p in composition.parameters(alpha).items()}
                yield alpha, inputs, sum(jvp_along(states_of, model, moved)), None
            else:
                yield alpha, inputs, states + alpha * derivative, None
