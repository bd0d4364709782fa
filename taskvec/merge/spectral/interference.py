"""WUDI's quadratic problem: sum_t ||(X - tau_t) tau_t^T||_F^2 / ||tau_t||_F^2 over X [o, i]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Quadratic(NamedTuple):
    """The gradient at X is 2 (X curvature - target), curvature [i, i], target [o, i]; ``start`` is sum_t tau_t."""

    curvature: Tensor
    target: Tensor
    start: Tensor

    def slope(self, x: Tensor) -> Tensor:
        """Return half the gradient at X."""
        return x @ self.curvature - self.target


def quadratic(deltas: Sequence[Tensor]) -> Quadratic:
    """Return A = sum tau^T tau / ||tau||^2, B = sum tau tau^T tau / ||tau||^2 and sum tau; no tau may be zero."""
    rows, columns = deltas[0].shape
    curvature = deltas[0].new_zeros(columns, columns)
    target = torch.zeros_like(deltas[0])
    start = torch.zeros_like(deltas[0])
    for delta in deltas:
        scaled = delta / delta.square().sum()
        curvature += scaled.T @ delta
        # (tau tau^T) tau or tau (tau^T tau), whichever inner product is smaller
        target += (scaled @ delta.T) @ delta if rows < columns else scaled @ (delta.T @ delta)
        start += delta
    return Quadratic(curvature, target, start)


def solved(deltas: Sequence[Tensor], ridge: float) -> Tensor:
    """Return the minimiser that is nearest to the sum of the deltas, to the order of the ridge, in float64."""
    wide = [delta.double() for delta in deltas]
    problem = quadratic(wide)
    damping = ridge * problem.curvature.diagonal().mean()
    damped = problem.curvature.clone()
    damped.diagonal().add_(damping)
    target = problem.target + damping * problem.start
    factor = torch.linalg.cholesky(damped)
    return torch.cholesky_solve(target.T, factor).T


def descended(deltas: Sequence[Tensor], steps: int, lr: float) -> Tensor:
    """Return the sum of the deltas after some steps of Adam with its usual constants (0.9, 0.999, 1e-8).

    A sum that is the minimum up to rounding is returned as it is: Adam would scale the rounding up to whole steps.
    """
    problem = quadratic(deltas)
    rounding = 10 * torch.finfo(problem.start.dtype).eps
    if problem.slope(problem.start).norm() <= rounding * problem.target.norm():
        return problem.start
    x = problem.start.clone()
    optimiser = torch.optim.Adam([x], lr=lr)
    for _ in range(steps):
        x.grad = 2 * problem.slope(x)
        optimiser.step()
    return x
