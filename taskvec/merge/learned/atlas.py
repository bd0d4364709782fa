"""aTLAS: a coefficient for each parameter block of each vector, learned by an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from taskvec.merge.adapters.base import ChosenAdapter
from taskvec.merge.base import AS_IT_IS, Convention, Merge
from taskvec.merge.learned.search import Search
from taskvec.needs import Examples, Given, Needs, Scope, Signed, Statistics
from taskvec.registry import register
from taskvec.training.objectives.base import ChosenObjective
from taskvec.training.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors.composition import Composition


class AtlasSchedule(Schedule):
    """The authors' schedule of task addition: AdamW at a constant rate, 20 epochs of 16 examples of each task.

    An epoch of few examples has at least ``least`` steps, for which they are seen repeatedly. ``sam`` is the radius of
    sharpness-aware steps, None takes plain ones.
    """

    lr: float = Field(1e-3, gt=0)
    epochs: int | None = Field(20, ge=1)
    shape: Literal["cosine", "constant"] = "constant"
    batch_size: int = Field(16, ge=1)
    least: int = Field(1, ge=1)
    sam: float | None = Field(None, gt=0)

    @property
    def shortest_epoch(self) -> int:
        """The fewest steps of an epoch."""
        return self.least

    @property
    def radius(self) -> float | None:
        """The radius of sharpness-aware steps."""
        return self.sam


@register("merge", "atlas", paper="Zhang et al., NeurIPS 2024, arXiv 2407.02880")
class Atlas(Merge):
    """theta_0^(j) + sum_i lambda_i^(j) tau_i^(j) for each block j, lambda from zero by the protocol's objective.

    ``by`` says what has a coefficient in each vector: a parameter tensor, the whole vector (isotropic), each row or
    column. ``qkv`` "joint" gives q, k and v of an attention one together, as in the packed tensors of the authors.
    ``matrices`` leaves all but weight matrices at theta_0. ``parts`` K cuts every block into K random parts, those of
    equal shapes alike with ``share_parts``. ``lora`` "factor" composes the factors of LoRA vectors instead of their
    products. ``penalty`` gamma adds gamma * mean_j ||lambda^(j)||_p, p = ``penalty_norm``.

    ``budget`` b < n learns for b vectors, found by ``choose``: at random, by the features' cosine with the target's,
    or by the gradient at theta_0, for whole vectors or block by block. ``random_bases`` replaces the vectors by as many
    random ones. ``search`` finds the coefficients without gradients. ``select`` "best" keeps the epoch that the
    protocol's rule prefers, where it has one. ``adapter`` learns on top, jointly if it can. ``faithful`` keeps vectors
    and partial sums in float16, as the released code does.
    """

    kind: Literal["atlas"] = "atlas"
    by: Literal["tensor", "vector", "rows", "columns"] = "tensor"
    qkv: Literal["joint", "split"] = "joint"
    matrices: bool = False
    parts: int = Field(1, ge=1)
    share_parts: bool = False
    lora: Literal["delta", "factor"] = "delta"
    penalty: float = Field(0.0, ge=0)
    penalty_norm: Literal[1, 2] = 1
    budget: int | None = Field(None, ge=1)
    choose: Literal["random", "features", "gradient", "gradient_blockwise"] = "gradient_blockwise"
    random_bases: int | None = Field(None, ge=1)
    search: Search | None = None
    select: Literal["best", "last"] = "best"
    adapter: ChosenAdapter | None = None
    faithful: bool = False
    objective: ChosenObjective | None = None
    schedule: AtlasSchedule = AtlasSchedule()

    grid: ClassVar[tuple[float, ...]] = AS_IT_IS
    stored: ClassVar[bool] = True
    learned: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    conventions: ClassVar[tuple[Convention, ...]] = (
        Convention(
            "the authors' code",
            f"merge.faithful=true merge.schedule.clip_norm={2**-16}",
            "vectors, products and sums in float16; gradients are clipped before their scale of 65536 is taken away",
        ),
        Convention("the authors' research branch, --attn", "merge.qkv=split"),
        Convention(
            "aTLAS x K, released code",
            "merge.parts=5 merge.matrices=true merge.share_parts=true",
            "K = 5",
        ),
    )

    @model_validator(mode="after")
    def _cuts_whole_blocks(self) -> Self:
        if self.parts > 1 and self.by in {"rows", "columns"}:
            raise ValueError(
                f"parts: only whole tensors or vectors are cut into random parts, not {self.by}"
            )
        if self.lora == "factor" and (
            self.parts > 1 or self.by != "tensor" or self.budget or self.faithful
        ):
            raise ValueError(
                "lora: factor gives each factor one coefficient; leave by, parts, budget, faithful out"
            )
        return self

    @property
    def selects(self) -> bool:
        """Whether the protocol's rule chooses the epoch; a search has none."""
        return self.select == "best" and self.search is None

    def needs(self, scope: Scope) -> Needs:
        """Return what a budget's choice looks at: the loss's gradient, or features of the vectors' own tasks."""
        if self.adapter:
            self.adapter.check(scope)
        if self.search:
            self.search.check()
        if self.budget is None or self.choose == "random":
            return ()
        if self.choose == "features":
            return [Examples(task, "train", "calibration") for task in scope.tasks]
        return self.gradients(scope)

    def gradients(self, scope: Scope) -> list[Statistics]:
        """Return the need of the gradient at theta_0 on each task's examples to learn on."""
        from taskvec.statistics.gradient import Gradient

        return [Statistics(Gradient(), examples, side=scope.side) for examples in scope.learning]

    def compose(
        self, base: Mapping[str, Tensor], vectors: Sequence[Signed], given: Given
    ) -> Composition:
        """Learn the coefficients on ``given.learning`` and return the vector they make."""
        from taskvec.merge.learned.atlas_steps import learn

        return learn(self, base, vectors, given)

    def restore(
        self, base: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> Composition:
        """Return a stored composition again."""
        from taskvec.merge.learned.composition import Learned

        return Learned.unpack(base, tensors, meta)
