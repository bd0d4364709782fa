"""What merges read: theta_0 and every model's delta, made run by run from mapped files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from taskvec.merge.pieces import promoted, working_dtype
from taskvec.on_disk import heads
from taskvec.on_disk.inputs import Inputs, Part
from taskvec.on_disk.paired import Paired
from taskvec.on_disk.request import Request
from taskvec.on_disk.vocabulary import Pairing
from taskvec.vectors import Sliced

Cut = Callable[[str, int, int], Tensor]
Rows = Callable[[int, int], Tensor]  # of a table: a block [rows, width]


@dataclass(frozen=True)
class Sources:
    """theta_0 in the dtype that is computed in, each model's delta, and how tensors are written (meta tensors).

    ``raw`` cuts the reference's tensors as they are stored. ``models`` cuts theta_t itself, where a model is known by
    its weights.
    """

    base: Sliced
    deltas: Sequence[Sliced]
    written: dict[str, Tensor]
    raw: Cut
    models: Sequence[Cut | None]

    def changed(self, name: str) -> bool:
        """Return whether any model has a delta of a tensor."""
        return any(name in delta for delta in self.deltas)


def sources_of(
    inputs: Inputs, pairing: Pairing | None, request: Request, read: Callable[[int], None]
) -> Sources:
    """Return what is read; ``read`` is told the bytes of every look at the base and at a model, as they are stored."""
    made = _Made(inputs, pairing, request.device)
    shapes = {name: made.written_shape(name) for name in inputs.tensors}
    like = {}
    for name, shape in shapes.items():
        if inputs.tensors[name].is_floating_point():
            like[name] = torch.empty(shape, dtype=made.dtypes[name], device="meta")
    base_sizes = made.base_sizes()
    base = Sliced(like, _latest(_counted(made.base, read, base_sizes)), request.device)
    deltas = []
    models: list[Cut | None] = []
    for position, part in enumerate(inputs.parts):
        own = {name: shape for name, shape in like.items() if part.has(name)}
        sizes = _stored_size(part, own)
        cut = _counted(made.delta_of(position, base.cut), read, sizes)
        deltas.append(Sliced(own, cut, request.device))
        model = made.model_of(position)
        if model is not None:
            model = _counted(model, read, sizes)
        models.append(model)
    written = {}
    for name, shape in shapes.items():
        dtype = made.written_dtype(name, request)
        written[name] = torch.empty(shape, dtype=dtype, device="meta")
    copied = {name: tensor.element_size() for name, tensor in inputs.tensors.items()}
    return Sources(base, deltas, written, _counted(made.raw, read, copied), models)


class _Made:
    """Makes runs of entries from mapped tensors."""

    def __init__(self, inputs: Inputs, pairing: Pairing | None, device: str):
        self.inputs, self.pairing, self.device = inputs, pairing, device
        self.dtypes = {name: self._working(name) for name in inputs.tensors}
        self.paired: dict[str, Paired] = {}
        if pairing is not None:
            rows = self._embedding_rows()
            for name, tensor in inputs.tensors.items():
                if name.endswith(heads.BY_TOKEN) and tensor.ndim and len(tensor) == rows:
                    self.paired[name] = self._pair(name, pairing)

    def _embedding_rows(self) -> int:
        name = self.inputs.embeddings.input
        return len(self.inputs.tensors[name]) if name in self.inputs.tensors else 0

    def _working(self, name: str) -> torch.dtype:
        dtypes = [self.inputs.tensors[name].dtype]
        dtypes += [part.announced(name).dtype for part in self.inputs.parts if part.has(name)]
        return working_dtype(dtypes)

    def _pair(self, name: str, pairing: Pairing) -> Paired:
        tables, are_deltas = [], []
        for part in self.inputs.parts:
            known = part.weights if part.weights is not None else part.deltas
            table = known[name] if part.has(name) else None
            tables.append(table)
            are_deltas.append(part.weights is None)
        base = None if self.inputs.base is None else self.inputs.base[name]
        return Paired(pairing.of, base, tables, are_deltas, self.dtypes[name])

    def written_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a written tensor."""
        shape = tuple(self.inputs.tensors[name].shape)
        return (self.pairing.rows, *shape[1:]) if name in self.paired else shape

    def written_dtype(self, name: str, request: Request) -> torch.dtype:
        """Return the dtype of a written tensor: as asked for, or the base's, or that to which the models' promote."""
        own = self.inputs.tensors[name].dtype
        if not own.is_floating_point:
            return own
        if request.dtype is not None:
            return getattr(torch, request.dtype)
        if self.inputs.base is not None:
            return own
        return promoted(
            [part.announced(name).dtype for part in self.inputs.parts if part.has(name)]
        )

    def base_sizes(self) -> dict[str, int]:
        """Return the bytes of an entry of each of the base's tensors; none where theta_0 is zero."""
        stored = self.inputs.base
        if stored is None:
            return dict.fromkeys(self.inputs.tensors, 0)
        return {name: stored[name].element_size() for name in self.inputs.tensors}

    def raw(self, name: str, start: int, stop: int) -> Tensor:
        """Return entries of the reference as they are stored."""
        if name in self.paired:
            return self.base(name, start, stop)
        return self.inputs.tensors[name].reshape(-1)[start:stop]

    def base(self, name: str, start: int, stop: int) -> Tensor:
        """Return entries of theta_0."""
        if name in self.paired:
            return self._of_rows(name, self.paired[name].base_rows, start, stop)
        if self.inputs.base is None:
            return torch.zeros(stop - start, dtype=self.dtypes[name], device=self.device)
        return self._moved(name, self.inputs.base[name].reshape(-1)[start:stop])

    def model_of(self, position: int) -> Cut | None:
        """Return what cuts theta_t."""
        part = self.inputs.parts[position]
        weights = part.weights
        if weights is None:
            return None

        def cut(name: str, start: int, stop: int) -> Tensor:
            if name in self.paired:
                rows = partial(self.paired[name].model_rows, position)
                return self._of_rows(name, rows, start, stop)
            return self._moved(name, weights[name].reshape(-1)[start:stop])

        return cut

    def delta_of(self, position: int, base: Cut) -> Cut:
        """Return what cuts theta_t - theta_0."""
        part = self.inputs.parts[position]
        weights = part.weights
        latest = _Latest(part)

        def cut(name: str, start: int, stop: int) -> Tensor:
            if name in self.paired:
                rows = partial(self.paired[name].delta_rows, position)
                return self._of_rows(name, rows, start, stop)
            if weights is None:
                return self._moved(name, latest.flat(name)[start:stop])
            stored = weights[name].reshape(-1)[start:stop]
            own = self._moved(name, stored)
            if self.inputs.base is None:
                return own
            theta = base(name, start, stop)
            # A copy of another dtype is ours to change, a view of the file is not
            return own - theta if own.dtype == stored.dtype else own.sub_(theta)

        return cut

    def _of_rows(self, name: str, rows: Rows, start: int, stop: int) -> Tensor:
        """Return entries of a table by the rows that they are in."""
        width = max(1, prod(self.inputs.tensors[name].shape[1:]))
        first, last = start // width, -(-stop // width)
        block = rows(first, last).reshape(-1)
        inside = block[start - first * width : stop - first * width]
        return inside.to(self.device)

    def _moved(self, name: str, entries: Tensor) -> Tensor:
        return entries.detach().to(self.device).to(self.dtypes[name])


