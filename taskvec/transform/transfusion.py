"""TransFusion: vectors carried by the permutation of units that brings the two base models closest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from taskvec.needs import Given, Vector
from taskvec.registry import register
from taskvec.transform.alike import BetweenAlike
from taskvec.transform.base import Fit

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector


@register(
    "transform",
    "transfusion",
    paper="Rinaldi et al., ICML 2025, arXiv 2505.22697; spec theseus 1.5",
)
class Transfusion(BetweenAlike):
    """tau_B = P tau_A with the permutations P of hidden units, heads, channels within heads, and the residual stream.

    They are found from the weights alone, heads first and channels within them, between backbones of equal shapes.
    """

    kind: Literal["transfusion"] = "transfusion"

    def fit(self, given: Given) -> Fit:
        """Return the permutation of each space, and the share of its units that change places."""
        import torch

        from taskvec.transform.alignment.permutations import match

        source, target = self.bases(given)
        found = match(source, target, given.model.spaces, given.model.heads)
        moved = {}
        for space, order in found.items():
            stays = order == torch.arange(len(order))
            moved[space] = 1 - float(stays.double().mean())
        # A file holds no tensor twice
        orders = {space: order.clone() for space, order in found.items()}
        return Fit(orders, report={"moved": moved})

    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the vector with every axis permuted."""
        from taskvec.transform.alignment.permutations import permute
        from taskvec.vectors import TaskVector

        axes = given.model.spaces
        return TaskVector(
            {name: permute(delta, axes[name], fit.tensors) for name, delta in vector.items()}
        )
