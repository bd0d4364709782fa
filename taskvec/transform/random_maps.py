"""Random maps: what a vector of the right shapes and norms, and no alignment, does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.needs import Given
from taskvec.registry import register
from taskvec.transform.alignment.component import Carrying, Found, spaces_of

if TYPE_CHECKING:
    from taskvec.transform.alignment.transport import Axes


@register("transform", "random_maps", paper="a control; spec theseus 1.1")
class RandomMaps(Carrying):
    """tau_B = T_out^T tau_A T_in with semi-orthogonal maps drawn uniformly, one for each space."""

    kind: Literal["random_maps"] = "random_maps"

    draws: ClassVar[bool] = True

    def found(self, given: Given, axes: Mapping[str, Axes]) -> Found:
        """Return a map for each space, drawn in the order of the spaces."""
        import torch

        from taskvec.transform.alignment.transport import random_map

        generator = torch.Generator().manual_seed(given.seed)
        lengths = {}
        for name, spaces in axes.items():
            if name not in given.source.parameters:
                continue
            shape, wanted = given.source.parameters[name].shape, given.model.parameters[name].shape
            lengths |= dict(zip(spaces, zip(shape, wanted, strict=True), strict=True))
        maps = {}
        for space in spaces_of(axes):
            if space in lengths:
                maps[space] = random_map(*lengths[space], generator)
        return Found(maps, dict(axes), {})
