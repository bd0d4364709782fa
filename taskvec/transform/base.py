"""What a transform is: a map from one task vector to another."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from taskvec.config import Component

if TYPE_CHECKING:
    from taskvec.models.base import Model
    from taskvec.vectors import TaskVector


class Transform(Component):
    """Changes each task vector by itself, in the order in which a run lists its transforms."""

    @abstractmethod
    def transform(self, vector: TaskVector, model: Model) -> TaskVector:
        """Return the changed vector, given the backbone it belongs to."""
