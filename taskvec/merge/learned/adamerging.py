"""AdaMerging: a coefficient for each vector, or each tensor of it, learned from unlabelled data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from taskvec.merge.base import AS_IT_IS, Convention, Merge
from taskvec.needs import Given, Signed
from taskvec.registry import register
from taskvec.training.objectives.base import ChosenObjective
from taskvec.training.objectives.entropy import Entropy
from taskvec.training.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors.composition import Composition


class AdaMergingSchedule(Schedule):
    """The authors' schedule: Adam at a constant rate, 500 steps of 16 examples of each task, as they are."""

    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    shape: Literal["cosine", "constant"] = "constant"
    clip_norm: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)
    augment: Literal["none", "random_resized_crop"] = "none"


@register("merge", "adamerging", paper="Yang et al., ICLR 2024, arXiv 2310.02575, section 3")
class AdaMerging(Merge):
    """theta_0 + sum_t lambda_t tau_t, the lambda minimising the mean over tasks of the objective (entropy).

    ``by`` "tensor" learns a coefficient for each parameter tensor of each vector (layer-wise), "vector" one for each
    vector (task-wise). They start at ``start`` and are kept in [0, 1] by ``clamp``. ``trim`` is the density to which
    TIES trims the vectors first (AdaMerging++). ``schedule.batch_size`` examples of every task make a step. The
    coefficients are in the result's report.
    """

    kind: Literal["adamerging"] = "adamerging"
    by: Literal["tensor", "vector"] = "tensor"
    start: float = 0.3
    clamp: bool = True
    trim: float | None = Field(None, gt=0, le=1)
    objective: ChosenObjective | None = Entropy()
    schedule: AdaMergingSchedule = AdaMergingSchedule()

    grid: ClassVar[tuple[float, ...]] = AS_IT_IS
    stored: ClassVar[bool] = True
    learned: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    conventions: ClassVar[tuple[Convention, ...]] = (
        Convention(
            "the authors' code, layer-wise",
            "",
            "it learns on unlabelled test images: protocol.transductive=true",
        ),
        Convention("the authors' code, task-wise", "merge.by=vector"),
        Convention("AdaMerging++", "merge.trim=0.2"),
        Convention("FusionBench", "merge.clamp=false merge.schedule.steps=1000"),
    )

    def compose(
        self, base: Mapping[str, Tensor], vectors: Sequence[Signed], given: Given
    ) -> Composition:
        """Learn the coefficients on ``given.learning`` and return the vector they make."""
        from taskvec.merge.learned.composition import Learned, record
        from taskvec.merge.learned.learning import Learner
        from taskvec.merge.learned.steps import Clamp
        from taskvec.training.blocks import blocks
        from taskvec.training.coefficients import Coefficients

        deltas = self._trimmed(base, self.checked(vectors), given)
        shapes = {name: tensor.shape for name, tensor in base.items()}
        trained = Coefficients(base, deltas, blocks(self.by, shapes), self.start)
        learner = Learner(given, trained, self.schedule, self.seed_of(given))
        after = [Clamp(trained.leaves)] if self.clamp else []
        curve = learner.run(after=after)
        tasks = ["+".join(signed.tasks) for signed in vectors]
        meta = record(base, vectors, trained.blocks)
        report = self._report(tasks, trained, curve)
        return Learned(base, trained.vector(), trained.coefficients.detach(), meta, report=report)

    def restore(
        self, base: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: Mapping
    ) -> Composition:
        """Return a stored composition again."""
        from taskvec.merge.learned.composition import Learned

        return Learned.unpack(base, tensors, meta)

    def _trimmed(
        self, base: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]], given: Given
    ) -> Sequence[Mapping[str, Tensor]]:
        from taskvec.merge.sparse.ties import Ties

        if self.trim is None:
            return deltas
        trim = Ties(density=self.trim)
        return [trim.merged(base, [delta], given) for delta in deltas]

    def _report(
        self, tasks: Sequence[str], trained: Any, curve: Sequence[Mapping[str, float]]
    ) -> dict[str, Any]:
        """Return the coefficients by task (and tensor) and the curve."""
        found: dict[str, Any] = {}
        for task, row in zip(tasks, trained.coefficients.tolist(), strict=True):
            by_name = {name: row[layout.first] for name, layout in trained.blocks.layouts.items()}
            found[task] = row[0] if self.by == "vector" else by_name
        return {"coefficients": found, "curve": list(curve)}
