"""What an adapter is: labelled features of few examples in, a readout out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny

from taskvec import registry
from taskvec.config import Component
from taskvec.errors import UserError
from taskvec.needs import Scope

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.loop import Group


@dataclass(frozen=True)
class Shots:
    """Labelled examples of one task as the composed model sees them.

    ``features`` [n, d] have unit length, ``logits`` [n, C] are the head's, ``classes`` [n] int64; ``head`` [C, d].
    ``augmented`` are features and ``augmented_logits`` logits of ``copies`` crops of every example, [copies * n, ...]
    with all examples of one copy together.
    """

    features: Tensor
    logits: Tensor
    classes: Tensor
    head: Tensor
    augmented: Tensor
    augmented_logits: Tensor

    @property
    def repeated(self) -> Tensor:
        """The classes of the augmented examples."""
        return self.classes.repeat(len(self.augmented) // len(self.classes))

    def one_hot(self) -> Tensor:
        """Return the classes [n, C] as the features' numbers."""
        import torch.nn.functional as F

        return F.one_hot(self.classes, self.logits.shape[1]).to(self.features)


class Adapter(Component):
    """Something learned on the features of few labelled examples, after a merge or with it.

    ``joint`` adapters are trained together with a merge's coefficients (:meth:`start`, :meth:`groups`,
    :meth:`readout`); the others are fitted to the features of the merged model (:meth:`fit`). ``copies`` crops of every
    example are looked at by those that train on frozen features.
    """

    copies: int = 1

    joint: ClassVar[bool] = False

    def check(self, scope: Scope) -> None:
        """Check that the examples to learn on are labelled, and that the backbone's heads are vectors of features.

        Raises:
            UserError: naming what is missing.
        """
        named = f"merge.adapter={self.kind}"
        if not all(examples.labels for examples in scope.learning):
            raise UserError(
                f"{named} learns from labels, and the protocol grants examples without; leave it out"
            )
        if "zero_shot_heads" not in scope.backbone.gives:
            raise UserError(
                f"{named} works on features under a zero-shot head, which the backbone does not give"
            )

    @abstractmethod
    def fit(self, shots: Shots, seed: int) -> dict[str, Tensor]:
        """Return the readout (:mod:`taskvec.training.readouts`) that is fitted to examples."""

    def start(self, shots: Shots) -> dict[str, Tensor]:
        """Return the leaves of joint training at their start.

        Raises:
            NotImplementedError: for adapters that are not joint.
        """
        raise NotImplementedError(f"{self.kind} is not trained jointly")

    def groups(self, leaves: Mapping[str, Tensor], rate: float) -> list[Group]:
        """Return the leaves with their rates, as factors of the schedule's ``rate``.

        Raises:
            NotImplementedError: for adapters that are not joint.
        """
        raise NotImplementedError(f"{self.kind} is not trained jointly")

    def readout(self, leaves: Mapping[str, Tensor], shots: Shots) -> dict[str, Tensor]:
        """Return the readout that leaves make.

        Raises:
            NotImplementedError: for adapters that are not joint.
        """
        raise NotImplementedError(f"{self.kind} is not trained jointly")


def chosen(value: Any) -> Any:
    """Return the adapter of a name, or of a mapping with ``kind`` and settings; an adapter as it is.

    Raises:
        UserError: if no adapter has the name.
    """
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        return value
    entry = registry.lookup("adapter", str(value.get("kind")))
    return entry.schema.model_validate(dict(value))


# A field that takes a name
ChosenAdapter = Annotated[SerializeAsAny[Adapter], BeforeValidator(chosen)]
