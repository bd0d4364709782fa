"""Running sums of what the taps show: Kronecker factors, eigenvalue corrections, and blocks of vectors."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from taskvec.errors import UserError
from taskvec.statistics.accumulators.moments import InputMoment
from taskvec.statistics.blocks import Block, Diagonal, Eigen, Full, Kronecker
from taskvec.statistics.passes.taps import OnGradient, OnTokens, Place
from taskvec.statistics.passes.tokens import Tokens, add_squares


class Factors:
    """The Kronecker factors of linear layers; ``sources`` names the layer whose A each of them uses."""

    def __init__(self, sources: Mapping[str, str], sharing: str):
        self.sources = sources
        self.reduce = sharing == "reduce"
        self.inputs = {}
        self.gradients = {}

    def visitors(self) -> dict[Place, OnTokens]:
        """Return a tap for each layer."""
        return {Place(name): partial(self._visit, name) for name in self.sources}

    def _visit(self, name: str, tokens: Tokens) -> OnGradient:
        if self.sources[name] == name:
            rows = tokens.mean() if self.reduce else tokens.rows()
            if name not in self.inputs:
                self.inputs[name] = InputMoment(rows)
            self.inputs[name].add(rows)
        return partial(self._gradient, name)

    def _gradient(self, name: str, tokens: Tokens) -> None:
        rows = tokens.sum() if self.reduce else tokens.rows()
        if name not in self.gradients:
            width = rows.shape[1]
            self.gradients[name] = rows.new_zeros(width, width)
        self.gradients[name].addmm_(rows.T, rows)

    def blocks(
        self,
        biased: Collection[str],
        examples: int,
        probes: int,
        faithful: bool,
    ) -> dict[str, Kronecker]:
        """Return B (x) A by layer, of those that were reached: A a mean over tokens, B over examples and ``probes``.

        ``faithful``: the probes summed, and B divided by the number of tokens per example too.
        """
        means = {}
        blocks = {}
        for name, source in self.sources.items():
            if name not in self.gradients:
                continue
            moment = self.inputs[source]
            key = (source, name in biased)
            if key not in means:
                means[key] = moment.mean(constant=name in biased)
            scale = 1 / (examples * probes)
            if faithful:
                scale = 1 / moment.count  # sum_n R_n / n tokens per example, n cancels
            gradients = self.gradients[name]
            blocks[name] = Kronecker(means[key], gradients.mul_(scale))
        return blocks


class Basis(NamedTuple):
    """Eigenvectors in columns: ``right`` U_A [in, in] (one more with a bias), ``left`` U_B [out, out]."""

    right: Tensor
    left: Tensor


def eigenbases(factors: Mapping[str, Kronecker]) -> dict[str, Basis]:
    """Return the eigenvectors of both factors of each block; those of a shared A are computed once and shared.

    Raises:
        UserError: naming a layer whose factors are not finite.
    """
    known = {}

    def eigenvectors(factor: Tensor) -> Tensor:
        key = id(factor)
        if key not in known:
            vectors = torch.linalg.eigh(factor).eigenvectors
            known[key] = vectors.contiguous()  # as they will be once stored
        return known[key]

    bases = {}
    for name, block in factors.items():
        for factor in (block.inputs, block.gradients):
            if not factor.isfinite().all():
                cause = "the weights or the examples make the model overflow"
                raise UserError(
                    f"statistic curvature: the factors of {name} are not finite; {cause}"
                )
        right = eigenvectors(block.inputs)
        left = eigenvectors(block.gradients)
        bases[name] = Basis(right, left)
    return bases


class Spectra:
    """sum_n (U_B^T G_n U_A)^2 of linear layers, U the bases (None: the identity), G_n = sum_r g a^T.

    Gradients and inputs are projected before they are multiplied, so that G_n itself is never formed.
    """

    def __init__(
        self,
        layers: Collection[str],
        biased: Collection[str],
        bases: Mapping[str, Basis] | None,
    ):
        self.layers = layers
        if bases is not None:
            self.layers = [name for name in layers if name in bases]
        self.biased = biased
        self.bases = bases
        self.squares = {}

    def visitors(self) -> dict[Place, OnTokens]:
        """Return a tap for each layer."""
        return {Place(name): partial(self._visit, name) for name in self.layers}

    def _visit(self, name: str, tokens: Tokens) -> OnGradient:
        return partial(self._gradient, name, tokens)

    def _gradient(self, name: str, inputs: Tokens, gradients: Tokens) -> None:
        a = inputs.values
        g = gradients.zeroed()
        if name in self.biased:
            ones = a.new_ones(1).expand(*a.shape[:-1], 1)
            a = torch.cat([a, ones], dim=-1)
        a = Tokens(a, inputs.real).zeroed()
        if self.bases is not None:
            a = a @ self.bases[name].right
            g = g @ self.bases[name].left
        if name not in self.squares:
            self.squares[name] = a.new_zeros(g.shape[-1], a.shape[-1])
        add_squares(self.squares[name], g, a)

    def blocks(self, scale: float) -> dict[str, Block]:
        """Return EKFAC's blocks, or diagonal ones without bases, from the sums times ``scale``."""
        blocks = {}
        for name, squares in self.squares.items():
            values = squares.mul_(scale)
            if self.bases is None:
                blocks[name] = Diagonal(values)
            else:
                blocks[name] = Eigen(*self.bases[name], values)
        return blocks


