"""Another task's vector in place of the own one: the control that asks whether a vector's content matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.needs import Given, Needs, Scope, Vector, tasks_of
from taskvec.registry import register
from taskvec.transform.base import Fit, Transform

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector


@register("transform", "other_task", paper="a control; spec theseus 1.5")
class OtherTask(Transform):
    """tau_t <- tau_u, where u stands ``shift`` places after t among the tasks that the run may use.

    It stands before a transform that moves vectors: ``transform=[other_task,theseus]``.
    """

    kind: Literal["other_task"] = "other_task"
    shift: int = Field(1, ge=1)

    joint: ClassVar[bool] = True

    def needs(self, scope: Scope) -> Needs:
        """Return every task's vector.

        Raises:
            UserError: if no other task is there.
        """
        if self.shift % len(scope.tasks) == 0:
            raise UserError(
                f"transform.other_task: {self.shift} places after a task of {', '.join(scope.tasks)} stands the task "
                "itself; take more tasks or another shift"
            )
        return [scope.vector(task) for task in scope.tasks]

    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the other task's vector."""
        tasks = given.scope.tasks
        place = tasks.index(tasks_of(of)[0])
        other = tasks[(place + self.shift) % len(tasks)]
        return given[given.scope.vector(other)]
