"""Vectors that files hold: task vectors and fine-tuned models, which count by content, or by the hub's commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.data.files import sha256
from taskvec.errors import UserError
from taskvec.graph.artefact import Json, Work, aside
from taskvec.graph.nodes.base import Base
from taskvec.graph.nodes.vector import VectorNode
from taskvec.models.remote import checkpoint_files
from taskvec.models.sources import Source
from taskvec.needs import Imported
from taskvec.registry import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.checkpoints.reading import Checkpoint
    from taskvec.vectors import TaskVector

FOLDER, SUFFIX = "vectors", ".safetensors"
KEY = "finetune=stored"


def vector_file(root: Path, name: str) -> Path:
    """Return where a vector is kept that was imported under a name, below an outputs folder."""
    return root / FOLDER / f"{name}{SUFFIX}"


def found_vector(root: Path, name: str) -> Path:
    """Return the file of an imported vector.

    Raises:
        UserError: if there is none of that name.
    """
    path = vector_file(root, name)
    if path.is_file():
        return path
    known = [other.stem for other in sorted(path.parent.glob(f"*{SUFFIX}"))]
    hint = did_you_mean(name, known) if known else ""
    raise UserError(
        f"finetune=stored: no vector {name!r} in {path.parent}{hint}; "
        f"`taskvec import vector FINE_TUNED --base BASE --as {name}` makes it"
    )


def header_of(place: str) -> Mapping[str, Any] | None:
    """Return the metadata of a task vector's file, read without torch; None for anything else."""
    from safetensors import SafetensorError, safe_open

    if not place.endswith(SUFFIX):
        return None
    try:
        with safe_open(Path(place).expanduser(), "np") as file:
            return json.loads(file.metadata()["taskvec"])["metadata"]
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None  # whoever opens it says what is wrong


def imported(expression: Imported, base: Base) -> VectorNode:
    """Return the vector of a task vector's file, whose header says its forward mode, or of a model's files.

    Raises:
        UserError: if there is nothing, or something that is neither.
    """
    header = header_of(expression.place)
    if header is None and _of_hub(expression.place):
        return PublishedVector.of(expression, base)
    if header is None:
        return ImportedVector.of(expression, base)
    return StoredVector(base, expression, header.get("forward_mode", "standard"))


def _of_hub(place: str) -> bool:
    """Return whether a place is a name of the hub: neither a file nor a folder.

    Raises:
        UserError: for a path without a folder.
    """
    return not Path(place).expanduser().exists() and Source(place, key=KEY).folder is None


class _InPlace(VectorNode):
    """A vector that is read where it lies, at every look."""

    kind: ClassVar[str] = "imported"
    copies: ClassVar[int] = 0
    looks: ClassVar[bool] = True

    @property
    def stored(self) -> bool:
        """Never: it lies in the hub's cache, or where the user put it."""
        return False


@dataclass(frozen=True, eq=False)
class PublishedVector(_InPlace):
    """What a model or an adapter of the hub differs from theta_0 by; it is fetched first."""

    @classmethod
    def of(cls, expression: Imported, base: Base) -> PublishedVector:
        """Look up what an expression names.

        Raises:
            UserError: if the hub's cache has no such model and the hub cannot be asked, or has none either.
        """
        found = cls(base, expression, "standard")
        if found.source.commit is None:
            named = f"vector of {expression.task}: {expression.place}"
            raise UserError(f"{named} is neither a file, nor a folder, nor in the hub's cache")
        return found

    @property
    def source(self) -> Source:
        """Where it is on the hub."""
        expression: Imported = self.expression
        return Source(expression.place, key=KEY)

    def spec(self) -> Json:
        """Return the name and the commit that its branch has in the hub's cache."""
        return {"published": self.source.identity(())}

    def value(self, work: Work) -> TaskVector:
        """Return the vector, on the CPU.

        Raises:
            UserError: if it cannot be had, or is no fine-tuned version of the base.
        """
        if not self._here():
            checkpoint_files(self.source, None).fetch()
        return self._on(self.base.value(work).parameters)

    def check(self) -> None:
        """Compare architecture, names and shapes with the base as far as both are here; no weight is read.

        Raises:
            UserError: if it is no fine-tuned version of the base.
        """
        import torch

        shapes = self.base.backbone.parameter_shapes()
        if shapes is not None and self._here():
            self._on({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})

    def _here(self) -> bool:
        return checkpoint_files(self.source, None).here()

    def _on(self, weights: Mapping[str, Tensor]) -> TaskVector:
        from taskvec.checkpoints.reading import open_any
        from taskvec.checkpoints.tuned import tuned_vector

        opened = open_any(self.source.name, KEY)
        return tuned_vector(opened, self.base.backbone, weights, KEY)


@dataclass(frozen=True, eq=False)
class StoredVector(_InPlace):
    """The vector in a task vector's file."""

    def spec(self) -> Json:
        """Return the hash of the file."""
        expression: Imported = self.expression
        return {"files": [sha256(Path(expression.place).expanduser())]}

    def value(self, work: Work) -> TaskVector:
        """Return the vector, on the CPU; its deltas are read from the file as they are used.

        Raises:
            UserError: if it was made on other base weights.
        """
        from taskvec.vectors import TaskVector

        expression: Imported = self.expression
        place = Path(expression.place).expanduser()
        return TaskVector.load(place, base_hash=self.base.hash(work))


@dataclass(frozen=True, eq=False)
class ImportedVector(VectorNode):
    """What a checkpoint's weights differ from theta_0 by.

    It counts with the bytes of its files and is read from them at every look.
    """

    kind: ClassVar[str] = "imported"
    copies: ClassVar[int] = 0
    looks: ClassVar[bool] = True

    opened: Checkpoint = aside()

    @classmethod
    def of(cls, expression: Imported, base: Base) -> ImportedVector:
        """Open what an expression names.

        Raises:
            UserError: if there is nothing, or something that is no model.
        """
        from taskvec.checkpoints.reading import Checkpoint, open_any

        opened = open_any(expression.place, f"--vector {expression.task}")
        if not isinstance(opened, Checkpoint):
            raise UserError(
                f"--vector {expression.task}: {expression.place} is an adapter; merge it into its base first "
                "(`taskvec merge`)"
            )
        return cls(base, expression, "standard", opened)

    @property
    def stored(self) -> bool:
        """Never: it lies where the user put it."""
        return False

    def spec(self) -> Json:
        """Return the hash of each file."""
        return {"files": [sha256(Path(place)) for place in self.opened.places]}

    def value(self, work: Work) -> TaskVector:
        """Return the vector, on the CPU.

        Raises:
            UserError: if it lacks a weight, or has one of another shape.
        """
        from taskvec.checkpoints.names import difference

        return difference(self.opened, self.base.value(work).parameters)
