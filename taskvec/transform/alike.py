"""What transforms share that need a source of the target's own shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.errors import UserError
from taskvec.needs import Given
from taskvec.transform.base import Shape, Transform, shapes_of

if TYPE_CHECKING:
    from torch import Tensor


class BetweenAlike(Transform):
    """Carries vectors between two backbones of one architecture, such as two trainings of it."""

    moves: ClassVar[bool] = True

    def check(self, source: Any, target: Any) -> None:
        """Compare the shapes of two backbones' parameters where their headers tell them.

        Raises:
            UserError: naming a parameter that the target lacks or has in another shape.
        """
        own, wanted = source.parameter_shapes(), target.parameter_shapes()
        if own is not None and wanted is not None:
            self.check_shapes(own, wanted)

    def check_shapes(self, source: Mapping[str, Shape], target: Mapping[str, Shape]) -> None:
        """Compare shapes by name.

        Raises:
            UserError: naming a parameter that the target lacks or has in another shape.
        """
        for name, shape in source.items():
            other = target.get(name)
            if other != shape:
                there = "no such parameter" if other is None else f"{list(other)}"
                raise UserError(
                    f"transform={self.kind} needs backbones of equal shapes: {name} is {list(shape)} in the source and "
                    f"the target has {there}; use transform=theseus"
                )

    def bases(self, given: Given) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return the weights of source and target.

        Raises:
            UserError: if their shapes differ, which no header told.
        """
        source, target = given.source.parameters, given.model.parameters
        self.check_shapes(shapes_of(source), shapes_of(target))
        return source, target
