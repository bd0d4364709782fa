"""What a transform is: a map from task vectors to task vectors, fitted once and applied to each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from taskvec.config import Seeded
from taskvec.needs import Given, Needs, Scope, Vector

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import TaskVector


Shape: TypeAlias = tuple[int, ...]


def shapes_of(parameters: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return tensors' shapes by name."""
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}


@dataclass(frozen=True)
class Fit:
    """What a transform found: tensors by name, JSON values, and a report that the result shows under its name."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


class Transform(Seeded):
    """Changes task vectors, in the order in which a run lists its transforms, before the merge or (``on``) after it.

    One that ``moves`` carries vectors from the source backbone to the target. A ``joint`` one is fitted once over all
    vectors that a cell may use: its scope's tasks are theirs; for the others they are the one vector's. A fit is
    identified by component and needs, so equal needs share it. ``grid`` overrides the merge's coefficients. One that
    ``prepares`` changes the source model before pair statistics are taken on it.
    """

    on: Literal["vectors", "merged"] = "vectors"

    moves: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    prepares: ClassVar[bool] = False
    grid: ClassVar[tuple[float, ...] | None] = None

    def check(self, source: Any, target: Any) -> None:
        """Check the two backbones of a transform that ``moves``, before anything is loaded.

        Raises:
            UserError: if vectors of the one cannot be carried to the other.
        """

    def needs(self, scope: Scope) -> Needs:
        """Return what :meth:`fit` and :meth:`apply` want to be given."""
        return ()

    def preparing(self, scope: Scope) -> Needs:
        """Return what :meth:`prepare` wants to be given; the scope's tasks are all that a component may see."""
        return ()

    def preparation(self) -> dict[str, Any]:
        """Return what of the settings :meth:`prepare` depends on."""
        return self.identity()

    def prepare(self, source: Any, given: Given) -> Any:
        """Return the source model as pair statistics see it, for moving transforms that change it first (depth).

        ``given.model`` is the target.
        """
        return source

    def fit(self, given: Given) -> Fit:
        """Return what does not depend on the vector's deltas; stored."""
        return Fit()

    @abstractmethod
    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the changed vector; ``of`` is the expression of the given one."""
