"""What takes part in a pass: an accumulator, what it sees of a forward pass, and where it wants backward passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.passes.taps import Visitors


@dataclass(frozen=True)
class Forward:
    """What the forward pass of one model over some examples gave.

    ``first`` is the number of the first example, ``labels`` [N] are there where they were granted, and ``parameters``
    the weights that the pass used (empty at theta_0, unless gradients with respect to them are wanted).
    """

    model: Any
    parameters: Mapping[str, Tensor]
    head: Tensor | None
    side: int
    first: int
    features: Tensor
    labels: Tensor | None

    @cached_property
    def logits(self) -> Tensor:
        """The class scores [N, C] in float32 or better.

        Raises:
            UserError: if there is no head to score with.
        """
        import torch

        if self.head is None:
            raise UserError("a loss needs the task's head, and these examples have none")
        logits = self.model.logits(self.features, self.head, self.parameters)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Root(NamedTuple):
    """Where a backward pass starts.

    ``tensor`` comes from the forward pass, ``gradient`` makes that of the objective with respect to it (None: the
    tensor is a scalar). ``receive`` gets the gradients of all editable parameters by name; an accumulator that only
    looks at taps leaves it out.
    """

    tensor: Tensor
    gradient: Callable[[], Tensor] | None = None
    receive: Callable[[Mapping[str, Tensor]], None] | None = None


class Accumulator(ABC):
    """The running sums of one statistic in one pass over the examples.

    A pass runs the model (of a pair both, side 0 the source and side 1 the target, on the same examples) and shows each
    batch to the visitors of all accumulators that it serves; then it runs backwards from their roots, one accumulator
    after the other, and only the taps of the root's owner listen. ``precision`` is the dtype that taps show tokens in.
    ``group`` cuts the examples into groups of that size, counted from the first one, for gradients that are needed
    group by group; None takes them as they come. ``weights``: roots receive the gradients of the parameters.
    """

    precision: str = "float32"
    group: int | None = None
    weights: bool = False

    def visitors(self, side: int) -> Sequence[Visitors]:
        """Return what looks at the tokens of which place; several mappings where one place has several visitors."""
        return ()

    def copies(self) -> Mapping[str, Callable[[Tensor], None]]:
        """Return, by the name of a parameter [d], what sees its gradient on each example [N, d].

        The pass gives every example a copy [1, d] of it.
        """
        return {}

    def roots(self, forward: Forward) -> Sequence[Root]:
        """Return the backward passes that the accumulator wants; none where its statistic takes no gradient."""
        return ()

    @abstractmethod
    def finish(self, examples: int) -> Accumulator | Any:
        """Return the statistic's value, or the accumulator of a further pass over the same examples."""
