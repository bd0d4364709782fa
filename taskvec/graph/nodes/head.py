"""Task heads: written by a text tower, made of label words, or learned with a vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.data.describe import class_names
from taskvec.data.prompt import Prompt
from taskvec.data.tasks import Corpus
from taskvec.graph.artefact import Content, Json, Node, Work, aside
from taskvec.graph.nodes.base import Base
from taskvec.models.base import Backbone

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "head/"  # prefix of the heads among a vector's tensors


@dataclass(frozen=True, eq=False)
class InitialHead(Node):
    """A task's head before fine-tuning; frozen where the backbone does not learn heads."""

    kind: ClassVar[str] = "head"

    base: Base
    prompt: Prompt
    task: str = aside()

    @classmethod
    def of(cls, base: Base, task: str, definition: Any) -> InitialHead | None:
        """Return a task's head; None for a corpus."""
        prompt = prompt_of(task, definition, base.backbone)
        return None if prompt is None else cls(base, prompt, task)

    @property
    def label(self) -> str:
        """The task."""
        return f"head {self.task}"

    def spec(self) -> Json:
        """Return words, templates, and what a word follows."""
        words, templates, before = self.prompt
        return {"classes": list(words), "templates": list(templates), "before": before}

    def compute(self, work: Work) -> Content:
        """Let the backbone write the head."""
        head = self.base.backbone.heads({self.task: self.prompt})[self.task]
        return Content({"head": head}, {"classes": list(self.prompt.words)})

    def value(self, work: Work) -> Tensor:
        """Return the head."""
        return work.keep(self, lambda: work.get(self).tensors["head"])


@dataclass(frozen=True, eq=False)
class LearnedHead(Node):
    """The head that was learned with a task's own vector."""

    kind: ClassVar[str] = "learned head"

    vector: Node
    task: str

    @property
    def stored(self) -> bool:
        """Never: it lies beside the vector."""
        return False

    def value(self, work: Work) -> Tensor:
        """Return the head."""
        return work.keep(self, lambda: work.get(self.vector).tensors[HEAD + self.task])


def prompt_of(task: str, definition: Any, backbone: Backbone) -> Prompt | None:
    """Return what a task's head is made from; None for a corpus."""
    if isinstance(definition, Corpus):
        return None
    names = class_names(task, definition)
    return definition.prompts(names, learned="learned_heads" in backbone.gives)
