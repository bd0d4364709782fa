"""What questions are given and protocols ask with, on models and views made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from taskvec.data.views import View
from taskvec.graph.asking import Asking, Chain
from taskvec.merge.task_arithmetic import TaskArithmetic
from taskvec.needs import Changed, Examples, Tuned
from taskvec.training.evaluator import Evaluator


class Given:
    """The part of :class:`taskvec.needs.Given` that questions use; ``asked`` lists the needs that were read."""

    def __init__(
        self,
        model: Any,
        views: Mapping[tuple[str, str], View],
        answers: Mapping[str, Any] | None = None,
    ):
        self.model, self.views, self.answers = model, views, answers or {}
        self.evaluator = Evaluator(model, self.__getitem__)
        self.asked: list[Examples] = []

    def __getitem__(self, need: Examples) -> View:
        self.asked.append(need)
        return self.views[need.task, need.split]


JOINT = "joint"


def ask(protocol: Any, suite: Any, *, joint: bool = False) -> Asking:
    """Return what a protocol asks with in a run of a suite; ``joint``: with one transform, which is fitted jointly."""
    transform = SimpleNamespace(on="vectors", joint=True, moves=False, grid=None)
    transforms = {JOINT: transform} if joint else {}
    backbone = SimpleNamespace(kind="any", gives=frozenset())
    method = SimpleNamespace(stored_as=lambda task, called: None)
    config = SimpleNamespace(
        suite=suite,
        protocol=protocol,
        choices={},
        backbone_of=lambda side: backbone,
        method_on=lambda side: method,
        backbone=backbone,
        source=None,
        transform=transforms,
        merge=TaskArithmetic(),
    )
    return Asking(config, Chain(config))


def tuned(*tasks: str, ascend: bool = False) -> Tuned:
    """Return the expression of a vector tuned on tasks."""
    return Tuned(
        tuple(Examples(task, "train", "learning", labels=True) for task in tasks), ascend=ascend
    )


def changed(task: str, among: str) -> Changed:
    """Return the expression of a task's vector after the joint transform, fitted over the tasks named by letters."""
    return Changed(tuned(task), JOINT, tuple(tuned(other) for other in among))
