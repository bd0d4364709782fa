"""The passes that estimate the curvature of a model's features.

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

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from taskvec.statistics.accumulators.factors import Factors, Spectra, Vectors, eigenbases
from taskvec.statistics.accumulators.tracked import CLASS_TOKEN, track
from taskvec.statistics.approximation import Approximation
from taskvec.statistics.blocks import Block
from taskvec.statistics.curvature_value import Curvature
from taskvec.statistics.passes.accumulator import Accumulator, Forward, Root
from taskvec.statistics.passes.survey import Survey
from taskvec.statistics.passes.taps import Visitors
from taskvec.statistics.passes.tokens import probe


class _Backwards(Accumulator):
    """A pass of backward vectors at the features, drawn by (seed, probe, pass, example)."""

    stream = 0

    def __init__(self, survey: Survey, settings: Approximation):
        self.survey, self.settings = survey, settings
        self.precision = settings.precision

    def roots(self, forward: Forward) -> list[Root]:
        """Return a backward pass for each probe, or for each channel of the features."""
        features = forward.features
        if self.settings.probes == 0:
            channels = range(features.shape[1])
            return [Root(features, partial(_channel, features, number)) for number in channels]
        probes = range(self.settings.probes)
        return [Root(features, partial(self._gaussian, forward, number)) for number in probes]

    def _gaussian(self, forward: Forward, number: int) -> Tensor:
        rows = probe(
            self.settings.seed,
            2 * number + self.stream,
            forward.first,
            *forward.features.shape,
        )
        return rows.to(forward.features)

    def _scale(self, examples: int) -> float:
        """Return the factor that makes sums of gradients' products means over examples and probes."""
        probes = 1 if self.settings.faithful else max(1, self.settings.probes)
        return 1 / (examples * probes)


class CurvatureSums(_Backwards):
    """The first pass: Kronecker factors or the diagonal, and the blocks of vectors."""

    def __init__(self, survey: Survey, settings: Approximation):
        super().__init__(survey, settings)
        self.tracked = tracked = track(survey)
        diagonal = settings.structure == "diag_ggn"
        self.vectors = Vectors(tracked.affine, survey.model.parameters, diagonal)
        if diagonal:
            self.layers = Spectra(tracked.layers, tracked.biased, None)
        else:
            self.layers = Factors(tracked.sources, settings.sharing)

    def visitors(self, side: int) -> list[Visitors]:
        """Return taps on linear layers and on norms."""
        return [self.layers.visitors(), self.vectors.visitors()]

    def copies(self) -> Mapping[str, Callable[[Tensor], None]]:
        """Return what sees the class token's gradients."""
        if not self.tracked.class_token:
            return {}
        return {CLASS_TOKEN: partial(self.vectors.add, CLASS_TOKEN)}

    def finish(self, examples: int) -> Curvature | Eigenvalues:
        """Return the curvature, or EKFAC's second pass."""
        settings = self.settings
        scale = self._scale(examples)
        if settings.structure == "diag_ggn":
            return self.curvature(self.layers.blocks(scale), scale, examples)
        blocks = self.layers.blocks(
            self.tracked.biased,
            examples,
            max(1, settings.probes),
            settings.faithful,
        )
        if settings.structure == "ekfac":
            return Eigenvalues(self, blocks)
        return self.curvature(blocks, scale, examples)

    def curvature(
        self,
        blocks: Mapping[str, Block],
        vector_scale: float,
        examples: int,
    ) -> Curvature:
        """Return the curvature with these blocks of layers."""
        tracked, model = self.tracked, self.survey.model
        vectors = self.vectors.blocks(vector_scale)
        return Curvature(
            layers={name: blocks[name] for name in tracked.layers if name in blocks},
            vectors={name: vectors[name] for name in model.parameters if name in vectors},
            biased=tracked.biased & blocks.keys(),
            roles={layer.name: layer.role for layer in model.layers if layer.name in blocks},
            examples=examples,
            untracked=tracked.untracked(model.parameters, blocks, vectors),
            settings=self.settings.record(),
        )


class Eigenvalues(_Backwards):
    """EKFAC's second pass, in the bases that the first one found.

    Its backward vectors are fresh: those that chose the bases would overstate the leading eigenvalues.
    """

    stream = 1

    def __init__(self, first: CurvatureSums, factors: Mapping[str, Block]):
        super().__init__(first.survey, first.settings)
        self.first = first
        tracked = first.tracked
        self.layers = Spectra(tracked.layers, tracked.biased, eigenbases(factors))

    def visitors(self, side: int) -> list[Visitors]:
        """Return taps on linear layers."""
        return [self.layers.visitors()]

    def finish(self, examples: int) -> Curvature:
        """Return the curvature."""
        scale = self._scale(examples)
        blocks = self.layers.blocks(scale)
        vector_scale = 1.0 if self.settings.faithful else scale
        return self.first.curvature(blocks, vector_scale, examples)


def _channel(features: Tensor, index: int) -> Tensor:
    draw = torch.zeros_like(features)
    draw[:, index] = 1
    return draw
