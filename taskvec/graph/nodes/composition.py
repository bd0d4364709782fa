"""Compositions: models made of signed vectors, stored where they were learned or are dear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.errors import UserError
from taskvec.graph.artefact import Content, Node, Work, aside
from taskvec.graph.given import Given, observer, untouched
from taskvec.graph.nodes.base import Base
from taskvec.graph.nodes.vector import VectorNode
from taskvec.merge.base import Merge
from taskvec.needs import (
    AnswerOf,
    Examples,
    ForwardMode,
    Merged,
    Need,
    Scope,
    Signed,
    Vector,
    tasks_of,
)
from taskvec.protocols.base import Learning

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors.composition import Composition


@dataclass(frozen=True, eq=False)
class CompositionNode(Node):
    """Signed vectors under a merge, or summed as they are (``merge`` None); ``mode`` is its forward mode."""

    kind: ClassVar[str] = "composition"

    base: Base
    vectors: tuple[VectorNode, ...]
    signs: tuple[float, ...]
    merge: Merge | None
    separate: bool
    mode: ForwardMode
    needed: Mapping[Need, Node] = field(default_factory=dict)
    objective: Any = None
    select: Any = None
    precision: str | None = None
    expressions: tuple[Vector, ...] = aside(default=())
    learning: Learning | None = aside(default=None)
    scope: Scope | None = aside(default=None)

    @property
    def stored(self) -> bool:
        """Whether the merge is learned or dear."""
        return self.merge is not None and self.merge.stored

    @property
    def label(self) -> str:
        """The merge and its tasks."""
        tasks = dict.fromkeys(
            task for expression in self.expressions for task in tasks_of(expression)
        )
        name = "sum" if self.merge is None else self.merge.kind
        return f"{name} of {'+'.join(tasks) if tasks else 'nothing'}"

    @property
    def models(self) -> str:
        """Whether there is one model for all tasks or one per task."""
        return "one" if self.merge is None else self.merge.models

    def sees(self) -> Iterable[Examples]:
        """Return the examples that it is learned on, and those among the merge's needs."""
        return [need for need in self.needed if isinstance(need, Examples)]

    def signed(self, work: Work) -> list[Signed]:
        """Return the vectors as a merge gets them, on the device."""
        found = []
        for expression, sign, node in zip(self.expressions, self.signs, self.vectors, strict=True):
            found.append(Signed(expression, sign, node.value(work).to(work.device)))
        return found

    def given(self, work: Work) -> Given:
        """Return what the merge works with."""
        merge, compared = self.merge, self.learning.needs if self.learning else ()
        answers = {name: self.needed[AnswerOf(cell)].value(work) for name, cell in compared}
        checkpoint = work.checkpoint(self, merge) if self.stored else None
        return Given(
            work, self.scope, self.needed, self.base, self.base, f"merge={merge.kind}",
            seed=merge.seed or 0,
            forward=self.mode,
            checkpoint=checkpoint,
            observe=observer(work, self),
            answers=answers,
            learning=self.learning,
            objective=self.objective,
        )  # fmt: skip

    def make(self, work: Work) -> Composition:
        """Compose the vectors."""
        from taskvec.vectors import TaskVector
        from taskvec.vectors.composition import Scaled, Summed

        signed, base = self.signed(work), self.base.value(work).parameters
        if self.merge is not None:
            with untouched(self.merge, f"merge={self.merge.kind}", work, self.base):
                return self.merge.compose(base, signed, self.given(work))
        if self.separate:
            return Summed(base, {vector.tasks[0]: vector.delta for vector in signed})
        heads: dict[str, Tensor] = {}
        for node in self.vectors:
            for task, head in node.heads(work).items():
                heads[task] = head.to(work.device)
        return Scaled(base, sum((vector.delta for vector in signed), TaskVector({})), heads)

    def compute(self, work: Work) -> Content:
        """Learn the composition."""
        made = self.make(work)
        tensors, meta = made.pack()
        return Content(tensors, {"composition": meta, "report": dict(getattr(made, "report", {}))})

    def value(self, work: Work) -> Composition:
        """Return the composition, with its forward mode."""
        return work.keep(self, lambda: self._value(work))

    def _value(self, work: Work) -> Composition:
        if self.stored:
            content = work.get(self)
            moved = {name: tensor.to(work.device) for name, tensor in content.tensors.items()}
            made = self.merge.restore(
                self.base.value(work).parameters, moved, content.meta["composition"]
            )
        else:
            made = self.make(work)
        made.forward = self.mode
        return made


@dataclass(frozen=True, eq=False)
class Apart(CompositionNode):
    """A model for each of ``tasks``: theta_0 + alpha times its own vector, one coefficient for all."""

    kind: ClassVar[str] = "apart"

    tasks: tuple[str, ...] = ()

    @property
    def models(self) -> str:
        """One per task."""
        return "per_task"

    def make(self, work: Work) -> Composition:
        """Give each task its vector."""
        from taskvec.vectors.composition import PerTask

        deltas = [vector.delta for vector in self.signed(work)]
        own = dict(zip(self.tasks, deltas, strict=True))
        return PerTask(self.base.value(work).parameters, own)


@dataclass(frozen=True, eq=False)
class MergedVector(VectorNode):
    """The one vector that a merge makes, for transforms after the merge and warm starts."""

    kind: ClassVar[str] = "vector"

    composition: CompositionNode

    def compute(self, work: Work) -> Content:
        """Take the composition's direction.

        Raises:
            UserError: if the merge gives no vector that one coefficient scales.
        """
        made = self.composition.value(work)
        direction = None if made.per_task else made.direction()
        if direction is None:
            merge = self.composition.merge
            name = "sum" if merge is None else merge.kind
            raise UserError(
                f"merge={name} does not give one vector, which a transform with on=merged or a start wants"
            )
        expression: Merged = self.expression
        return self.packed(work, direction, {"parts": len(expression.parts)})
