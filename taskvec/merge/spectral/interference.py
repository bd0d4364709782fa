"""WUDI's quadratic problem: sum_t ||(X - tau_t) tau_t^T||_F^2 / ||tau_t||_F^2 over X [o, i]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Quadratic(NamedTuple):
    """The problem's gradient is 2 (X curvature - target), with curvature [i, i], target [o, i] and start sum_t tau_t."""

    curvature: Tensor
    target: Tensor
    start: Tensor


def quadratic(deltas: Sequence[Tensor]) -> Quadratic:
    """Return A = sum tau^T tau / ||tau||^2, B = sum tau tau^T tau / ||tau||^2 and sum tau; no tau may be zero."""
    rows, columns = deltas[0].shape
    curvature = deltas[0].new_zeros(columns, columns)
    target = torch.zeros_like(deltas[0])
    for delta in deltas:
        energy = delta.square().sum()
        own = (delta.T @ delta) / energy
        curvature += own
        # tau (tau^T tau) or (tau tau^T) tau, whichever product is smaller
        target += delta @ own if columns <= rows else ((delta @ delta.T) / energy) @ delta
    return Quadratic(curvature, target, sum(deltas[1:], deltas[0].clone()))


def solved(deltas: Sequence[Tensor], ridge: float) -> Tensor:
    """Return the minimiser that is nearest to the sum of the deltas, to the order of the ridge, in float64."""
    problem = quadratic([delta.double() for delta in deltas])
    damping = ridge * problem.curvature.diagonal().mean()
    damped = problem.curvature + damping * torch.eye(len(problem.curvature), dtype=torch.float64).to(damping.device)
    target = problem.target + damping * problem.start
    factor = torch.linalg.cholesky(damped)
    return torch.cholesky_solve(target.T, factor).T


def descended(deltas: Sequence[Tensor], steps: int, lr: float) -> Tensor:
    """Return the sum of the deltas after some steps of Adam with its usual constants (0.9, 0.999, 1e-8).

    A sum that is the minimum up to rounding is returned as it is: Adam would scale the rounding up to whole steps.
    """
    problem = quadratic(deltas)
    x = problem.start.clone()
    slope = x @ problem.curvature - problem.target
    if slope.norm() <= 10 * torch.finfo(x.dtype).eps * problem.target.norm():
        return x
    optimiser = torch.optim.Adam([x], lr=lr)
    for _ in range(steps):
        x.grad = 2 * (x @ problem.curvature - problem.target)
        optimiser.step()
    return x
