"""A split as a backbone reads it, decoded once, and the rows of it that somebody is granted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from taskvec.data.describe import describe
from taskvec.data.prompt import Prompt
from taskvec.data.tasks import Corpus, TextTask
from taskvec.graph.artefact import Content, Json, Node, Work, aside
from taskvec.models.base import Backbone
from taskvec.needs import Budget

if TYPE_CHECKING:
    from taskvec.data.views import View


@dataclass(frozen=True, eq=False)
class Decoded(Node):
    """A task's split: images decoded at the backbone's resolution, or texts as its tokens before a prompt's words."""

    kind: ClassVar[str] = "decoded"
    looks: ClassVar[bool] = True

    split: str
    definition: Any
    prompt: Prompt | None
    task: str = aside()
    backbone: Backbone = aside()

    @property
    def label(self) -> str:
        """The task and the split."""
        return f"examples {self.task}/{self.split}"

    def spec(self) -> Json:
        """Return what identifies the examples and how they are read."""
        definition = self.definition
        spec = {"preprocessing": self.backbone.preprocessing()}
        spec["examples"] = describe(self.task, definition, self.split)
        if isinstance(definition, TextTask):
            spec["frame"] = definition.frame
        if self.prompt is not None:
            spec["words"] = list(self.prompt.words)  # the prompt ends where they begin
        return spec

    def compute(self, work: Work) -> Content:
        """Decode or tokenise the split."""
        from taskvec.data.images import decode_split
        from taskvec.data.shards import row_count
        from taskvec.data.texts import tokenise_corpus, tokenise_split

        task, definition, backbone = self.task, self.definition, self.backbone
        if isinstance(definition, Corpus):
            tensors = tokenise_corpus(task, definition, self.split, backbone.tokenize)
        elif isinstance(definition, TextTask):
            tokenize = partial(backbone.tokenize, prompt=self.prompt)
            framed = self.prompt is not None
            tensors = tokenise_split(task, definition, self.split, tokenize, framed=framed)
        else:
            tensors = decode_split(task, definition, self.split, backbone.preprocessing())
        return Content(tensors, {"examples": row_count(tensors)})


@dataclass(frozen=True, eq=False)
class Rows(Node):
    """The rows of a split within a budget, under the task's head (None for a corpus)."""

    kind: ClassVar[str] = "rows"

    decoded: Decoded
    head: Node | None
    budget: Budget | None

    @property
    def stored(self) -> bool:
        """Never: they are read from the decoded split."""
        return False

    def value(self, work: Work) -> View:
        """Return the view, on the device."""
        return work.keep(self, lambda: self._view(work))

    def _view(self, work: Work) -> View:
        from taskvec.data.views import View, chosen

        head = None if self.head is None else self.head.value(work)
        name = f"{self.decoded.task}/{self.decoded.split}"
        whole = View.of(self.decoded.value(work).tensors, name=name, head=head)
        part = whole if self.budget is None else whole.select(chosen(whole, self.budget))
        return part.to(work.device, work.resident)
