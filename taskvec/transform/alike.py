"""What transforms share that need a source of the target's own shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from taskvec.errors import UserError
from taskvec.needs import Given
from taskvec.transform.base import Transform

if TYPE_CHECKING:
    from torch import Tensor


class BetweenAlike(Transform):
    """Carries vectors between two backbones of one architecture, such as two trainings of it."""

    moves: ClassVar[bool] = True

    def bases(self, given: Given) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return the weights of source and target.

        Raises:
            UserError: naming a parameter that the target lacks or has in another shape.
        """
        source, target = given.source.parameters, given.model.parameters
        for name, weight in source.items():
            other = target.get(name)
            if other is None or other.shape != weight.shape:
                there = "no such parameter" if other is None else f"{list(other.shape)}"
                raise UserError(
                    f"transform={self.kind} needs backbones of equal shapes: {name} is {list(weight.shape)} in the "
                    f"source and the target has {there}; use transform=theseus"
                )
        return source, target
