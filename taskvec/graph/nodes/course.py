"""The course of a training: the vectors that stood at some shares of it, and what a cell's model adds to theta_0."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.errors import UserError
from taskvec.graph.artefact import Content, Work
from taskvec.graph.nodes.answer import AnswerNode
from taskvec.graph.nodes.head import HEAD
from taskvec.graph.nodes.vector import TunedVector, VectorNode
from taskvec.needs import Selected

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import TaskVector


@dataclass(frozen=True, eq=False)
class Course(TunedVector):
    """One training with the vectors and heads after the shares ``kept``, as AT/NAME and AT/head/TASK."""

    kind: ClassVar[str] = "course"

    kept: tuple[float, ...]

    @classmethod
    def of(cls, tuned: TunedVector, kept: tuple[float, ...]) -> Course:
        """Return the training of a vector, of which some shares are kept.

        Raises:
            UserError: if the fine-tuning method cannot keep any.
        """
        if not tuned.method.keeps:
            raise UserError(
                f"finetune={tuned.method.kind} keeps no vectors along its training; leave protocol.starts out"
            )
        parts = {part.name: getattr(tuned, part.name) for part in fields(tuned)}
        return cls(**parts, kept=kept)

    @property
    def label(self) -> str:
        """What is trained."""
        return f"course of {super().label}"

    @property
    def copies(self) -> int:
        """One set of weights for each share."""
        return len(self.kept)

    def compute(self, work: Work) -> Content:
        """Fine-tune, and keep what stood at each share."""
        learned = self.learned(work, self.kept)
        tensors: dict[str, Tensor] = {}
        headers: dict[str, Any] = {}
        for share, then in learned.course.items():
            content = self.packed(work, then.vector, {})
            heads = {HEAD + task: head.cpu() for task, head in then.heads.items()}
            headers[repr(share)] = content.meta["vector"]
            for name, tensor in {**content.tensors, **heads}.items():
                tensors[f"{share!r}/{name}"] = tensor
        meta = {"vectors": headers, "curve": learned.curve, "report": learned.report}
        return Content(tensors, meta)


@dataclass(frozen=True, eq=False)
class SnapshotVector(VectorNode):
    """The vector after one share of a training; it lies in the course."""

    kind: ClassVar[str] = "snapshot"
    copies: ClassVar[int] = 0

    course: Course
    at: float

    @property
    def stored(self) -> bool:
        """Never: the course is."""
        return False

    def value(self, work: Work) -> TaskVector:
        """Return the vector, on the CPU."""
        from taskvec.vectors import TaskVector

        deltas = self._tensors(work, heads=False)
        header = work.get(self.course).meta["vectors"][repr(self.at)]
        return TaskVector.unpack(deltas, header, base_hash=self.base.hash(work))

    def heads(self, work: Work) -> dict[str, Tensor]:
        """Return the heads that stood there, where the backbone learns heads."""
        found = self._tensors(work, heads=True)
        return {name.removeprefix(HEAD): head for name, head in found.items()}

    def _tensors(self, work: Work, *, heads: bool) -> dict[str, Tensor]:
        prefix = f"{self.at!r}/"
        found = {}
        for key, tensor in work.get(self.course).tensors.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and name.startswith(HEAD) == heads:
                found[name] = tensor
        return found


@dataclass(frozen=True, eq=False)
class SelectedVector(VectorNode):
    """What a cell's model, at the coefficient that its answer chose, adds to theta_0 for a task."""

    kind: ClassVar[str] = "vector"

    answer: AnswerNode
    task: str

    @classmethod
    def of(cls, expression: Selected, answer: AnswerNode) -> SelectedVector:
        """Return what an answer chose for the task of an expression."""
        of = answer.composition
        return cls(of.base, expression, of.mode, answer, expression.task)

    def compute(self, work: Work) -> Content:
        """Take theta(alpha) - theta_0."""
        from taskvec.vectors import TaskVector

        alpha = self.answer.value(work).alpha
        made = self.answer.composition.value(work)
        direction = made.direction(self.task)
        if direction is not None:
            return self.packed(work, direction * alpha, {})
        base = self.base.value(work).parameters
        weights = made.parameters(alpha, self.task)
        deltas = {name: weight - base[name] for name, weight in weights.items()}
        return self.packed(work, TaskVector(deltas), {})