class _Latest:
    """The delta that was made last, of those that are made as a whole: pieces of one tensor are read in a row."""

    def __init__(self, part: Part):
        self.part = part
        self.name: str | None = None
        self.made: Tensor | None = None

    def flat(self, name: str) -> Tensor:
        """Return a delta [n]."""
        if name != self.name or self.made is None:
            self.made = self.part.deltas[name].detach().reshape(-1)
            self.name = name
        return self.made


def _latest(cut: Cut) -> Cut:
    """Return the same cuts, the last one remembered: every model's delta asks for the same run of theta_0."""
    last: dict[tuple[str, int, int], Tensor] = {}

    def remembered(name: str, start: int, stop: int) -> Tensor:
        key = (name, start, stop)
        if key not in last:
            last.clear()
            last[key] = cut(name, start, stop)
        return last[key]

    return remembered


def _stored_size(part: Part, names: Iterable[str]) -> dict[str, int]:
    return {name: part.announced(name).element_size() for name in names}


def _counted(cut: Cut, read: Callable[[int], None], sizes: dict[str, int]) -> Cut:
    """Return the same cuts; the bytes of each are told."""

    def told(name: str, start: int, stop: int) -> Tensor:
        read((stop - start) * sizes[name])
        return cut(name, start, stop)

    return told
