"""What a method may see of a task: rows of one split, labels where they were granted, and the task's head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from taskvec.errors import UserError
from taskvec.needs import Beyond

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.data.shards import OnDevice, Resident, Shards
    from taskvec.needs import Budget


class NotGrantedError(UserError, PermissionError):
    """Labels were asked for that the protocol does not let this component see."""


@dataclass(frozen=True)
class View:
    """Rows of one split of one task, whatever they are stored in.

    Inputs are uint8 images [3, H, W] or int32 token ids [L] padded with -1; ``targets`` [N] int64 classes or float32
    scores are read through :meth:`labels`; ``head`` is the task's (see ``Backbone.heads``). ``chosen`` are the stored
    rows that the view shows, None for all. A corpus has neither targets nor head. ``name`` is TASK/SPLIT.
    """

    name: str
    stored: Shards | OnDevice
    targets: Tensor | None = None
    head: Tensor | None = None
    granted: bool = True
    chosen: Tensor | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, name: str, head: Tensor | None = None) -> View:
        """Return a view of a decoded split: ``inputs``, or ``inputs/00000``, ``inputs/00001``, ..., and ``labels``."""
        from taskvec.data.shards import Shards

        return cls(name, Shards.of(tensors), tensors.get("labels"), head)

    def __len__(self) -> int:
        return len(self.stored) if self.chosen is None else len(self.chosen)

    @property
    def labelled(self) -> bool:
        """Whether there are labels and they were granted."""
        return self.granted and self.targets is not None

    @property
    def regression(self) -> bool:
        """Whether the task's labels are scores."""
        return self.targets is not None and self.targets.is_floating_point()

    def take(self, rows: Tensor | slice) -> Tensor:
        """Return a copy of the inputs of some rows [n, ...], on the view's device."""
        return self.stored.take(self._stored_rows(rows))

    def labels(self, rows: Tensor | slice | None = None) -> Tensor:
        """Return the labels of some rows, or of all, on the view's device.

        Raises:
            NotGrantedError: if the labels were not granted, or the split has none.
        """
        if not self.labelled:
            raise NotGrantedError(f"labels of {self.name} were not granted")
        asked = slice(None) if rows is None else rows
        wanted = self._stored_rows(asked)
        return self.targets[wanted.to(self.targets.device)]

    def lengths(self) -> Tensor | None:
        """Return the number of tokens of each text [N] int64 on the CPU; None for images."""
        lengths = self.stored.lengths()
        if lengths is None or self.chosen is None:
            return lengths
        return lengths[self.chosen]

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor | slice]:
        """Yield the rows of each batch, the last one shorter: slices, or with ``order`` [n] its pieces."""
        count = len(self) if order is None else len(order)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            yield rows if order is None else order[rows]

    def select(self, rows: Tensor) -> View:
        """Return the view of some rows [n] int64 of this one, in their order: a budget's subset."""
        return replace(self, chosen=self._stored_rows(rows))

    def unlabelled(self) -> View:
        """Return the same rows without their labels."""
        return replace(self, granted=False)

    def to(self, device: str, limit: int | Resident | None = None) -> View:
        """Return the view with what is taken, its labels and its head on a device.

        On a device other than the CPU, whole shards stay there once used, up to ``limit``: bytes for this view alone,
        or the room that several views share. The other rows are moved when they are taken.
        """
        targets = None if self.targets is None else self.targets.to(device)
        head = None if self.head is None else self.head.to(device)
        return replace(self, stored=self.stored.to(device, limit), targets=targets, head=head)

    def _stored_rows(self, rows: Tensor | slice) -> Tensor:
        """Return the stored rows [n] int64, on the CPU, that rows of the view stand for."""
        import torch

        if isinstance(rows, slice):
            rows = torch.arange(len(self))[rows]
        rows = rows.cpu()
        return rows if self.chosen is None else self.chosen[rows]


def chosen(view: View, budget: Budget) -> Tensor:
    """Return the rows [n] int64 of a view within a budget, drawn without replacement by its seed, in ascending order.

    ``count`` rows, or ``fraction`` of them (at least one), out of a permutation of all; or the first ``shots`` of each
    class in that permutation, for which the view must be labelled.

    Raises:
        UserError: if a class has fewer examples than ``shots``, or no rows are left after those of a ``Beyond``.
    """
    import torch

    order = torch.randperm(len(view), generator=torch.Generator().manual_seed(budget.seed))
    if isinstance(budget, Beyond):
        order = order[budget.after :]
        if not len(order):
            raise UserError(
                f"{view.name} has {len(view)} examples, and none beyond the first {budget.after}; ask for fewer"
            )
    if budget.shots is None:
        count = (
            budget.count if budget.fraction is None else max(1, round(budget.fraction * len(view)))
        )
        return order[:count].sort().values
    labels = view.labels(order).cpu()
    parts = []
    for label in labels.unique().tolist():
        own = order[labels == label]
        if len(own) < budget.shots:
            raise UserError(
                f"{view.name}: class {label} has {len(own)} examples, {budget.shots} shots were asked for"
            )
        parts.append(own[: budget.shots])
    return torch.cat(parts).sort().values
