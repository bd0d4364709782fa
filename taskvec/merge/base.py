"""What a merge is: signed task vectors in, a composition out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from taskvec.config import Seeded
from taskvec.needs import Given, Needs, Scope, Signed

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors.composition import Composition

UNIT_GRID = tuple(round(0.05 * step, 2) for step in range(21))  # 0, 0.05, ..., 1
WIDE_GRID = tuple(round(0.1 * step, 1) for step in range(31))  # 0, 0.1, ..., 3


class Merge(Seeded):
    """Combines signed task vectors into one model, or into one model for each task (``models``).

    ``grid`` holds the coefficients that are searched unless the protocol or a transform says otherwise. ``stored``
    compositions, learned or dear ones, are artefacts; the others are made again from their vectors. ``learned`` merges
    have a ``schedule`` and an ``objective`` among their fields, and the grid (1.0,).
    """

    grid: ClassVar[tuple[float, ...]] = UNIT_GRID
    models: ClassVar[Literal["one", "per_task"]] = "one"
    stored: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard", "tangent"})

    def needs(self, scope: Scope) -> Needs:
        """Return what :meth:`compose` wants to be given besides the vectors."""
        return ()

    @abstractmethod
    def compose(self, base: Mapping[str, Tensor], vectors: Sequence[Signed], given: Given) -> Composition:
        """Return the composition of the vectors on the base weights theta_0."""

    def restore(self, base: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Composition:
        """Return a stored composition again; merges that are stored with another class than Scaled override it."""
        from taskvec.vectors.composition import Scaled

        return Scaled.unpack(base, tensors, meta)


class TensorWise(Merge):
    """A merge of each parameter by itself: one function serves memory, streams of files, and CUDA.

    ``elementwise`` functions may be given slices of a tensor in place of the whole; the others get one parameter at a
    time. ``survey`` is for thresholds over all parameters: it looks at the deltas, in as many passes as it likes, before
    the first call of :meth:`merge`.
    """

    elementwise: ClassVar[bool] = True

    def survey(self, deltas: Sequence[Mapping[str, Tensor]], given: Given | None) -> Any:
        """Return what :meth:`merge` needs to know of all parameters (thresholds, scales); None for most methods."""
        return None

    @abstractmethod
    def merge(
        self, name: str, base: Tensor, deltas: Sequence[Tensor | None], given: Given | None, surveyed: Any
    ) -> Tensor | None:
        """Return the merged delta of one parameter, or a slice of it.

        ``deltas`` holds each vector's signed delta in the order of the vectors, None where a vector leaves the
        parameter at theta_0; the result may be None too. They may be views and must not be written to.
        """

    def compose(self, base: Mapping[str, Tensor], vectors: Sequence[Signed], given: Given) -> Composition:
        """Return theta_0 + alpha * the merged vector."""
        from taskvec.vectors import TaskVector
        from taskvec.vectors.composition import Scaled

        deltas = [signed.delta for signed in vectors]
        surveyed = self.survey(deltas, given)
        merged = {}
        for name in names_of(deltas):
            parts = [delta[name] if name in delta else None for delta in deltas]
            found = self.merge(name, base[name], parts, given, surveyed)
            if found is not None:
                merged[name] = found
        return Scaled(base, TaskVector(merged))


def names_of(deltas: Iterable[Mapping[str, Tensor]]) -> list[str]:
    """Return the names of all parameters that any vector changes, each once, in order."""
    return list(dict.fromkeys(name for delta in deltas for name in delta))
