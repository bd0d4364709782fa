"""Sharpness-aware steps: the gradient is taken where the loss is highest nearby (Foret et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TINY = 1e-12  # keeps a zero gradient from dividing by zero


class SharpnessAware(torch.optim.Optimizer):
    """Steps of another optimiser by the gradient at theta + radius * g / ||g||, g the gradient at theta."""

    def __init__(self, inner: torch.optim.Optimizer, radius: float):
        super().__init__(inner.param_groups, {})
        self.inner, self.radius = inner, radius
        # One list of groups and one state, so that rates and checkpoints reach the inner optimiser.
        self.inner.param_groups, self.inner.state = self.param_groups, self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Ask at theta, ask at the ascended weights, return there and step; returns the loss at theta."""
        with torch.enable_grad():
            loss = closure()
        moved = []
        for leaf, slope in self._ascent():
            moved.append((leaf, leaf.clone()))
            leaf += slope
        with torch.enable_grad():
            closure()
        for leaf, start in moved:
            leaf.copy_(start)
        self.inner.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state, for the inner optimiser too."""
        super().load_state_dict(state_dict)
        self.inner.param_groups, self.inner.state = self.param_groups, self.state

    def _ascent(self) -> list[tuple[Tensor, Tensor]]:
        """Return each leaf that has a gradient with the step radius * g / ||g||."""
        leaves = []
        for group in self.param_groups:
            leaves += [leaf for leaf in group["params"] if leaf.grad is not None]
        norms = torch.stack([leaf.grad.norm() for leaf in leaves])
        scale = self.radius / (norms.norm() + TINY)
        return [(leaf, leaf.grad * scale) for leaf in leaves]
