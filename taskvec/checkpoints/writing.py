"""Weights written shard by shard, in pieces; what a killed process finished is not written again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from taskvec.errors import UserError
from taskvec.vectors import Tensors
from taskvec.vectors.deferred import save_pieces

METADATA = {"format": "pt"}  # without it transformers does not load a file
PARTIAL, IDENTITY, LOCK = ".partial", "identity.json", "lock"
SHARD_BYTES = 2_000_000_000
PIECE = 2**20  # entries of a tensor that is copied

Pieces = Callable[[str], Iterable[Tensor]]
Content = bytes | Path  # of a file beside the weights: what is in it, or the file that is copied


class Shard(NamedTuple):
    """One file of a checkpoint and the names of its tensors."""

    file: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """Tensors to be written: names, shapes and dtypes (meta tensors), and what makes a tensor's runs of entries."""

    shapes: Tensors
    pieces: Pieces

    @classmethod
    def of(cls, tensors: Tensors) -> Weights:
        """Return tensors that exist, or are made at every look, as what is to be written."""
        from taskvec.vectors.deferred import entries_of, like

        shapes = {name: like(tensors, name) for name in tensors}

        def pieces(name: str) -> Iterator[Tensor]:
            entries = entries_of(tensors, name)
            total = entries.shape.numel()
            for start in range(0, total, PIECE):
                yield entries.run(start, min(start + PIECE, total)).cpu()

        return cls(shapes, pieces)


def size_of(shape: Tensor) -> int:
    """Return the bytes of a tensor, which may be a meta tensor."""
    return shape.numel() * shape.element_size()


def shards_of(shapes: Tensors, stem: str = "model", limit: float = SHARD_BYTES) -> list[Shard]:
    """Return which file holds which tensors: in their order, as many as fit into ``limit`` bytes, at least one."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = size_of(shape)
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    count = len(groups)
    found = []
    for number, names in enumerate(groups, start=1):
        file = f"{stem}-{number:05d}-of-{count:05d}" if count > 1 else stem
        found.append(Shard(f"{file}.safetensors", tuple(names)))
    return found


def index_of(shapes: Tensors, shards: Iterable[Shard]) -> bytes:
    """Return the index of a sharded checkpoint, as transformers reads it."""
    places = {name: shard.file for shard in shards for name in shard.names}
    total = sum(size_of(shapes[name]) for name in places)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return json.dumps(index, indent=2).encode() + b"\n"


def write_folder(
    out: Path,
    weights: Weights,
    beside: Mapping[str, Content],
    *,
    stem: str = "model",
    limit: float = SHARD_BYTES,
    identity: str = "",
    finished: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a checkpoint's folder: weights as safetensors in shards of up to ``limit`` bytes, and files ``beside``.

    It is made as ``OUT.partial`` and renamed when it is complete. What an earlier process of the same ``identity``
    finished there is kept; ``finished`` is told the bytes of each such shard.

    Raises:
        UserError: if ``out`` is there already, or another process writes it.
    """
    refuse_existing(out)
    partial = out.with_name(out.name + PARTIAL)
    shards = shards_of(weights.shapes, stem, limit)
    with _alone(partial):
        _same_work(partial, identity)
        for shard in shards:
            shapes = {name: weights.shapes[name] for name in shard.names}
            if (partial / shard.file).exists():
                size = sum(size_of(shape) for shape in shapes.values())
                finished(size)
                continue
            written = partial / f"{shard.file}.writing"
            save_pieces(written, shapes, weights.pieces, METADATA)
            written.rename(partial / shard.file)
        files = dict(beside)
        if len(shards) > 1:
            files[f"{stem}.safetensors.index.json"] = index_of(weights.shapes, shards)
        for name, content in files.items():
            _put(partial / name, content)
        (partial / IDENTITY).unlink()
        (partial / LOCK).unlink()
        partial.rename(out)


def write_file(out: Path, weights: Weights, metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file under a temporary name, and rename it when it is complete.

    Raises:
        UserError: if it is there already.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + PARTIAL)
    save_pieces(partial, weights.shapes, weights.pieces, {**METADATA, **(metadata or {})})
    partial.rename(out)


def refuse_existing(out: Path) -> None:
    """Check that nothing would be overwritten.

    Raises:
        UserError: if something is there.
    """
    if out.exists():
        raise UserError(f"out: {out} exists already; remove it or name another")


@contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Hold the folder of unfinished work.

    Raises:
        UserError: if another process holds it, or it cannot be made.
    """
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(partial / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"out: another process is writing {partial}") from error
    except OSError as error:
        raise UserError(f"out: {partial} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _same_work(partial: Path, identity: str) -> None:
    """Remove what unfinished work of another identity left, and note whose this is."""
    noted = partial / IDENTITY
    if not noted.exists() or noted.read_text(encoding="utf-8") != identity:
        for path in partial.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        noted.write_text(identity, encoding="utf-8")


def _put(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)


def meta(shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    """Return the announcement of a tensor."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


UNLIMITED = inf
