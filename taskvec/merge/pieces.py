"""How merges read parameters: in pieces that fit into a processor's cache, so that no pass makes large temporaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from taskvec.errors import UserError
from taskvec.merge.piece import Deltas, Grain, Piece
from taskvec.vectors import Tensors
from taskvec.vectors.deferred import Entries, Sliced, entries_of, like

ENTRIES = 2**17  # of one piece on a processor: half a megabyte of float32
ON_DEVICE = 2**24  # on a device, where every kernel's start costs as much as this many entries save

SAMPLED = 64  # one entry in at least so many makes a sample
SAMPLE = 2**18  # entries of a sample, at most
SAMPLE_RUN = 2**12  # entries of it that stand together

Run = tuple[int, int]  # the first place, and the one after the last


def runs(shape: Tensor, grain: Grain, device: torch.device) -> Iterator[Run]:
    """Yield the places of each piece of a parameter in row-major order; an empty parameter is one piece."""
    total = shape.numel()
    step = _step(shape, grain, device)
    if total <= step:
        yield 0, total
        return
    for start in range(0, total, step):
        yield start, min(start + step, total)


def spaced(total: int, share: int) -> Iterator[Run]:
    """Yield the places of short runs all over a parameter, in all one entry in about ``share``."""
    length = min(SAMPLE_RUN, max(1, total // share))
    step = length * share
    for start in range(step // 2, total, step):
        yield start, min(start + length, total)


def entries_on(device: torch.device) -> int:
    """Return the entries of one piece."""
    return ON_DEVICE if device.type == "cuda" else ENTRIES


def _step(shape: Tensor, grain: Grain, device: torch.device) -> int:
    wanted = entries_on(device)
    if grain == "entry":
        return wanted
    if grain == "tensor":
        return shape.numel()
    row = row_length(shape.shape)
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
    entries = entries_of(deltas, name)
    dtype = working_dtype([entries.shape.dtype])
    for start, stop in runs(entries.shape, "entry", entries.device):
        yield entries.run(start, stop).to(dtype)


def read_together(
    base: Tensors, deltas: Deltas, name: str, grain: Grain = "entry", share: int = 1
) -> Iterator[Piece]:
    """Yield the pieces of one parameter over all vectors; of a ``share`` above 1 only one entry in so many."""
    parts = [entries_of(delta, name) if name in delta else None for delta in deltas]
    present = [part for part in parts if part is not None]
    dtype = working_dtype([part.shape.dtype for part in present])
    weight = entries_of(base, name)
    shape = tuple(weight.shape.shape)
    device = present[0].device if present else weight.device
    whole = runs(weight.shape, grain, device)
    for run in spaced(weight.shape.numel(), share) if share > 1 else whole:
        cuts: list[Tensor | None] = []
        for part in parts:
            cut = None if part is None else _cut(part, grain, run).to(dtype)
            cuts.append(cut)
        yield Piece(name, shape, _cut(weight, grain, run), cuts, run[0])


def sample_share(entries: int) -> int:
    """Return that a sample has one entry in so many."""
    return max(SAMPLED, entries // SAMPLE)


def are_read(deltas: Deltas) -> bool:
    """Return whether a pass reads files, so that it pays to save one."""
    return any(isinstance(delta, Sliced) for delta in deltas)


def _cut(entries: Entries, grain: Grain, run: Run) -> Tensor:
    flat = entries.run(*run)
    if grain == "entry":
        return flat
    shape = entries.shape.shape
    if grain == "tensor":
        return flat.view(shape)
    row = row_length(shape)
    return flat.view(-1, row) if row else flat.view(0, 0)


def merge_parameter(
    merge: Callable[[Piece], Tensor | None], grain: Grain, name: str, base: Tensors, deltas: Deltas
) -> Tensor | None:
    """Return the merged delta of one parameter, piece by piece, in the dtype to which the deltas promote."""
    dtypes = [like(delta, name).dtype for delta in deltas if name in delta]
    out = None
    for piece in read_together(base, deltas, name, grain):
        found = merge(piece)
        if found is None:
            return None
        if out is None:
            device = piece.parts[0].device
            out = torch.empty(piece.shape, dtype=promoted(dtypes), device=device)
        stop = piece.start + found.numel()
        out.view(-1)[piece.start : stop] = found.reshape(-1)
    return out


def require_finite(deltas: Tensors, label: str) -> None:
    """Look at every entry of a task vector.

    Raises:
        UserError: if one is infinite or no number; the message names vector and parameter.
    """
    for name in deltas:
        for piece in read(deltas, name):
            require_finite_piece(piece, name, label)


def require_finite_piece(piece: Tensor, name: str, label: str) -> None:
    """Look at every entry of a part of a task vector.

    Raises:
        UserError: if one is infinite or no number; the message names vector and parameter.
    """
    # The sum is the cheapest look: it is finite for finite entries, or it overflowed and the entries are asked.
    if math.isfinite(piece.sum().item()) or piece.isfinite().all():
        return
    raise UserError(
        f"the task vector of {label} is not finite in {name}; repair or leave out its checkpoint"
    )
