"""One pass over examples that estimates the curvature of a model's features at theta_0.

For every linear layer, with inputs a and output gradients g of backward vectors s (spec 3.2, 3.5):

    expand   A = sum_n sum_r a a^T / sum_n R_n          B = (1/n) sum_n sum_r g g^T
    reduce   A = (1/n) sum_n mean_r(a) mean_r(a)^T      B = (1/n) sum_n sum_r(g) sum_r(g)^T
    EKFAC    D = (1/n) sum_n (U_B^T G_n U_A)^2          diagonal: D = (1/n) sum_n G_n^2,  G_n = sum_r g a^T
    vectors  F = (1/n) sum_n g_n g_n^T                  g_n = sum_r g * normalised input; at the class token g

where r runs over the real tokens of example n, R_n of them; a has a constant 1 appended where the layer's bias is
editable; and B, D, F are averaged over M Gaussian s, or summed over the feature's channels (exact). With R tokens in
every example A is the familiar 1/(nR). The authors' convention, 1/R in both factors and probes summed, is B times M/R.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taskvec.models.layers import LinearLayer
from taskvec.statistics.accumulators import Factors, Spectra, Vectors, eigenbases
from taskvec.statistics.blocks import Block
from taskvec.statistics.curvature import Curvature
from taskvec.statistics.settings import CurvatureSettings
from taskvec.statistics.taps import OnInput, Taps
from taskvec.statistics.tokens import probe
from taskvec.statistics.tracked import CLASS_TOKEN, track

if TYPE_CHECKING:
    from taskvec.models.base import Model


def curvature(
    model: Model,
    batches: Sequence[Tensor],
    layers: Sequence[LinearLayer],
    settings: CurvatureSettings,
    *,
    head: Tensor | None = None,
    observe: Callable[[int], None] | None = None,
) -> Curvature:
    """Return the curvature of ``model.features(., head)`` at theta_0 over the examples in ``batches``.

    ``batches`` are decoded examples in pieces whose activations fit into memory, such as ``inputs.split(32)``. They are
    gone through once, by EKFAC twice (bases, then eigenvalues). Blocks come on the model's device in
    ``settings.precision``; the result depends on how the examples are cut by rounding only. ``observe`` is told the
    number of examples done after each batch.

    Parameters that modules share, that are used several times or not once per example, or of another kind (position,
    patch and token embeddings) have no block; ``untracked`` names them with the reason.

    Raises:
        TypeError: for a named layer that is no ``nn.Linear``.
        ValueError: for no examples, no layer that can be tracked, or activations of another layout.
    """
    if not batches:
        raise ValueError("no examples to take the curvature on")
    tracked = track(model, layers, batches[0][:2], head)
    run = _Pass(model, settings, head, observe)
    vectors = Vectors(tracked.affine, model.parameters, diagonal=settings.structure == "diag_ggn")
    token = vectors if tracked.class_token else None
    probes = 1 if settings.faithful else max(1, settings.probes)
    if settings.structure == "diag_ggn":
        spectra = Spectra(tracked.layers, tracked.biased, None)
        examples = run(batches, [spectra.visitors(), vectors.visitors()], token)
        blocks: Mapping[str, Block] = spectra.blocks(1 / (examples * probes))
    else:
        factors = Factors(tracked.layers, settings.sharing)
        examples = run(batches, [factors.visitors(), vectors.visitors()], token)
        blocks = factors.blocks(tracked.biased, examples, max(1, settings.probes), settings.faithful)
    vector_scale = 1 / (examples * probes)
    if settings.structure == "ekfac":
        # fresh backward vectors, or those that chose the bases would overstate the leading eigenvalues
        spectra = Spectra(tracked.layers, tracked.biased, eigenbases(blocks))
        run(batches, [spectra.visitors()], None, stream=1)
        blocks = spectra.blocks(1 / (examples * probes))
        if settings.faithful:
            vector_scale = 1.0
    found = vectors.blocks(vector_scale)
    return Curvature(
        layers={name: blocks[name] for name in tracked.layers if name in blocks},
        vectors={name: found[name] for name in model.parameters if name in found},
        biased=tracked.biased & blocks.keys(),
        roles={layer.name: layer.role for layer in layers if layer.name in blocks},
        examples=examples,
        untracked=tracked.untracked(model.parameters, blocks, found),
        settings=settings.record(),
    )


class _Pass:
    """Forward and backward passes over batches, shown to visitors."""

    def __init__(
        self,
        model: Model,
        settings: CurvatureSettings,
        head: Tensor | None,
        observe: Callable[[int], None] | None,
    ):
        self.model, self.settings, self.head, self.observe = model, settings, head, observe
        self.dtype = getattr(torch, settings.precision)

    def __call__(
        self,
        batches: Sequence[Tensor],
        visitors: Iterable[Mapping[str, OnInput]],
        token: Vectors | None,
        stream: int = 0,
    ) -> int:
        """Run over all batches, with the class token's gradients added to ``token``; return the number of examples."""
        taps = [Taps(self.model.module, group, self.dtype) for group in visitors]
        done = 0
        with ExitStack() as stack:
            for tap in taps:
                stack.enter_context(tap)
            for inputs in batches:
                for tap in taps:
                    tap.begin(len(inputs), self.model.tokens(inputs))
                self._batch(inputs, token, done, stream)
                done += len(inputs)
                if self.observe:
                    self.observe(done)
        return done

    @torch.enable_grad()
    def _batch(self, inputs: Tensor, token: Vectors | None, first: int, stream: int) -> None:
        parameters = {}
        if token is not None:  # a copy for each example, so that the gradients stay apart
            copies = self.model.parameters[CLASS_TOKEN].repeat(len(inputs), 1, 1).requires_grad_()
            copies.register_hook(lambda gradient: token.add(CLASS_TOKEN, gradient.squeeze(1).to(self.dtype)))
            parameters[CLASS_TOKEN] = copies
        features = self.model.features(parameters, inputs, self.head)
        draws = self._draws(features, first, stream)
        for number, draw in enumerate(draws, start=1):
            features.backward(draw(), retain_graph=number < len(draws))

    def _draws(self, features: Tensor, first: int, stream: int) -> list[Callable[[], Tensor]]:
        """Return functions that make the backward vectors [N, d], one each."""
        count, width = features.shape

        def channel(index: int) -> Tensor:
            draw = torch.zeros_like(features)
            draw[:, index] = 1
            return draw

        def gaussian(number: int) -> Tensor:
            return probe(self.settings.seed, 2 * number + stream, first, count, width).to(features)

        if self.settings.probes == 0:
            return [partial(channel, index) for index in range(width)]
        return [partial(gaussian, number) for number in range(self.settings.probes)]
