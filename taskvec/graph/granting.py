"""What is refused when planning, each with the declared reason."""

from __future__ import annotations

from collections.abc import Sequence

from taskvec.config import Component
from taskvec.errors import UserError
from taskvec.needs import Examples, ForwardMode, Grant, Needs, Statistics


def granted(need: Examples, grants: Sequence[Grant], owner: str) -> None:
    """Check that a protocol lets a component see what it asks for.

    Raises:
        UserError: naming what is asked for, by whom, and what is granted for that use.
    """
    if any(grant.covers(need) for grant in grants):
        return
    labels = "with labels" if need.labels else "without labels"
    offers = []
    for grant in grants:
        known = grant.tasks is None or need.task in grant.tasks
        if grant.use == need.use and known:
            offers.append(f"{grant.split} {'with' if grant.labels else 'without'} labels")
    offered = ", ".join(offers) or "nothing"
    raise UserError(
        f"{owner} asks for {need.task}/{need.split} {labels} for {need.use}; the protocol grants {offered} of that task"
    )


def kept_back(needs: Needs, tasks: Sequence[str], owner: str) -> None:
    """Check that a component asks for nothing of the tasks that a vector must be made without.

    Raises:
        UserError: naming the task.
    """
    for need in needs:
        on = need.on if isinstance(need, Statistics) else need
        if isinstance(on, Examples) and on.task in tasks:
            raise UserError(f"{owner} asks for {on.task}/{on.split}, the target, which vectors are made without")


def same_mode(mode: ForwardMode, component: Component, owner: str) -> None:
    """Check that a component takes vectors of a forward mode.

    Raises:
        UserError: naming the modes that it takes.
    """
    if mode not in component.forward_modes:
        takes = " and ".join(sorted(component.forward_modes))
        raise UserError(f"{owner}={component.kind} takes {takes} vectors, and these are {mode}")
