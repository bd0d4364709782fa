"""What a path may lead to: a transformers or open_clip folder, a weight file, a task vector, an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor

from taskvec.checkpoints import files
from taskvec.checkpoints.adapter import ADAPTER_CONFIG, Adapter, open_adapter
from taskvec.errors import UserError
from taskvec.models.clip.config import FOLDER_CONFIG
from taskvec.models.sources import CONFIG, Source
from taskvec.vectors import TaskVector, Tensors

Kind: TypeAlias = Literal["transformers", "open_clip", "file"]


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights under the names that they are stored with, mapped and not read.

    ``config`` is its description; None for a weight file alone. ``source`` is its folder, None for a file.
    """

    name: str
    kind: Kind
    tensors: Tensors
    config: Mapping[str, Any] | None = None
    source: Source | None = None
    places: tuple[Path, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class VectorFile:
    """A task vector's file; its tensors have the names of taskvec's own layout."""

    name: str
    vector: TaskVector
    places: tuple[Path, ...] = field(default=(), repr=False)


Opened: TypeAlias = Checkpoint | VectorFile | Adapter


def open_any(name: str, key: str = "models") -> Opened:
    """Open what a path, ``pkg://NAME`` or a name of the hub's cache leads to; ``key`` is the setting that names it.

    Nothing is read but headers. Python that a folder brings along never runs, names that lead out of it are refused.

    Raises:
        UserError: if there is nothing, or it is damaged or of a kind that is not covered.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if files.is_vector(path):
            return VectorFile(name, files.vector_of(path), (path,))
        return Checkpoint(name, "file", files.tensors_of(path), places=(path,))
    source = Source(name, key=key)
    if source.folder is None and source.commit is None:
        raise UserError(f"{key}: {name} is neither a file, nor a folder, nor in the hub's cache")
    if source.file(ADAPTER_CONFIG) is not None:
        return open_adapter(source)
    return _of_folder(source)


def open_checkpoint(name: str, key: str = "base") -> Checkpoint:
    """Open a model; see :func:`open_any`.

    Raises:
        UserError: as there, and if it is a vector or an adapter.
    """
    found = open_any(name, key)
    if isinstance(found, Checkpoint):
        return found
    said = "a task vector" if isinstance(found, VectorFile) else "an adapter"
    raise UserError(f"{key}: {name} is {said}, not a model")


def _of_folder(source: Source) -> Checkpoint:
    """Return the model in a folder.

    Raises:
        UserError: if there is none.
    """
    described = source.json(FOLDER_CONFIG)
    if described is not None:
        kind: Kind = "open_clip"
    else:
        described, kind = source.json(CONFIG), "transformers"
    if described is None:
        wanted = f"{CONFIG}, {FOLDER_CONFIG} or {ADAPTER_CONFIG}"
        raise UserError(f"{source.key}: {source.name} holds no model (it has no {wanted})")
    tensors = files.weights_of(source)
    return Checkpoint(source.name, kind, tensors, described, source, _places(source))


def _places(source: Source) -> tuple[Path, ...]:
    """Return the files that could make a difference to a merge."""
    folder = source.folder
    found: Iterable[Path] = ()
    if folder is not None:
        found = sorted(path for path in folder.iterdir() if path.is_file())
    return tuple(found)


def floating(tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors that are weights; integers and masks are none."""
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
