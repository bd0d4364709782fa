"""What a merge is: signed task vectors in, a composition out."""

from __future__ import annotations

import shlex
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import yaml
from pydantic import Field

from taskvec.config import Seeded
from taskvec.errors import UserError
from taskvec.merge.piece import Deltas, Grain, Piece
from taskvec.needs import Given, Needs, Scope, Signed, label_of

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import Tensors
    from taskvec.vectors.composition import Composition

UNIT_GRID = tuple(round(0.05 * step, 2) for step in range(21))  # 0, 0.05, ..., 1
WIDE_GRID = tuple(round(0.1 * step, 1) for step in range(31))  # 0, 0.1, ..., 3
AS_IT_IS = (1.0,)  # of merges whose result has a scale of its own


@dataclass(frozen=True)
class Convention:
    """What one framework or paper means by a merge, and the overrides that give its numbers (none: the defaults).

    ``offered`` false: its behaviour is a defect, or needs what a merge does not have; the remark says which.
    """

    source: str
    overrides: str = ""
    remark: str = ""
    offered: bool = True

    def options(self) -> dict[str, Any]:
        """Return the overrides as fields of the merge and their values."""
        found: dict[str, Any] = {}
        for word in shlex.split(self.overrides):
            key, value = word.split("=", 1)
            *records, field = key.removeprefix("merge.").split(".")
            place = found
            for record in records:
                place = place.setdefault(record, {})
            place[field] = yaml.safe_load(value)
        return found


