"""Pre-trained weights: an identity that is loaded when needed, never copied into the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from taskvec.graph.artefact import Json, Node, Work
from taskvec.models.base import Backbone

if TYPE_CHECKING:
    from taskvec.models.base import Model


@dataclass(frozen=True, eq=False)
class Base(Node):
    """A backbone with its pre-trained weights theta_0."""

    kind: ClassVar[str] = "base"
    looks: ClassVar[bool] = True

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

    def compiled(self, work: Work) -> Model:
        """Return the loaded model with a compiled forward pass."""
        from taskvec.models.compiled import compiled

        return work.keep_as(f"{self.fingerprint}/compiled", lambda: compiled(self.value(work)))

    def hash(self, work: Work) -> str:
        """Return the hash of the editable weights, which ties vectors to them."""
        from taskvec.vectors import weights_hash

        return work.keep_as(
            f"{self.fingerprint}/hash", lambda: weights_hash(self.value(work).parameters)
        )
