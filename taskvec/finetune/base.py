"""What a fine-tuning method is: the views of some tasks in, one task vector out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.config import Seeded
from taskvec.data.remote import Remote
from taskvec.needs import ForwardMode, Given, Needs, Scope

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import TaskVector


@dataclass(frozen=True)
class Learned:
    """A task vector, the heads that were learned with it (by task), the training curve, and a report.

    ``course`` holds the vector and heads of each share of the training that was to be kept.
    """

    vector: TaskVector
    heads: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    course: dict[float, Learned] = field(default_factory=dict)


class Finetune(Seeded):
    """Learns one vector from ``given.views``; see :class:`taskvec.finetune.recipe.Recipe` for the papers' recipe.

    ``keeps`` says whether the method can keep shares of its training (``given.kept``).
    """

    draws: ClassVar[bool] = True
    keeps: ClassVar[bool] = False

    @property
    def mode(self) -> ForwardMode:
        """The forward mode that vectors of this method are evaluated in."""
        return "standard"

    def resolved(self, backbone: Any) -> Finetune:
        """Return the method with everything that was left open filled in from the recipe of a backbone."""
        return self

    def stored_as(self, task: str, backbone: str) -> str | None:
        """Return the name under which a task's vector was imported; None for methods that learn it."""
        return None

    def published_as(self, task: str, backbone: Any) -> str | None:
        """Return the hub's name of the checkpoint that a task's vector is taken from; None for methods that learn it.

        Raises:
            UserError: if there is none of the task, or of the backbone.
        """
        return None

    def remotes(self, tasks: Sequence[str], backbone: Any) -> Sequence[Remote]:
        """Return the checkpoints that tasks' vectors are taken from."""
        return ()

    def needs(self, scope: Scope) -> Needs:
        """Return what :meth:`learn` wants to be given besides the views."""
        return ()

    @abstractmethod
    def learn(self, given: Given) -> Learned:
        """Return the vector that the method learns on ``given.views``, from ``given.start`` or theta_0."""
