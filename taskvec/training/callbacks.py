"""What looks at training after every step: selection of the best epoch, averages, resets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = Mapping[str, Any]  # tensors and JSON values, nested in mappings


class Moment(NamedTuple):
    """Where training is after a step: steps done, of how many, how many make an epoch, and the step's loss (0-d).

    ``moved`` is the loss when the optimiser asked last, which is another one if it asks at moved weights (SAM).
    """

    done: int
    total: int
    per_epoch: int
    loss: Tensor
    moved: Tensor | None = None

    @property
    def ends_epoch(self) -> bool:
        """Whether an epoch, or the training, ends here."""
        return self.done % self.per_epoch == 0 or self.done == self.total


# What a callback may say: end the training; forget the optimiser's state
END, FORGET = "end", "forget"


class Callback(Protocol):
    """Something that looks at the leaves after every step, and may change them or say :data:`END` or :data:`FORGET`.

    What it remembers is its state, of tensors and JSON values, which the checkpoint keeps.
    """

    def __call__(self, moment: Moment) -> str | bool | None:
        """Look at training after a step; True ends it as :data:`END` does."""

    def state(self) -> State:
        """Return what the callback remembers."""

    def load(self, state: State) -> None:
        """Take up a remembered state."""
