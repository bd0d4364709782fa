"""A fine-tuned model or adapter as a stored task vector: tau = theta - theta_0, checked against its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from taskvec.checkpoints.names import names_of
from taskvec.checkpoints.reading import Checkpoint, open_any
from taskvec.checkpoints.tuned import tuned_vector
from taskvec.errors import UserError
from taskvec.exchange.bases import backbone_of, checkpoint_of
from taskvec.graph.nodes.imported import vector_file
from taskvec.vectors import TaskVector, Tensors, weights_hash


@dataclass(frozen=True)
class Import:
    """A vector that was imported: its file, itself, and what its reader should know."""

    path: Path
    vector: TaskVector
    notes: tuple[str, ...] = ()


def import_vector(
    place: str,
    base: str,
    name: str,
    root: Path,
    forward_mode: Literal["standard", "tangent"] | None = None,
) -> Import:
    """Write the vector of a fine-tuned model (a file, a folder, an adapter, a vector's file) below an outputs folder.

    ``base`` names the backbone that it was tuned from. ``forward_mode`` says how the vector is evaluated; None: as its
    file says, else standard.

    Raises:
        UserError: if a place cannot be read, or the model is not a fine-tuned version of the base.
    """
    path = vector_file(root, name)
    _check_name(name, path)
    opened = open_any(place, "import")
    backbone = backbone_of(base)
    backbone.check()
    weights = backbone.load("cpu").parameters
    vector = tuned_vector(opened, backbone, weights, "import")
    notes = _beside(opened, backbone, weights) if isinstance(opened, Checkpoint) else []
    _check_values(vector, place)
    base_hash = weights_hash(weights)
    theirs = vector.metadata
    made_on = theirs.get("base_hash", base_hash)
    if made_on != base_hash:
        raise UserError(
            f"import: {place} was made on other base weights ({made_on[:12]}) than those of {base} ({base_hash[:12]})"
        )
    mode = forward_mode or theirs.get("forward_mode", "standard")
    metadata = {**theirs, "base_hash": base_hash, "forward_mode": mode}
    metadata |= {"backbone": backbone.identity(), "imported_from": Path(place).name}
    dense = {name: delta for name, delta in vector.items() if name not in vector.factors}
    tied = TaskVector(dense, metadata, vector.factors)
    path.parent.mkdir(parents=True, exist_ok=True)
    tied.save(path)
    return Import(path, TaskVector.load(path), tuple(notes))


def _check_name(name: str, path: Path) -> None:
    """Check that a name is a file's name and free.

    Raises:
        UserError: if it is not.
    """
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"--as {name!r}: a name without slashes and leading dots")
    if path.exists():
        raise UserError(f"--as {name}: {path} exists already; remove it or choose another name")


def _beside(tuned: Checkpoint, backbone: Any, weights: Tensors) -> list[str]:
    """Return a remark on tensors that no task vector holds and that differ from the base's: a text tower, a head."""
    base = checkpoint_of(backbone)
    names = names_of(base)
    differing = []
    for name, tensor in base.tensors.items():
        ours = names.canonical({name: tensor.to("meta")})
        if ours.keys() & weights.keys() or name not in tuned.tensors:
            continue
        other = tuned.tensors[name]
        same = other.shape == tensor.shape and torch.equal(other.float(), tensor.float())
        if not same:
            differing.append(name)
    if not differing:
        return []
    return [
        f"{len(differing)} tensors outside the vector differ from the base's and are left out: {differing[0]} ..."
    ]


def _check_values(vector: TaskVector, label: str) -> None:
    """Check that a vector is finite and is not zero.

    Raises:
        UserError: naming the parameter.
    """
    total = 0.0
    for name, delta in vector.items():
        size = float(delta.double().square().sum())
        if size != size or size == float("inf"):
            raise UserError(f"import: {label} is not finite in {name}; the checkpoint is damaged")
        total += size
    if total == 0:
        raise UserError(f"import: {label} does not differ from its base")
