"""Vectors that a file holds: a task vector, or the fine-tuned weights of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from taskvec.errors import UserError
from taskvec.graph.artefact import Json, Work, aside
from taskvec.graph.nodes.base import Base
from taskvec.graph.nodes.vector import VectorNode
from taskvec.needs import Imported

if TYPE_CHECKING:
    from taskvec.checkpoints.reading import Checkpoint, VectorFile
    from taskvec.vectors import TaskVector


@dataclass(frozen=True, eq=False)
class ImportedVector(VectorNode):
    """The vector of a task vector's file, or what a checkpoint's weights differ from theta_0 by.

    It counts with the bytes of its files and is read from them at every look.
    """

    kind: ClassVar[str] = "imported"
    copies: ClassVar[int] = 0

    opened: Checkpoint | VectorFile = aside()

    @classmethod
    def of(cls, expression: Imported, base: Base) -> ImportedVector:
        """Open what an expression names; a task vector's header says its forward mode.

        Raises:
            UserError: if there is nothing, or something that is neither a vector nor a model.
        """
        from taskvec.checkpoints.adapter import Adapter
        from taskvec.checkpoints.reading import VectorFile, open_any

        opened = open_any(expression.place, f"--vector {expression.task}")
        if isinstance(opened, Adapter):
            raise UserError(
                f"--vector {expression.task}: {expression.place} is an adapter; merge it into its base first "
                "(`taskvec merge`)"
            )
        mode = "standard"
        if isinstance(opened, VectorFile):
            mode = opened.vector.metadata.get("forward_mode", mode)
        return cls(base, expression, mode, opened)

    @property
    def stored(self) -> bool:
        """Never: it lies where the user put it."""
        return False

    def spec(self) -> Json:
        """Return the hash of each file."""
        from taskvec.data.files import sha256

        return {"files": [sha256(Path(place)) for place in self.opened.places]}

    def value(self, work: Work) -> TaskVector:
        """Return the vector, on the CPU.

        Raises:
            UserError: if it was made on other base weights, or a model lacks a weight or has another shape.
        """
        from taskvec.checkpoints.reading import VectorFile

        if isinstance(self.opened, VectorFile):
            return self._checked(self.opened, self.base.hash(work))
        return self._difference(self.opened, work)

    @staticmethod
    def _checked(opened: VectorFile, base_hash: str) -> TaskVector:
        made_on = opened.vector.metadata.get("base_hash", base_hash)
        if made_on != base_hash:
            raise UserError(
                f"{opened.name}: made on other base weights ({made_on[:12]}) than the backbone's ({base_hash[:12]}); "
                "choose the backbone that it was made on"
            )
        return opened.vector

    def _difference(self, opened: Checkpoint, work: Work) -> TaskVector:
        from taskvec.checkpoints.names import canonical
        from taskvec.vectors import TaskVector

        base = self.base.value(work).parameters
        weights = canonical(opened)
        tuned = {}
        for name, weight in base.items():
            if name not in weights:
                raise UserError(f"{opened.name} lacks {name}, which the backbone has")
            tuned[name] = weights[name].to("cpu", weight.dtype)
        try:
            return TaskVector.between({name: base[name].cpu() for name in base}, tuned)
        except ValueError as error:
            raise UserError(f"{opened.name}: {error}") from error
