"""What a component is given when it computes: what it declared, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.graph.artefact import Node, Work
from taskvec.needs import Checkpointed, Examples, Need, Observe, Scope, Vector, View

if TYPE_CHECKING:
    from taskvec.graph.nodes.base import Base
    from taskvec.models.base import Model
    from taskvec.training.evaluator import Evaluator

Needed = Mapping[Need, Node]


def silent(step: int, total: int, metrics: Mapping[str, float]) -> None:
    """Observe nothing."""


@dataclass(frozen=True)
class Given:
    """Implements :class:`taskvec.needs.Given` on a workspace: needs are read when they are asked for."""

    work: Work
    scope: Scope
    needed: Needed
    base: Base
    origin: Base
    owner: str
    seed: int = 0
    forward: str = "standard"
    checkpoint: Checkpointed | None = None
    observe: Observe = silent
    views: Mapping[str, View] = field(default_factory=dict)
    start: Any = None
    ascend: bool = False
    kept: tuple[float, ...] = ()
    answers: Mapping[str, Any] = field(default_factory=dict)
    learning: Any = None
    objective: Any = None
    rounded: bool = False  # predictions with weights in bfloat16

    def __getitem__(self, need: Need) -> Any:
        """Return what a need stands for; a task vector on the device of the work.

        Raises:
            UserError: if it was not declared.
        """
        if need not in self.needed:
            raise UserError(f"{self.owner} asks for {need}, which its needs() did not declare")
        value = self.needed[need].value(self.work)
        if isinstance(need, Examples) and not need.labels:
            return value.unlabelled()
        if isinstance(need, Vector):
            return value.to(self.device)
        return value

    @property
    def model(self) -> Model:
        """The model of the result."""
        return self.base.value(self.work)

    @property
    def source(self) -> Model:
        """The model that the vector belongs to."""
        return self.origin.value(self.work)

    @property
    def device(self) -> str:
        """Where to compute."""
        return self.work.device

    @property
    def evaluator(self) -> Evaluator:
        """What turns weights and needs into logits and scores; it sees what was declared and nothing else."""
        from taskvec.training.evaluator import Evaluator

        compiled = self.base.compiled(self.work) if self.work.compile else None
        return Evaluator(
            self.model,
            self.__getitem__,
            bf16=self.work.bf16,
            rounded=self.rounded,
            compiled=compiled,
            batching=self.work.batching,
        )


def observer(work: Work, node: Node) -> Callable[[int, int, Mapping[str, float]], None]:
    """Return the callback that shows a node's progress."""
    return lambda step, total, metrics: work.observe(node, step, total, metrics)


@contextmanager
def untouched(component: Any, owner: str, work: Work, *bases: Base) -> Iterator[None]:
    """Check that a user's component leaves the weights of the models it was given as they were.

    They are shared by all that this process computes. Vectors, statistics and rows are read anew for each component.

    Raises:
        UserError: naming the component.
    """
    from taskvec.vectors import weights_hash

    if component is None or component.code is None:  # our own are tested
        yield
        return
    expected = [base.hash(work) for base in bases]
    yield
    for base, before in zip(bases, expected, strict=True):
        if weights_hash(base.value(work).parameters) != before:
            raise UserError(
                f"{owner} changes the weights of the model that it was given; let it work on copies"
            )