class Merge(Seeded):
    """Combines signed task vectors into one model, or into one model for each task (``models``).

    ``grid`` holds the coefficients that are searched unless the protocol or a transform says otherwise. ``stored``
    compositions, learned or dear ones, are artefacts; the others are made again from their vectors. ``learned`` merges
    have a ``schedule`` and an ``objective`` among their fields, and the grid (1.0,); those that ``selects`` can keep
    their best epoch by the protocol's rule. ``vectors`` bounds how many task vectors the merge takes. ``direction``
    says that the result is theta_0 plus a coefficient times one vector, which a transform after the merge can change.
    ``conventions`` say which framework means what.
    """

    grid: ClassVar[tuple[float, ...]] = UNIT_GRID
    models: ClassVar[Literal["one", "per_task"]] = "one"
    stored: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard", "tangent"})
    vectors: ClassVar[tuple[int, int | None]] = (1, None)
    direction: ClassVar[bool] = True
    conventions: ClassVar[tuple[Convention, ...]] = ()

    def needs(self, scope: Scope) -> Needs:
        """Return what :meth:`compose` wants to be given besides the vectors."""
        return ()

    @abstractmethod
    def compose(self, base: Tensors, vectors: Sequence[Signed], given: Given) -> Composition:
        """Return the composition of the vectors on the base weights theta_0."""

    def restore(self, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Composition:
        """Return a stored composition again; merges that are stored with another class than Scaled override it."""
        from taskvec.vectors.composition import Scaled

        return Scaled.unpack(base, tensors, meta)

    def seed_of(self, given: Given | None) -> int:
        """Return the seed of what the merge draws: its own, else the run's."""
        if self.seed is not None:
            return self.seed
        return given.seed if given is not None else 0

    def check_count(self, count: int) -> None:
        """Check a number of vectors.

        Raises:
            UserError: for one that the merge does not take.
        """
        least, most = self.vectors
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if most == least else f"{least} or more"
            raise UserError(f"merge={self.kind} takes {wanted} task vectors, not {count}")

    def checked(self, vectors: Sequence[Signed]) -> list[Tensors]:
        """Return the vectors' signed deltas after a look at each entry.

        Raises:
            UserError: for a number of vectors that the merge does not take, or a delta that is not finite.
        """
        from taskvec.merge.pieces import require_finite

        self.check_count(len(vectors))
        deltas = [signed.delta for signed in vectors]
        for signed, delta in zip(vectors, deltas, strict=True):
            require_finite(delta, label_of(signed.expression))
        return deltas


class TensorWise(Merge):
    """A merge of each parameter by itself: one function serves memory, streams of files, and CUDA.

    ``grain`` is what :meth:`merge` can be given in place of a whole parameter: any run of its entries [n], some of its
    rows [rows, entries per row] (a parameter with fewer than two axes is one row), or nothing less than the tensor.
    :meth:`survey` is for what depends on all of a parameter or of the model (thresholds, norms): it reads the deltas
    before the first call of :meth:`merge`, in as many passes as it likes.

    Half precision is merged in float32; the result has the dtype to which the deltas promote.
    """

    grain: ClassVar[Grain] = "entry"

    def grain_of(self, name: str, shape: Sequence[int]) -> Grain:
        """Return what :meth:`merge` is given of one parameter: ``grain``, or something smaller that does for it."""
        return self.grain

    @property
    def relative(self) -> bool:
        """Whether theta_0 makes a difference to the merged weights; a mean of weights is the same on any."""
        return True

    @property
    def over_model(self) -> bool:
        """Whether :meth:`survey` looks across parameters; else what it says of one follows from that one alone."""
        return False

    @property
    def passes(self) -> int:
        """How often the deltas are read, at most: once for :meth:`merge`, the other times for :meth:`survey`."""
        return 1

    def centre(self, piece: Piece) -> Tensor | None:
        """Return what is added to theta_0 whatever alpha is; None for nothing."""
        return None

    def survey(self, base: Tensors, deltas: Deltas, given: Given | None) -> Any:
        """Return what :meth:`merge` needs to know beyond its piece; None for most methods."""
        return None

    @abstractmethod
    def merge(self, piece: Piece, given: Given | None, surveyed: Any) -> Tensor | None:
        """Return the merged delta of a piece, in its shape; None where it is zero by declaration."""

    def compose(self, base: Tensors, vectors: Sequence[Signed], given: Given) -> Composition:
        """Return theta_0 + alpha * the merged vector."""
        from taskvec.vectors.composition import Scaled

        return Scaled(base, self.merged(base, self.checked(vectors), given))

    def merged(self, base: Tensors, deltas: Deltas, given: Given | None) -> Any:
        """Return the merged task vector of signed deltas that were checked."""
        from taskvec.merge.pieces import merge_parameter
        from taskvec.vectors import TaskVector
        from taskvec.vectors.deferred import like

        surveyed = self.survey(base, deltas, given)

        def merge(piece: Piece) -> Tensor | None:
            return self.merge(piece, given, surveyed)

        merged = {}
        for name in names_of(deltas):
            grain = self.grain_of(name, like(base, name).shape)
            found = merge_parameter(merge, grain, name, base, deltas)
            if found is not None:
                merged[name] = found
        return TaskVector(merged)


class Weighted(TensorWise):
    """A merge in which each vector may have a weight of its own, in the order of the vectors (None: one for all)."""

    weights: tuple[float, ...] | None = Field(None, min_length=1)

    def weights_for(self, count: int) -> tuple[float, ...]:
        """Return a weight for each of ``count`` vectors.

        Raises:
            UserError: if ``weights`` holds another number of them.
        """
        if self.weights is None:
            return (1.0,) * count
        if len(self.weights) != count:
            raise UserError(
                f"merge.weights holds {len(self.weights)} numbers, there are {count} task vectors"
            )
        return self.weights

    def shares_for(self, count: int) -> list[float]:
        """Return the weights divided by their sum.

        Raises:
            UserError: if they sum to zero.
        """
        weights = self.weights_for(count)
        total = sum(weights)
        if total == 0:
            raise UserError("merge.weights sum to zero, so their shares are undefined")
        return [weight / total for weight in weights]


def names_of(deltas: Iterable[Tensors]) -> list[str]:
    """Return the names of all parameters that any vector changes, each once, in order."""
    return list(dict.fromkeys(name for delta in deltas for name in delta))
