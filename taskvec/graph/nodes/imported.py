"""Vectors that were imported: files below the outputs folder, which count by their content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.data.files import sha256
from taskvec.errors import UserError
from taskvec.graph.artefact import Json, Work
from taskvec.graph.nodes.vector import VectorNode
from taskvec.needs import Imported
from taskvec.registry import did_you_mean

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector

FOLDER, SUFFIX = "vectors", ".safetensors"


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


def header_of(path: Path) -> Mapping[str, Any]:
    """Return the metadata of a vector's file.

    Raises:
        UserError: if it is none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return json.loads(file.metadata()["taskvec"])["metadata"]
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a task vector: {' '.join(str(error).split())}") from error


@dataclass(frozen=True, eq=False)
class ImportedVector(VectorNode):
    """The vector in a file; the store holds no copy of it."""

    copies: ClassVar[int] = 0

    @property
    def stored(self) -> bool:
        """Never: it is a file already."""
        return False

    @property
    def label(self) -> str:
        """The name of its file."""
        expression: Imported = self.expression
        return f"vector {Path(expression.place).stem}"

    def spec(self) -> Json:
        """Return the checksum of the file."""
        expression: Imported = self.expression
        return {"sha256": sha256(Path(expression.place))}

    def value(self, work: Work) -> TaskVector:
        """Return the vector; its deltas are read from the file as they are used.

        Raises:
            UserError: if it was made on other base weights.
        """
        from taskvec.vectors import TaskVector

        expression: Imported = self.expression
        return TaskVector.load(expression.place, base_hash=self.base.hash(work))
