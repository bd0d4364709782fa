"""What is refused when planning, each with the declared reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from taskvec.config import Component
from taskvec.errors import UserError
from taskvec.needs import Examples, ForwardMode, Grant, Needs, Statistics
from taskvec.protocols.base import Cell, Composed, Learning, Question
from taskvec.registry import lookup


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
            raise UserError(
                f"{owner} asks for {on.task}/{on.split}, the target, which vectors are made without"
            )


def labels_for(need: Statistics, owner: str) -> None:
    """Check that a statistic that takes the loss of labels is given some.

    Raises:
        UserError: naming it and who asks.
    """
    if need.what.labels and not need.on.labels:
        raise UserError(
            f"{owner}: the statistic {need.what.kind} takes the loss of labels, which it does not ask for"
        )


def some_merged(cells: Sequence[Cell], late: Sequence[str], protocol: str) -> None:
    """Check that something is merged where transforms stand after the merge.

    Raises:
        UserError: if no cell merges.
    """
    if late and not any(cell.composed.merge for cell in cells):
        raise UserError(
            f"transform.{late[0]}.on=merged: protocol={protocol} asks about the vectors themselves and merges none; "
            f"use transform.{late[0]}.on=vectors"
        )


def enough_models(composition: Any, question: Question, owner: str) -> None:
    """Check that a question can be asked of a composition's one model, or of its models per task.

    Raises:
        UserError: naming the merge that makes several.
    """
    if composition.models not in question.models:
        several = f"merge={composition.merge.kind} makes one for each"
        raise UserError(f"{owner} needs one model for all tasks, and {several}")


def same_mode(mode: ForwardMode, component: Component, owner: str) -> None:
    """Check that a component takes vectors of a forward mode.

    Raises:
        UserError: naming the modes that it takes.
    """
    if mode not in component.forward_modes:
        takes = " and ".join(sorted(component.forward_modes))
        raise UserError(f"{owner}={component.kind} takes {takes} vectors, and these are {mode}")


def learning_of(composed: Composed, merge: Any, protocol: Any) -> Learning:
    """Return what a learned merge learns on, by its own objective or else the protocol's, labels only if read.

    Raises:
        UserError: if there is nothing to learn on, or the objective wants labels that are not granted.
    """
    owner, learning = f"merge={merge.kind}", composed.learning
    if learning is None:
        raise UserError(
            f"{owner} is learned, and protocol={protocol.kind} gives it nothing to learn on"
        )
    if not merge.selects:
        learning = learning.unselected
    objective = merge.objective or lookup("objective", learning.objective).schema()
    labelled = all(examples.labels for examples in learning.examples)
    if objective.labels and not labelled:
        raise UserError(
            f"{owner}: objective {objective.kind} learns from labels, and protocol={protocol.kind} grants it examples "
            "without; set merge.objective to one that needs none"
        )
    examples = tuple(replace(need, labels=objective.labels) for need in learning.examples)
    return replace(learning, objective=objective, examples=examples)
