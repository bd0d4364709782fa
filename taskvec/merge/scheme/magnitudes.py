"""The magnitudes of several task vectors, read together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from taskvec.merge.piece import Deltas
from taskvec.merge.pieces import are_read, read_together, sample_share, working_dtype
from taskvec.merge.scheme.order import Sample, Together
from taskvec.vectors import Tensors
from taskvec.vectors.deferred import count_of, like


def magnitudes(base: Tensors, deltas: Deltas, names: Sequence[str]) -> tuple[Together, Sample]:
    """Return passes over |tau_t| of some parameters, one array for each vector, and a sample of them."""
    entries, dtypes = [], []
    for delta in deltas:
        present = [name for name in names if name in delta]
        entries.append(sum(count_of(delta, name) for name in present))
        dtypes += [like(delta, name).dtype for name in present]
    share = sample_share(max(entries))
    dtype = working_dtype(dtypes)

    def parts(share: int) -> Iterator[list[Tensor | None]]:
        for name in names:
            for piece in read_together(base, deltas, name, "entry", share):
                found: list[Tensor | None] = []
                for delta in piece.deltas:
                    magnitudes = None if delta is None else delta.abs().to(dtype)
                    found.append(magnitudes)
                yield found

    few = (lambda: parts(share)) if are_read(deltas) else None
    return (lambda: parts(1)), Sample(few, entries)
