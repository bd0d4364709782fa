"""How merges read parameters: in pieces that fit into a processor's cache, so that no pass makes large temporaries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskvec.errors import UserError
from taskvec.merge.base import Grain, Piece, TensorWise
from taskvec.needs import Given

if TYPE_CHECKING:
    from collections.abc import Iterable

ENTRIES = 2**17  # of one piece: half a megabyte of float32


def runs(shape: Sequence[int], grain: Grain, entries: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the first and last-but-one place of each piece of a parameter; one piece covers an empty parameter."""
    total = math.prod(shape)
    step = entries or ENTRIES
    if grain == "row":
        row = row_length(shape)
        step = row * max(1, step // max(1, row))
    if grain == "tensor" or total <= step:
        yield 0, total
        return
    for start in range(0, total, step):
        yield start, min(start + step, total)


def row_length(shape: Sequence[int]) -> int:
    """Return the entries per row: those below the first axis; of a vector or a number all entries."""
    return math.prod(shape[1:] if len(shape) > 1 else shape)


def working_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype to compute in: float64 if any operand has it, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def read(deltas: Mapping[str, Tensor], name: str, grain: Grain = "entry") -> Iterator[tuple[int, Tensor]]:
    """Yield (start, piece) of one delta in float32 or float64, pieces shaped as :class:`TensorWise` says."""
    delta = deltas[name]
    dtype = working_dtype([delta.dtype])
    for start, stop in runs(delta.shape, grain):
        yield start, _cut(delta, grain, start, stop).to(dtype)


def read_together(
    base: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]], name: str, grain: Grain = "entry"
) -> Iterator[Piece]:
    """Yield the pieces of one parameter over all vectors."""
    parts = [delta[name] if name in delta else None for delta in deltas]
    present = [part for part in parts if part is not None]
    dtype = working_dtype({part.dtype for part in present})
    shape = base[name].shape
    for start, stop in runs(shape, grain):
        cut = [None if part is None else _cut(part, grain, start, stop).to(dtype) for part in parts]
        yield Piece(name, tuple(shape), _cut(base[name], grain, start, stop), cut, start)


def _cut(tensor: Tensor, grain: Grain, start: int, stop: int) -> Tensor:
    if grain == "tensor":
        return tensor
    flat = tensor.detach().reshape(-1)[start:stop]
    if grain == "entry":
        return flat
    row = row_length(tensor.shape)
    return flat.view(-1, row) if row else flat.view(0, 0)


def merge_parameter(
    method: TensorWise,
    name: str,
    base: Mapping[str, Tensor],
    deltas: Sequence[Mapping[str, Tensor]],
    given: Given | None,
    surveyed: Any,
) -> Tensor | None:
    """Return the merged delta of one parameter, piece by piece, in the dtype to which the deltas promote."""
    present = [delta[name] for delta in deltas if name in delta]
    dtype = promoted([part.dtype for part in present])
    out = torch.empty(base[name].shape, dtype=dtype, device=present[0].device)
    flat = out.view(-1)
    for piece in read_together(base, deltas, name, method.grain):
        found = method.merge(piece, given, surveyed)
        if found is None:
            return None
        flat[piece.start : piece.start + found.numel()] = found.reshape(-1).to(dtype)
    return out


def promoted(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """Return the dtype to which all of some dtypes promote."""
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


def require_finite(deltas: Mapping[str, Tensor], label: str) -> None:
    """Look at every entry of a task vector.

    Raises:
        UserError: if one is infinite or no number; the message names vector and parameter.
    """
    for name in deltas:
        delta = deltas[name].detach().reshape(-1)
        for piece in delta.split(ENTRIES):
            # The sum is the cheapest look: it is finite for finite entries, or it overflowed and the entries are asked.
            if not piece.sum().isfinite() and not piece.isfinite().all():
                raise UserError(f"the task vector of {label} is not finite in {name}; repair or leave out its checkpoint")
