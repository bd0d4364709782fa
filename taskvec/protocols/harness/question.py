"""One task of lm-evaluation-harness, asked of a merged language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.config import immaterial
from taskvec.needs import Given, Signed
from taskvec.protocols.base import Answer, Question
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.vectors.composition import Composition


@register("question", "harness", paper="Gao et al., lm-evaluation-harness, zenodo.12608602")
class HarnessTask(Question):
    """The metrics of a task at coefficient ``alpha``; ``files`` are the checksums of what the task is made from."""

    kind: Literal["harness"] = "harness"
    task: str
    alpha: float
    lm_eval: str
    files: tuple[tuple[str, str], ...]
    folders: tuple[str, ...] = immaterial(())
    limit: int | None
    batch_size: int
    num_fewshot: int | None
    allow_code: bool

    models: ClassVar[frozenset[str]] = frozenset({"one"})
    looks: ClassVar[bool] = True
    as_held: ClassVar[bool] = True
    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard"})
    capabilities: ClassVar[frozenset[str]] = frozenset({"generation"})

    def answer(
        self, given: Given, composition: Composition, vectors: Sequence[Signed]
    ) -> tuple[Answer, dict]:
        """Run the harness on the weights in memory."""
        from taskvec.protocols.harness.run import Job, evaluate

        job = Job(
            self.task, self.folders, self.limit, self.batch_size, self.num_fewshot, self.allow_code
        )
        weights = given.evaluator.weights(composition, self.alpha)
        values, tensors = evaluate(job, given.scope.backbone, weights, bf16=given.evaluator.bf16)
        return Answer(values=values), tensors
