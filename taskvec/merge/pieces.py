"""How merges read parameters: in pieces that fit into a processor's cache, so that no pass makes large temporaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from taskvec.errors import UserError
from taskvec.merge.piece import Deltas, Grain, Piece
from taskvec.vectors import Tensors

ENTRIES = 2**17  # of one piece on a processor: half a megabyte of float32
ON_DEVICE = 2**24  # on a device, where every kernel's start costs as much as this many entries save

Run = tuple[int, int]  # the first place, and the one after the last


def runs(like: Tensor, grain: Grain) -> Iterator[Run]:
    """Yield the places of each piece of a parameter in row-major order; an empty parameter is one piece."""
    total = like.numel()
    step = _step(like, grain)
    if total <= step:
        yield 0, total
        return
    for start in range(0, total, step):
        yield start, min(start + step, total)


def entries_on(device: torch.device) -> int:
    """Return the entries of one piece."""
    return ON_DEVICE if device.type == "cuda" else ENTRIES


def _step(like: Tensor, grain: Grain) -> int:
    wanted = entries_on(like.device)
    if grain == "entry":
        return wanted
    if grain == "tensor":
        return like.numel()
    row = row_length(like.shape)
    rows = wanted // max(1, row)
    return row * max(1, rows)


def row_length(shape: Sequence[int]) -> int:
    """Return the entries per row: those below the first axis; of a vector or a number all entries."""
    inner = shape[1:] if len(shape) > 1 else shape
    return math.prod(inner)


def working_dtype(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """Return the dtype to compute in: float64 if any operand has it, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def promoted(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """Return the dtype to which all of some dtypes promote."""
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


def read(deltas: Tensors, name: str) -> Iterator[Tensor]:
    """Yield one delta run by run [n], in float32 or float64."""
    delta = deltas[name]
    dtype = working_dtype([delta.dtype])
    for run in runs(delta, "entry"):
        yield _cut(delta, "entry", run).to(dtype)


def read_together(
    base: Tensors, deltas: Deltas, name: str, grain: Grain = "entry"
) -> Iterator[Piece]:
    """Yield the pieces of one parameter over all vectors."""
    parts = [delta.get(name) for delta in deltas]
    present = [part for part in parts if part is not None]
    dtype = working_dtype([part.dtype for part in present])
    weight = base[name]
    like = present[0] if present else weight
    for run in runs(like, grain):
        cuts: list[Tensor | None] = []
        for part in parts:
            cut = None if part is None else _cut(part, grain, run).to(dtype)
            cuts.append(cut)
        own = _cut(weight, grain, run)
        yield Piece(name, tuple(weight.shape), own, cuts, run[0])


def _cut(tensor: Tensor, grain: Grain, run: Run) -> Tensor:
    if grain == "tensor":
        return tensor
    start, stop = run
    flat = tensor.detach().reshape(-1)[start:stop]
    if grain == "entry":
        return flat
    row = row_length(tensor.shape)
    return flat.view(-1, row) if row else flat.view(0, 0)


def merge_parameter(
    merge: Callable[[Piece], Tensor | None], grain: Grain, name: str, base: Tensors, deltas: Deltas
) -> Tensor | None:
    """Return the merged delta of one parameter, piece by piece, in the dtype to which the deltas promote."""
    present = [delta[name] for delta in deltas if name in delta]
    dtype = promoted([part.dtype for part in present])
    out = torch.empty(base[name].shape, dtype=dtype, device=present[0].device)
    flat = out.view(-1)
    for piece in read_together(base, deltas, name, grain):
        found = merge(piece)
        if found is None:
            return None
        stop = piece.start + found.numel()
        flat[piece.start : stop] = found.reshape(-1)
    return out


def require_finite(deltas: Tensors, label: str) -> None:
    """Look at every entry of a task vector.

    Raises:
        UserError: if one is infinite or no number; the message names vector and parameter.
    """
    for name in deltas:
        flat = deltas[name].detach().reshape(-1)
        for piece in flat.split(entries_on(flat.device)):
            # The sum is the cheapest look: it is finite for finite entries, or it overflowed and the entries are asked.
            if piece.sum().isfinite() or piece.isfinite().all():
                continue
            raise UserError(
                f"the task vector of {label} is not finite in {name}; repair or leave out its checkpoint"
            )
