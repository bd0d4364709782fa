"""Vectors that are there already: imported or published checkpoints and adapters take the place of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from taskvec.config import Config, immaterial
from taskvec.data.remote import Remote
from taskvec.errors import UserError
from taskvec.finetune.base import Finetune, Learned
from taskvec.models.remote import checkpoint_files
from taskvec.models.sources import Source
from taskvec.needs import Given, Needs, Scope
from taskvec.registry import register

TASK = "TASK"  # in a name: stands for the task's
KEY = "finetune=stored"


def _for_any_task(name: str) -> str:
    if TASK not in name:
        raise ValueError(f"must hold {TASK}, got {name!r}")
    return name


ByTask = Annotated[str, AfterValidator(_for_any_task)]


class Published(Config):
    """Checkpoints of the hub that were tuned from one base.

    ``base`` is the place of its weights (a folder or a name of the hub), ``model`` the hub's name of each, ``TASK`` for
    the task's, and ``megabytes`` about how large each is.
    """

    base: str
    model: ByTask
    megabytes: float | None = immaterial(None, ge=0)


@register("finetune", "stored", paper="vectors of others; spec suites 4")
class Stored(Finetune):
    """Each task's vector is that of a published checkpoint, or one that ``taskvec import vector`` made.

    ``published`` are checkpoints of the hub, one entry for each base, ``published_tasks`` what their authors call each
    task that there is one of (spec suites 4). Without them ``name`` is the import's below the outputs folder, with the
    task's name for ``TASK`` and the preset's for ``BACKBONE``; ``names`` gives single tasks other ones. A vector is
    evaluated in the forward mode that its file names.
    """

    kind: Literal["stored"] = "stored"
    name: ByTask = TASK
    names: dict[str, str] = {}
    published: tuple[Published, ...] = ()
    published_tasks: dict[str, str] = {}

    draws: ClassVar[bool] = False

    def stored_as(self, task: str, backbone: str) -> str:
        """Return the name of a task's vector."""
        named = self.name.replace("BACKBONE", backbone).replace(TASK, task)
        return self.names.get(task, named)

    def published_as(self, task: str, backbone: Any) -> str | None:
        """Return the hub's name of a task's checkpoint; None where vectors are imports.

        Raises:
            UserError: if none was tuned from the backbone, or on the task.
        """
        if not self.published:
            return None
        called = self.published_tasks.get(task)
        if called is None:
            known = ", ".join(self.published_tasks)
            raise UserError(f"{KEY}: no checkpoint of {task} is published here (of {known})")
        return self._of(backbone).model.replace(TASK, called)

    def remotes(self, tasks: Sequence[str], backbone: Any) -> list[Remote]:
        """Return the published checkpoints of some tasks.

        Raises:
            UserError: as :meth:`published_as`.
        """
        found: list[Remote] = []
        for task in tasks:
            model = self.published_as(task, backbone)
            if model is not None:
                source = Source(model, key=KEY)
                found.append(checkpoint_files(source, self._of(backbone).megabytes))
        return found

    def _of(self, backbone: Any) -> Published:
        """Return the checkpoints of a backbone.

        Raises:
            UserError: if there are none: a vector on other base weights is another one.
        """
        for entry in self.published:
            if entry.base == backbone.place:
                return entry
        known = ", ".join(entry.base for entry in self.published)
        raise UserError(
            f"{KEY}: its checkpoints were tuned from {known}, and the backbone is {backbone.place}"
        )

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
