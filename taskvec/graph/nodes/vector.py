"""Task vectors: tuned, drawn, imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.finetune.base import Finetune
from taskvec.graph.artefact import Content, Node, Work, aside
from taskvec.graph.given import Given, observer, untouched
from taskvec.graph.nodes.base import Base
from taskvec.graph.nodes.examples import Rows
from taskvec.graph.nodes.head import HEAD
from taskvec.needs import Drawn, Examples, ForwardMode, Need, Scope, Tuned, Vector, label_of

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.finetune.base import Learned
    from taskvec.vectors import TaskVector


@dataclass(frozen=True, eq=False)
class VectorNode(Node):
    """A vector on some base weights; ``mode`` is the forward mode it is evaluated in."""

    copies: ClassVar[int] = 1

    kind: ClassVar[str] = "vector"

    base: Base
    expression: Vector = aside()
    mode: ForwardMode = aside()

    @property
    def label(self) -> str:
        """What the vector is."""
        return f"vector {label_of(self.expression)}"

    def value(self, work: Work) -> TaskVector:
        """Return the vector, on the CPU; its deltas are read from the store as they are used.

        Raises:
            ValueError: if it was made from other base weights.
        """
        from taskvec.vectors import TaskVector

        content = work.get(self)
        deltas = {
            name: tensor for name, tensor in content.tensors.items() if not name.startswith(HEAD)
        }
        return TaskVector.unpack(deltas, content.meta["vector"], base_hash=self.base.hash(work))

    def heads(self, work: Work) -> dict[str, Tensor]:
        """Return the heads, by task, that belong to this vector alone; empty where the task's own head serves."""
        return {}

    def packed(self, work: Work, vector: TaskVector, more: Mapping[str, Any]) -> Content:
        """Return a vector's content with what it was made from."""
        made_on = {
            "base_hash": self.base.hash(work),
            "backbone": self.base.spec(),
            "forward_mode": self.mode,
        }
        tensors, header = vector.to("cpu").pack()
        return Content(tensors, {"vector": header | {"metadata": made_on}} | dict(more))


@dataclass(frozen=True, eq=False)
class TunedVector(VectorNode):
    """What the run's fine-tuning method learns on one task, or jointly on several."""

    method: Finetune
    views: Mapping[str, Rows]
    needed: Mapping[Need, Node]
    start: VectorNode | None
    ascend: bool
    precision: str
    scope: Scope = aside()

    def sees(self) -> Iterable[Examples]:
        """Return what it learns on, and what its penalty looks at."""
        expression: Tuned = self.expression
        return [*expression.on, *(need for need in self.needed if isinstance(need, Examples))]

    def compute(self, work: Work) -> Content:
        """Fine-tune."""
        learned = self.learned(work)
        content = self.packed(
            work, learned.vector, {"curve": learned.curve, "report": learned.report}
        )
        heads = {HEAD + task: head.cpu() for task, head in learned.heads.items()}
        return Content({**content.tensors, **heads}, content.meta)

    def learned(self, work: Work, kept: tuple[float, ...] = ()) -> Learned:
        """Return what the method learns, and its course at some shares of the training."""
        start = None if self.start is None else self.start.value(work)
        given = Given(
            work, self.scope, self.needed, self.base, self.base, f"finetune={self.method.kind}",
            seed=self.method.seed or 0,
            forward=self.mode,
            checkpoint=work.checkpoint(self, self.method),
            observe=observer(work, self),
            views={task: rows.value(work) for task, rows in self.views.items()},
            start=start,
            ascend=self.ascend,
            kept=kept,
        )  # fmt: skip
        with untouched(self.method, f"finetune={self.method.kind}", work, self.base):
            return self.method.learn(given)


@dataclass(frozen=True, eq=False)
class DrawnVector(VectorNode):
    """A Gaussian vector with the norms of another, tensor by tensor."""

    kind: ClassVar[str] = "vector"

    like: VectorNode
    seed: int

    @classmethod
    def of(cls, expression: Drawn, like: VectorNode) -> DrawnVector:
        """Return the vector of an expression."""
        return cls(like.base, expression, like.mode, like, expression.seed)

    def compute(self, work: Work) -> Content:
        """Draw it."""
        import torch

        from taskvec.vectors import random_like

        generator = torch.Generator().manual_seed(self.seed)
        return self.packed(work, random_like(self.like.value(work), generator), {})