class Vectors:
    """sum_n g_n g_n^T of parameter vectors, or its diagonal, g_n the gradient on example n.

    For modules with the output y = w * z + b the gradients are sum_r g * z and
    sum_r g, z found as the difference of the module's outputs at w = 1 and w = 0, whatever its formula.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        editable: Collection[str],
        diagonal: bool,
    ):
        # copies, because the taps on the modules themselves must not see the evaluations at w = 1 and w = 0
        self.modules = {name: copy.deepcopy(module) for name, module in modules.items()}
        self.editable = editable
        self.diagonal = diagonal
        self.sums = {}

    def visitors(self) -> dict[Place, OnTokens]:
        """Return a tap for each module."""
        return {Place(name): partial(self._visit, name) for name in self.modules}

    def _visit(self, name: str, tokens: Tokens) -> OnGradient:
        gain = self._gain(name)
        if gain is None:
            return partial(self._gradient, name, None, None)
        return partial(self._gradient, name, gain, self._normalised(name, gain, tokens))

    def _gain(self, name: str) -> str | None:
        """Return the name within its module of an editable gain w, None if there is none."""
        for gain, _ in self.modules[name].named_parameters():
            if gain != "bias" and f"{name}.{gain}" in self.editable:
                return gain
        return None

    @torch.no_grad()
    def _normalised(self, name: str, gain: str, tokens: Tokens) -> Tensor:
        """Return z [N, R, d]."""
        module = self.modules[name]
        values = tokens.values
        zero = {key: values.new_zeros(value.shape) for key, value in module.named_parameters()}
        one = zero | {gain: torch.ones_like(zero[gain])}
        return functional_call(module, one, values) - functional_call(module, zero, values)

    def _gradient(
        self,
        name: str,
        gain: str | None,
        normalised: Tensor | None,
        gradient: Tokens,
    ) -> None:
        if normalised is not None:
            products = Tokens(gradient.values * normalised, gradient.real)
            self.add(f"{name}.{gain}", products.sum())
        if f"{name}.bias" in self.editable:
            self.add(f"{name}.bias", gradient.sum())

    def add(self, name: str, gradients: Tensor) -> None:
        """Add the gradients [N, d] of N examples to a parameter's sum."""
        width = gradients.shape[1]
        if name not in self.sums:
            shape = (width,) if self.diagonal else (width, width)
            self.sums[name] = gradients.new_zeros(shape)
        total = self.sums[name]
        if self.diagonal:
            total += gradients.square().sum(0)
        else:
            total.addmm_(gradients.T, gradients)

    def blocks(self, scale: float) -> dict[str, Block]:
        """Return the blocks from the sums times ``scale``."""
        kind = Diagonal if self.diagonal else Full
        blocks = {}
        for name, total in self.sums.items():
            blocks[name] = kind(total.mul_(scale))
        return blocks
