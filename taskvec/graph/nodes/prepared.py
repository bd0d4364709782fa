"""A source model that a moving transform changes before vectors are carried over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from taskvec.graph.artefact import Json, Node, Work, aside
from taskvec.graph.given import Given
from taskvec.graph.nodes.base import Base
from taskvec.models.base import Backbone
from taskvec.needs import Need, Scope
from taskvec.transform.base import Transform


@dataclass(frozen=True, eq=False)
class Prepared(Base):
    """A source model as a moving transform changes it before vectors are carried over (depth)."""

    kind: ClassVar[str] = "prepared"

    backbone: Backbone
    of: Base
    target: Base
    transform: Transform
    needed: Mapping[Need, Node]
    scope: Scope = aside()

    def spec(self) -> Json:
        """Return the settings of the preparation; the backbone is that of the input."""
        return self.transform.preparation()

    def load(self, work: Work) -> Any:
        """Return the changed model."""
        given = Given(
            work, self.scope, self.needed, self.target, self.of, f"transform={self.transform.kind}"
        )
        return self.transform.prepare(self.of.value(work), given)
