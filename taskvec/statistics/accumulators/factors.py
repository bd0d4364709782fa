"""Running sums of what the taps show: Kronecker factors, eigenvalue corrections, and blocks of vectors."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from taskvec.statistics.accumulators.moments import InputMoment
from taskvec.statistics.blocks import Block, Diagonal, Eigen, Full, Kronecker
from taskvec.statistics.passes.taps import OnGradient, OnTokens, Place
from taskvec.statistics.passes.tokens import Tokens, add_squares


class Factors:
    """The Kronecker factors of linear layers; ``sources`` names the layer whose A each of them uses."""

    def __init__(self, sources: Mapping[str, str], sharing: str):
        self.sources, self.reduce = sources, sharing == "reduce"
        self.inputs: dict[str, InputMoment] = {}
        self.gradients: dict[str, Tensor] = {}

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
            self.gradients[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.gradients[name].addmm_(rows.T, rows)

    def blocks(self, biased: Collection[str], examples: int, probes: int, faithful: bool) -> dict[str, Kronecker]:
        """Return B (x) A by layer, of those that were reached: A a mean over tokens, B over examples and ``probes``.

        ``faithful``: the probes summed, and B divided by the number of tokens per example too.
        """
        means: dict[tuple[str, bool], Tensor] = {}
        blocks = {}
        for name, source in self.sources.items():
            key = (source, name in biased)
            if key not in means:
                means[key] = self.inputs[source].mean(constant=key[1])
            # sum_n R_n / n tokens per example, n cancels
            scale = 1 / self.inputs[source].count if faithful else 1 / (examples * probes)
            if name in self.gradients:
                gradients = self.gradients[name].mul_(scale)
                blocks[name] = Kronecker(means[key], gradients)
        return blocks


class Basis(NamedTuple):
    """Eigenvectors in columns: ``right`` U_A [in, in] (one more with a bias), ``left`` U_B [out, out]."""

    right: Tensor
    left: Tensor


def eigenbases(factors: Mapping[str, Kronecker]) -> dict[str, Basis]:
    """Return the eigenvectors of both factors of each block; those of a shared A are computed once and shared."""
    known: dict[int, Tensor] = {}

    def eigenvectors(factor: Tensor) -> Tensor:
        if id(factor) not in known:
            vectors = torch.linalg.eigh(factor).eigenvectors
            known[id(factor)] = vectors.contiguous()  # as they will be once stored
        return known[id(factor)]

    return {name: Basis(eigenvectors(block.inputs), eigenvectors(block.gradients)) for name, block in factors.items()}


class Spectra:
    """sum_n (U_B^T G_n U_A)^2 of linear layers, U the bases (None: the identity), G_n = sum_r g a^T.

    Gradients and inputs are projected before they are multiplied, so that G_n itself is never formed.
    """

    def __init__(self, layers: Collection[str], biased: Collection[str], bases: Mapping[str, Basis] | None):
        self.layers = layers if bases is None else [name for name in layers if name in bases]
        self.biased, self.bases = biased, bases
        self.squares: dict[str, Tensor] = {}

    def visitors(self) -> dict[Place, OnTokens]:
        """Return a tap for each layer."""
        return {Place(name): partial(self._visit, name) for name in self.layers}

    def _visit(self, name: str, tokens: Tokens) -> OnGradient:
        return partial(self._gradient, name, tokens)

    def _gradient(self, name: str, inputs: Tokens, gradients: Tokens) -> None:
        a, g = inputs.values, gradients.zeroed()
        if name in self.biased:
            ones = a.new_ones(1).expand(*a.shape[:-1], 1)
            a = torch.cat([a, ones], dim=-1)
        a = Tokens(a, inputs.real).zeroed()
        if self.bases is not None:
            a, g = a @ self.bases[name].right, g @ self.bases[name].left
        if name not in self.squares:
            self.squares[name] = a.new_zeros(g.shape[-1], a.shape[-1])
        add_squares(self.squares[name], g, a)

    def blocks(self, scale: float) -> dict[str, Block]:
        """Return EKFAC's blocks, or diagonal ones without bases, from the sums times ``scale``."""
        values = {name: squares.mul_(scale) for name, squares in self.squares.items()}
        if self.bases is None:
            return {name: Diagonal(value) for name, value in values.items()}
        return {name: Eigen(*self.bases[name], value) for name, value in values.items()}


class Vectors:
    """sum_n g_n g_n^T of parameter vectors, or its diagonal, g_n the gradient on example n.

    For modules with the output y = w * z + b the gradients are sum_r g * z and
    sum_r g, z found as the difference of the module's outputs at w = 1 and w = 0, whatever its formula.
    """

    def __init__(self, modules: Mapping[str, nn.Module], editable: Collection[str], diagonal: bool):
        # copies, because the taps on the modules themselves must not see the evaluations at w = 1 and w = 0
        self.modules = {name: copy.deepcopy(module) for name, module in modules.items()}
        self.editable, self.diagonal = editable, diagonal
        self.sums: dict[str, Tensor] = {}

    def visitors(self) -> dict[Place, OnTokens]:
        """Return a tap for each module."""
        return {Place(name): partial(self._visit, name) for name in self.modules}

    def _visit(self, name: str, tokens: Tokens) -> OnGradient:
        return partial(self._gradient, name, self._normalised(name, tokens))

    def _normalised(self, name: str, tokens: Tokens) -> tuple[str, Tensor] | None:
        """Return the name of an editable gain w and z; None if the module has none."""
        module = self.modules[name]
        local = dict(module.named_parameters())
        gain = next((key for key in local if key != "bias"), None)
        if gain is None or f"{name}.{gain}" not in self.editable:
            return None
        zero = {key: tokens.values.new_zeros(value.shape) for key, value in local.items()}
        one = zero | {gain: torch.ones_like(zero[gain])}
        with torch.no_grad():
            normalised = functional_call(module, one, tokens.values) - functional_call(module, zero, tokens.values)
        return f"{name}.{gain}", normalised

    def _gradient(self, name: str, normalised: tuple[str, Tensor] | None, gradient: Tokens) -> None:
        if normalised is not None:
            gain, values = normalised
            products = Tokens(gradient.values * values, gradient.real)
            self.add(gain, products.sum())
        if f"{name}.bias" in self.editable:
            self.add(f"{name}.bias", gradient.sum())

    def add(self, name: str, gradients: Tensor) -> None:
        """Add the gradients [N, d] of N examples to a parameter's sum."""
        if name not in self.sums:
            width = gradients.shape[1]
            self.sums[name] = gradients.new_zeros(width if self.diagonal else (width, width))
        if self.diagonal:
            self.sums[name] += gradients.square().sum(0)
        else:
            self.sums[name].addmm_(gradients.T, gradients)

    def blocks(self, scale: float) -> dict[str, Block]:
        """Return the blocks from the sums times ``scale``."""
        kind = Diagonal if self.diagonal else Full
        return {name: kind(total.mul_(scale)) for name, total in self.sums.items()}
