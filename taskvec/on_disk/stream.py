"""A merge of mapped checkpoints, tensor by tensor and piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from taskvec.checkpoints.writing import PIECE, Weights
from taskvec.merge.base import TensorWise
from taskvec.merge.piece import Deltas, Piece
from taskvec.merge.pieces import read_together, require_finite_piece
from taskvec.on_disk.request import Rules
from taskvec.on_disk.sources import Cut, Sources
from taskvec.vectors import Tensors

HELD = (
    2**28
)  # bytes of one tensor over all models that are kept while it is looked at several times


class Stream:
    """The merged weights theta_0 + alpha * tau as runs of entries, in the order in which they are written."""

    def __init__(self, sources: Sources, rules: Rules, labels: list[str], alpha: float):
        self.sources, self.rules, self.labels, self.alpha = sources, rules, labels, alpha
        self.names: dict[TensorWise, list[str]] = {}
        for name in sources.base:
            self.names.setdefault(rules.merge_of(name), []).append(name)
        self._surveyed: dict[TensorWise, Any] = {}

    @property
    def weights(self) -> Weights:
        """The merged weights, to be written."""
        return Weights(self.sources.written, self.pieces)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor's runs of entries on the CPU, in the dtype in which it is written.

        Raises:
            UserError: for a delta that is not finite.
        """
        dtype = self.sources.written[name].dtype
        merged = self.merged(name) if self.sources.changed(name) else self._copied(name)
        for entries in merged:
            yield entries.to(dtype).cpu()

    def _copied(self, name: str) -> Iterator[Tensor]:
        """Yield the base's own entries: no model changes them."""
        total = self.sources.written[name].numel()
        for start in range(0, total, PIECE):
            yield self.sources.raw(name, start, min(start + PIECE, total))

    def merged(self, name: str) -> Iterator[Tensor]:
        """Yield a merged tensor's runs of entries in the dtype that is computed in."""
        merge = self.rules.merge_of(name)
        base: Tensors = self.sources.base
        deltas: Deltas = self.sources.deltas
        if self.holds(name):
            base, deltas = self._held(name)
        surveyed = self._survey(merge, name, base, deltas)
        shape = self.sources.base.like[name]
        grain = merge.grain_of(name, shape.shape)
        for piece in read_together(base, deltas, name, grain):
            for position, delta in piece.present:
                require_finite_piece(delta, name, self.labels[position])
            found = merge.merge(piece, None, surveyed)
            yield self._placed(piece, merge.centre(piece), found, shape.dtype)

    def holds(self, name: str) -> bool:
        """Return whether a tensor that is looked at several times is kept meanwhile: read once, if it is small."""
        merge = self.rules.merge_of(name)
        looks_again = merge.passes > 1 and not merge.over_model
        return looks_again and self.size_of(name) <= HELD

    def size_of(self, name: str) -> int:
        """Return the bytes that one tensor takes over base and models, in the dtype that is computed in."""
        shape = self.sources.base.like[name]
        present = [delta for delta in self.sources.deltas if name in delta]
        return shape.numel() * shape.element_size() * (1 + len(present))

    def passes_of(self, name: str) -> int:
        """Return how often a tensor is read, at most."""
        if not self.sources.changed(name) or self.holds(name):
            return 1
        return self.rules.merge_of(name).passes

    def _held(self, name: str) -> tuple[Tensors, Deltas]:
        """Return one tensor of the base and of every model, read as a whole."""
        base = {name: self.sources.base[name]}
        deltas: list[Tensors] = []
        for delta in self.sources.deltas:
            own = {name: delta[name]} if name in delta else {}
            deltas.append(own)
        return base, deltas

    def _survey(self, merge: TensorWise, name: str, base: Tensors, deltas: Deltas) -> Any:
        """Return what a merge must know: of all its tensors if it looks across them, else of this one alone."""
        names = self.names[merge] if merge.over_model else [name]
        if merge.over_model and merge in self._surveyed:
            return self._surveyed[merge]
        own_base = _only(base, names)
        own = [_only(delta, names) for delta in deltas]
        surveyed = merge.survey(own_base, own, None)
        if merge.over_model:
            self._surveyed[merge] = surveyed
        return surveyed

    def _placed(
        self, piece: Piece, centre: Tensor | None, found: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Return theta_0 + alpha * tau of a piece [n]."""
        base = piece.base if centre is None else piece.base + centre
        if found is None:
            return base.reshape(-1)
        delta = found.to(dtype)
        moved = torch.add(base, delta, alpha=self.alpha)
        return self._exact(piece, delta, moved).reshape(-1)

    @property
    def own_model(self) -> Cut | None:
        """What cuts the weights of the only model, if it is taken as it is."""
        alone = len(self.sources.models) == 1 and self.alpha == 1
        return self.sources.models[0] if alone else None

    def _exact(self, piece: Piece, delta: Tensor, moved: Tensor) -> Tensor:
        """Return the one model's own entries where its delta was taken as it is.

        theta_0 + (theta_1 - theta_0) is theta_1 up to rounding only.
        """
        model = self.own_model
        if model is None:
            return moved
        own = model(piece.name, piece.start, piece.start + delta.numel()).view(delta.shape)
        return torch.where(delta == piece.deltas[0], own, moved)


def _only(tensors: Tensors, names: list[str]) -> Tensors:
    """Return some of the tensors; of such that can be sliced, ones that can."""
    from taskvec.vectors import Sliced

    if not isinstance(tensors, Sliced):
        return tensors
    like = {name: tensors.like[name] for name in names if name in tensors}
    return Sliced(like, tensors.cut, tensors.device)
