"""Pre-trained weights: an identity that is loaded when needed, never copied into the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.graph.artefact import Json, Node, Work, aside
from taskvec.graph.given import Given
from taskvec.models.base import Backbone
from taskvec.needs import Need, Scope
from taskvec.transform.base import Transform

if TYPE_CHECKING:
    from taskvec.models.base import Model


@dataclass(frozen=True, eq=False)
class Base(Node):
    """A backbone with its pre-trained weights theta_0."""

    kind: ClassVar[str] = "base"

    backbone: Backbone

    @property
    def stored(self) -> bool:
        """Never."""
        return False

    @property
    def label(self) -> str:
        """The same for every backbone."""
        return f"{self.kind} weights"

    def spec(self) -> Json:
        """Return the backbone's identity, which hashes its weights once."""
        return self.backbone.identity()

    def value(self, work: Work) -> Model:
        """Return the loaded model."""
        return work.keep(self, lambda: self.load(work))

    def load(self, work: Work) -> Model:
        """Load the backbone onto the device, or into main memory with its blocks computed on the device."""
        model = self.backbone.load(work.device)
        model.backbone = self.backbone
        if work.offload:
            from taskvec.training.recompute import offload

            offload(model.module, work.blocks_device)
        return model

    def hash(self, work: Work) -> str:
        """Return the hash of the editable weights, which ties vectors to them."""
        from taskvec.vectors import weights_hash

        return work.keep_as(f"{self.fingerprint}/hash", lambda: weights_hash(self.value(work).parameters))


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
        given = Given(work, self.scope, self.needed, self.target, self.of, f"transform={self.transform.kind}")
        return self.transform.prepare(self.of.value(work), given)
