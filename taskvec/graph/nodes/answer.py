"""Answers: a composition, or vectors, asked one question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from taskvec.graph.artefact import Content, Json, Node, Work, aside
from taskvec.graph.given import Given, untouched
from taskvec.graph.nodes.composition import CompositionNode
from taskvec.needs import Examples, Need, Scope
from taskvec.protocols.base import Answer, Cell, Question


@dataclass(frozen=True, eq=False)
class AnswerNode(Node):
    """What a question finds out about a composition."""

    kind: ClassVar[str] = "answer"

    question: Question
    composition: CompositionNode
    needed: Mapping[Need, Node]
    precision: str
    weights: str | None  # None: float32, or nothing is predicted with them
    cell: Cell = aside()
    scope: Scope = aside()

    @property
    def label(self) -> str:
        """The cell's name."""
        return f"answer {self.cell.name}"

    def spec(self) -> Json:
        """Return the settings; float32 weights go without saying."""
        found = super().spec()
        if self.weights is None:
            del found["weights"]
        return found

    def sees(self) -> Iterable[Examples]:
        """Return the examples that it selects and reports on."""
        return [need for need in self.needed if isinstance(need, Examples)]

    def compute(self, work: Work) -> Content:
        """Ask."""
        base = self.composition.base
        owner = f"question {self.question.kind}"
        answers = {
            name: self.needed[need].value(work) for name, need in self.cell.answers().items()
        }
        mode = self.composition.mode
        given = Given(
            work, self.scope, self.needed, base, base, owner,
            forward=mode,
            answers=answers,
            rounded=self.weights == "bf16",
        )  # fmt: skip
        composition = self.composition.value(work)
        vectors = self.composition.signed(work) if self.question.of_vectors else []
        with untouched(self.question, owner, work, base):
            answer, tensors = self.question.answer(given, composition, vectors)
        report = dict(getattr(composition, "report", {}))
        work.drop(self.composition)
        return Content(tensors, {"answer": answer.model_dump(), "report": report})

    def value(self, work: Work) -> Answer:
        """Return the answer."""
        return Answer.model_validate(work.get(self).meta["answer"])
