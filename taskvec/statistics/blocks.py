"""Blocks of a symmetric positive semi-definite curvature matrix, as linear operators on a parameter's change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Block(ABC):
    """One diagonal block H of the GGN; its fields are tensors."""

    @abstractmethod
    def matmul(self, delta: Tensor) -> Tensor:
        """Return H delta in the shape of delta: [out, in (+ 1)] for a layer, [d] for a vector."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """The shape of the parameter's change."""

    @abstractmethod
    def trace(self) -> Tensor:
        """Return tr H, a scalar."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Block:
        """Return the block with a function applied to each tensor."""
        return type(self)(**{name: function(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class Kronecker(Block):
    """H = B (x) A for row-major vec(dW): H dW = B dW A, with A ``inputs`` [in, in] and B ``gradients`` [out, out]."""

    inputs: Tensor
    gradients: Tensor

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return torch.Size((len(self.gradients), len(self.inputs)))

    def matmul(self, delta: Tensor) -> Tensor:
        """Return B dW A."""
        return self.gradients @ (delta @ self.inputs)

    def trace(self) -> Tensor:
        """Return tr(B) tr(A)."""
        return self.gradients.trace() * self.inputs.trace()


@dataclass(frozen=True, eq=False)
class Eigen(Block):
    """H dW = U_B (D * (U_B^T dW U_A)) U_A^T with bases ``right`` U_A, ``left`` U_B and ``values`` D [out, in].

    George et al., Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis, NeurIPS 2018.
    """

    right: Tensor
    left: Tensor
    values: Tensor

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.values.shape

    def matmul(self, delta: Tensor) -> Tensor:
        """Return U_B (D * (U_B^T dW U_A)) U_A^T."""
        return self.left @ (self.values * (self.left.T @ delta @ self.right)) @ self.right.T

    def trace(self) -> Tensor:
        """Return the sum of D: the trace of the exact block."""
        return self.values.sum()


@dataclass(frozen=True, eq=False)
class Diagonal(Block):
    """H d = D * d with ``values`` D of the shape of d."""

    values: Tensor

    @property
    def shape(self) -> torch.Size:
        """That of D."""
        return self.values.shape

    def matmul(self, delta: Tensor) -> Tensor:
        """Return D * d."""
        return self.values * delta

    def trace(self) -> Tensor:
        """Return the sum of D."""
        return self.values.sum()


@dataclass(frozen=True, eq=False)
class Full(Block):
    """H d = F d with ``matrix`` F [d, d]."""

    matrix: Tensor

    @property
    def shape(self) -> torch.Size:
        """[d]."""
        return self.matrix.shape[:1]

    def matmul(self, delta: Tensor) -> Tensor:
        """Return F d."""
        return self.matrix @ delta

    def trace(self) -> Tensor:
        """Return tr F."""
        return self.matrix.trace()


KINDS = {kind.__name__: kind for kind in (Kronecker, Eigen, Diagonal, Full)}
