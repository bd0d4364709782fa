"""Vectors that are there already: imported checkpoints and adapters take the place of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import field_validator

from taskvec.errors import UserError
from taskvec.finetune.base import Finetune, Learned
from taskvec.needs import Given, Needs, Scope
from taskvec.registry import register


@register("finetune", "stored", paper="vectors of others; spec suites 4")
class Stored(Finetune):
    """Each task's vector is one that ``taskvec import vector`` put below the outputs folder, found by its name.

    ``name`` is the name, with the task's for ``TASK`` and the preset's for ``BACKBONE``; ``names`` gives single tasks
    other ones. A vector is evaluated in the forward mode that its file names.
    """

    kind: Literal["stored"] = "stored"
    name: str = "TASK"
    names: dict[str, str] = {}

    draws: ClassVar[bool] = False

    @field_validator("name")
    @classmethod
    def _by_task(cls, name: str) -> str:
        if "TASK" not in name:
            raise ValueError(f"must hold TASK, got {name!r}; 'names' gives single tasks a name")
        return name

    def stored_as(self, task: str, backbone: str) -> str:
        """Return the name of a task's vector."""
        named = self.name.replace("BACKBONE", backbone).replace("TASK", task)
        return self.names.get(task, named)

    def needs(self, scope: Scope) -> Needs:
        """Refuse to be planned: only a vector that was not imported is asked for here.

        Raises:
            UserError: naming what would have to be learned.
        """
        raise UserError(missing(scope.tasks))

    def learn(self, given: Given) -> Learned:
        """Refuse as :meth:`needs` does.

        Raises:
            UserError: naming what would have to be learned.
        """
        raise UserError(missing(given.scope.tasks))


def missing(tasks: Sequence[str]) -> str:
    """Return the message about a vector that no import has."""
    named = "+".join(tasks)
    return (
        f"finetune=stored learns nothing, and a vector is asked for that no import has: one tuned on {named} "
        "jointly, by ascent or on part of the data"
    )
