"""Weight files as mappings of tensors that stay in the file: pages of it are read when an entry is looked at."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taskvec.errors import UserError
from taskvec.models.sources import Source
from taskvec.vectors import TaskVector

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NESTED = ("state_dict", "model", "model_state_dict")  # where training checkpoints keep weights
VECTOR = "taskvec"  # the metadata of a vector's file

# Where a folder keeps its weights, the first that is there wins
WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name, mapped into memory and not read.

    Pickles are unpickled with ``weights_only``, so that nothing in them runs; of a training checkpoint the state dict
    is taken, without the prefix that data-parallel training puts before names.

    Raises:
        UserError: for a damaged file, one of another format, or one that holds more than tensors.
    """
    if path.suffix == SAFETENSORS:
        return _of_safetensors(path)
    if path.suffix in PICKLES:
        return _of_pickle(path)
    raise UserError(f"{path}: not a weight file ({', '.join([SAFETENSORS, *PICKLES])})")


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata in a safetensors file's header; empty for files of other formats.

    Raises:
        UserError: for a damaged file.
    """
    if path.suffix != SAFETENSORS:
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def is_vector(path: Path) -> bool:
    """Return whether a file holds a task vector.

    Raises:
        UserError: for a damaged file.
    """
    return VECTOR in metadata_of(path)


def vector_of(path: Path) -> TaskVector:
    """Open a task vector's file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return TaskVector.load(path)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def weights_of(source: Source) -> dict[str, Tensor]:
    """Return all tensors of a folder: of its single weight file, or of the shards that its index names.

    Raises:
        UserError: if there are none, one is missing or damaged, or the index leads out of the folder.
    """
    for name in WEIGHTS:
        single = source.file(name)
        if single is not None:
            return tensors_of(single)
        index = source.json(f"{name}.index.json")
        if index is not None:
            return _of_shards(source, f"{name}.index.json", index)
    raise UserError(f"{source.key}: {source.name} holds no weights ({', '.join(WEIGHTS)})")


def _of_shards(source: Source, index_name: str, index: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that an index names, in its order.

    Raises:
        UserError: if it is malformed, or a shard lacks a tensor.
    """
    places = index.get("weight_map")
    names = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    if not names:
        raise UserError(f"{source.key}: {source.name}: {index_name} is malformed")
    shards: dict[str, dict[str, Tensor]] = {}
    for shard in dict.fromkeys(places.values()):
        path = source.file(shard)
        if path is None:
            raise UserError(f"{source.key}: {source.name} has no {shard}, which its index names")
        shards[shard] = tensors_of(path)
    found = {}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise UserError(
                f"{source.key}: {source.name}: {shard} lacks {name}, which the index says it holds"
            )
        found[name] = shards[shard][name]
    return found


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            # Views of the mapped file: nothing is read here
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def _of_pickle(path: Path) -> dict[str, Tensor]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        remedy = "docs/checkpoints.md, Pickled modules, converts it in isolation"
        raise UserError(
            f"{path}: holds more than tensors, which would have to run code; {remedy}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:200]}") from error
    inner = _state_dict(stored)
    tensors = {name: tensor for name, tensor in inner.items() if torch.is_tensor(tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name")
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if wrapped else name: t for name, t in tensors.items()}


def _state_dict(stored: Any) -> Mapping[str, Any]:
    """Return the state dict among what a training checkpoint holds, empty if there is none."""
    if not isinstance(stored, Mapping):
        return {}
    for key in NESTED:
        if isinstance(stored.get(key), Mapping):
            return stored[key]
    return stored


def _is_zip(path: Path) -> bool:
    """Return whether a pickle has the format that can be mapped (the older one is read as a whole)."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
