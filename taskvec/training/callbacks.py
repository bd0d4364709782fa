"""What looks at training after every step: selection of the best epoch, averages, resets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Kept:
    """Keeps the leaves, on the CPU, after each of some shares of the training."""

    def __init__(self, leaves: Mapping[str, Tensor], shares: Sequence[float]):
        self.leaves, self.shares = leaves, shares
        self.found: dict[float, dict[str, Tensor]] = {}

    def __call__(self, moment: Moment) -> None:
        """Keep the leaves if a share of the training ends here, at least one step of it."""
        for share in self.shares:
            if moment.done == max(1, round(share * moment.total)):
                self.found[share] = self._now()

    def at(self, share: float) -> dict[str, Tensor]:
        """Return the leaves of a share; those of the end where training ended before."""
        return self.found.get(share) or self._now()

    def state(self) -> State:
        """Return what was kept so far."""
        return {repr(share): leaves for share, leaves in self.found.items()}

    def load(self, state: State) -> None:
        """Take up what was kept before."""
        self.found = {float(share): dict(leaves) for share, leaves in state.items()}

    def _now(self) -> dict[str, Tensor]:
        return {name: leaf.detach().to("cpu", copy=True) for name, leaf in self.leaves.items()}
