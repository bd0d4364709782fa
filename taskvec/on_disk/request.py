"""What is asked for: which checkpoints, how they are merged, and what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from pydantic import Field

from taskvec.checkpoints.writing import SHARD_BYTES
from taskvec.config import Config
from taskvec.errors import UserError
from taskvec.merge.base import Merge, TensorWise, Weighted
from taskvec.merge.catalogue import data
from taskvec.merge.sparse.sparsified import Sparsified
from taskvec.on_disk.stacked import Place

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]


class Keys(Config):
    """The keys of ``taskvec merge``.

    ``base`` holds theta_0; methods that average weights need none. ``models`` are checkpoints, task vectors or
    adapters. ``dtype`` None keeps the base's. ``alpha`` is the scaling coefficient.
    """

    models: tuple[str, ...] = Field(min_length=1)
    out: str
    base: str | None = None
    merge: Any
    alpha: float = 1.0
    dtype: Dtype | None = None
    seed: int = Field(0, ge=0, lt=2**31)


class Rules(Protocol):
    """Which merge makes which tensor."""

    described: str

    def merge_of(self, name: str) -> TensorWise:
        """Return the merge of a tensor; equal ones are the same object."""

    def check(self, count: int) -> None:
        """Check the rules for a number of models; raises UserError."""

    @property
    def merges(self) -> Sequence[TensorWise]:
        """All merges that take part."""


@dataclass(frozen=True)
class Everywhere:
    """One merge for all tensors."""

    merge: TensorWise
    described: str

    def merge_of(self, name: str) -> TensorWise:
        """Return the merge."""
        return self.merge

    def check(self, count: int) -> None:
        """See :class:`Rules`."""
        check_merge(self.merge, count)

    @property
    def merges(self) -> Sequence[TensorWise]:
        """See :class:`Rules`."""
        return (self.merge,)


@dataclass(frozen=True)
class Request:
    """A merge of checkpoints on disk.

    ``zero`` says that the deltas are the weights themselves, on theta_0 = 0, although there is no base. ``tokenizer``
    is "base", "union" or a folder; None where vocabularies are the same. ``adapter`` is the rank of an adapter that is
    written in place of a model. Models may be stacks of layers of others. ``version`` is this program's, for the card.
    """

    models: tuple[Place, ...]
    out: Path
    rules: Rules
    base: Place | None = None
    zero: bool = False
    alpha: float = 1.0
    dtype: Dtype | None = None
    tokenizer: str | None = None
    adapter: int | None = None
    device: str = "cpu"
    shard_bytes: float = SHARD_BYTES
    notes: Sequence[str] = field(default=())
    recipe: str = ""
    version: str = ""


def tensor_wise(merge: Merge) -> TensorWise:
    """Return a merge that needs nothing but the tensors.

    Raises:
        UserError: for any other, with the reason.
    """
    seen = data(type(merge))
    if seen != "none":
        remedy = "run it in an experiment, `taskvec merge=... suite=...`"
        raise UserError(f"merge={merge.kind}: {_needs(seen)}, which files do not hold; {remedy}")
    if merge.models == "per_task":
        raise UserError(
            f"merge={merge.kind} makes a model for each task, not one; run it in an experiment, "
            "`taskvec merge=... suite=...`"
        )
    if not isinstance(merge, TensorWise):
        raise UserError(
            f"merge={merge.kind} looks at all tensors of all vectors at once, so it does not stream; run it in an "
            "experiment, or take a merge that does"
        )
    if getattr(merge, "of", "deltas") == "factors":
        raise UserError(
            "merge.of=factors merges factors, files are merged as deltas; use merge.of=deltas"
        )
    return merge


def check_merge(merge: TensorWise, count: int) -> None:
    """Check a merge for a number of models.

    Raises:
        UserError: if it takes another number, or has weights or densities for another number.
    """
    merge.check_count(count)
    if isinstance(merge, Weighted):
        merge.weights_for(count)
    if isinstance(merge, Sparsified):
        merge.check_densities(count)


def weights_note(merge: TensorWise, count: int) -> str:
    """Return what becomes of weights that do not sum to one; nothing where they do, or where there are none."""
    given = getattr(merge, "weights", None)
    total = sum(given or ())
    if given is None or abs(total - 1) < 1e-6:
        return ""
    if not merge.relative:
        return f"the weights sum to {total:g}; this merge is a mean and divides by it"
    return f"the weights sum to {total:g} and are used as given; weights of sum one make a mean of the deltas"


def _needs(seen: str) -> str:
    return seen if seen.startswith("learns") else f"needs {seen}"
