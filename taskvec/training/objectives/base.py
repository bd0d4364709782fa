"""What an objective is: which batches are seen, and the loss of one, given a model's logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeAlias

from pydantic import BeforeValidator, SerializeAsAny

from taskvec import registry
from taskvec.config import Component
from taskvec.needs import View
from taskvec.training.callbacks import State

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.callbacks import Callback
    from taskvec.training.schedule import Schedule

# (task, inputs [N, ...]) -> logits [N, C]
LogitsOf: TypeAlias = Callable[[str, "Tensor"], "Tensor"]


class MicroBatch(Protocol):
    """Examples whose loss is taken at once, in whatever form the objective that made them wants."""

    @property
    def size(self) -> int:
        """The number of examples, the micro-batch's weight in its step."""


class Steps(Protocol):
    """The micro-batches of each step, a function of seed, step and the objective's state alone."""

    per_epoch: int

    def at(self, step: int, state: State) -> Sequence[MicroBatch]:
        """Return the micro-batches of a step."""


class Objective(Component):
    """A registered objective; ``labels`` says whether it reads labels, which must then be granted.

    An objective keeps nothing: what it re-estimates as the model moves is the state that :meth:`epoch` returns, which
    training hands to :meth:`Steps.at` and :meth:`loss` and keeps in its checkpoint. What one loss notes for another of
    the same batch, when an optimiser asks again at moved weights, belongs into its batches.

    ``joint`` objectives play tasks against each other; of the others a learned merge takes the loss of each task alone.
    """

    labels: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    def steps(self, views: Mapping[str, View], schedule: Schedule, seed: int) -> Steps:
        """Return the batches: by default shuffled epochs over the union of the views, each image cropped once."""
        from taskvec.training.batches import Batches

        return Batches(
            views,
            batch_size=schedule.batch_size,
            accumulation=schedule.accumulation,
            seed=seed,
            crop=schedule.crop,
            labels=self.labels,
        )

    @abstractmethod
    def loss(self, logits_of: LogitsOf, batch: Any, state: State) -> Tensor:
        """Return the loss of a micro-batch, a mean over its examples; it may be asked again at moved weights."""

    def epoch(
        self, logits_of: LogitsOf, views: Mapping[str, View], epoch: int, epochs: int, state: State
    ) -> State:
        """Return the state before the first step of an epoch (0, 1, ... of ``epochs``), computed without gradients.

        ``state`` is the one so far, empty before the first epoch.
        """
        return {}

    def callbacks(self, leaves: Mapping[str, Tensor]) -> Sequence[Callback]:
        """Return what looks at the leaves after every step (:class:`taskvec.training.callbacks.Callback`)."""
        return ()

    def notes(self, state: State) -> dict[str, Tensor]:
        """Return what a learned merge keeps of a last state beside its coefficients, for questions: pseudo-labels."""
        return {}


def chosen(value: Any) -> Any:
    """Return the objective of a name, or of a mapping with ``kind`` and settings; an objective as it is.

    Raises:
        UserError: if no objective has the name.
    """
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        return value
    entry = registry.lookup("objective", str(value.get("kind")))
    return entry.schema.model_validate(dict(value))


# A field that takes a name
ChosenObjective = Annotated[SerializeAsAny[Objective], BeforeValidator(chosen)]
