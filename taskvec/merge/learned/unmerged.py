"""No vectors at all: theta_0 under an adapter, the peer of learned merges, and norms tuned in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from taskvec.merge.adapters.base import ChosenAdapter
from taskvec.merge.base import AS_IT_IS, Merge
from taskvec.needs import Given, Needs, Scope, Signed
from taskvec.registry import register
from taskvec.training.objectives.base import ChosenObjective
from taskvec.training.objectives.cross_entropy import CrossEntropy
from taskvec.training.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors.composition import Composition


class _WithoutVectors(Merge):
    """What learns on the granted examples without any task vector; a protocol's vectors are left out."""

    grid: ClassVar[tuple[float, ...]] = AS_IT_IS
    stored: ClassVar[bool] = True
    learned: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    vectors: ClassVar[tuple[int, int | None]] = (0, 0)

    def restore(
        self, base: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> Composition:
        """Return a stored composition again."""
        from taskvec.merge.learned.composition import Learned

        return Learned.unpack(base, tensors, meta)


@register("merge", "none", paper="a control; spec aTLAS 6.5")
class Unmerged(_WithoutVectors):
    """theta_0, under ``adapter``: the adapter alone, as a peer of merges (without one, the pre-trained model).

    ``schedule`` holds the crops that the adapter's examples are seen in.
    """

    kind: Literal["none"] = "none"
    adapter: ChosenAdapter | None = None
    objective: ChosenObjective | None = CrossEntropy()
    schedule: Schedule = Schedule(crop_scale=0.5)

    def needs(self, scope: Scope) -> Needs:
        """Check the adapter; nothing is needed besides the examples to learn on."""
        if self.adapter:
            self.adapter.check(scope)
        return ()

    def compose(
        self, base: Mapping[str, Tensor], vectors: Sequence[Signed], given: Given
    ) -> Composition:
        """Fit the adapter to the features of theta_0."""
        from taskvec.merge.learned.adapted import fitted
        from taskvec.merge.learned.composition import Learned, record
        from taskvec.merge.learned.learning import Learner
        from taskvec.training.blocks import Blocks
        from taskvec.training.coefficients import Coefficients

        nothing = Coefficients(base, [], Blocks({}, 0))
        seed = self.seed_of(given)
        learner = Learner(given, nothing, self.schedule, seed)
        readouts = fitted(self.adapter, learner, seed) if self.adapter else {}
        meta = record(base, [], nothing.blocks)
        return Learned(
            base, nothing.vector(), nothing.coefficients.detach(), meta, readouts=readouts
        )


class NormSchedule(Schedule):
    """Rates of test-time adaptation, with sharpness-aware steps of radius ``sam`` where it is set."""

    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int | None = Field(10, ge=1)
    crop_scale: float = Field(0.5, gt=0, le=1)
    sam: float | None = Field(None, gt=0)

    @property
    def radius(self) -> float | None:
        """The radius of sharpness-aware steps."""
        return self.sam


@register("merge", "norms", paper="Niu et al., SAR, ICLR 2023, arXiv 2302.12400; spec atlas 6.3")
class Norms(_WithoutVectors):
    """theta_0 with the scales and shifts of its norms trained, but those of the last ``spare`` blocks.

    The baseline of test-time adaptation beside aTLAS, by the same objectives.
    """

    kind: Literal["norms"] = "norms"
    spare: int = Field(3, ge=0)
    objective: ChosenObjective | None = None
    schedule: NormSchedule = NormSchedule()

    def compose(
        self, base: Mapping[str, Tensor], vectors: Sequence[Signed], given: Given
    ) -> Composition:
        """Train the norms by the objective."""
        from taskvec.merge.learned.composition import Learned, record
        from taskvec.merge.learned.learning import Learner
        from taskvec.merge.learned.norms import norm_names
        from taskvec.training.blocks import Blocks
        from taskvec.training.parameterisation import Weights

        names = norm_names(given.model.module, base, given.model.layers, self.spare)
        trained = Weights(base, names)
        learner = Learner(given, trained, self.schedule, self.seed_of(given))
        curve = learner.run()
        meta = record(base, [], Blocks({}, 0))
        report = {"curve": curve, "trained": len(names)}
        coefficients = next(iter(base.values())).new_zeros(0, 0)
        return Learned(
            base, trained.vector(), coefficients, meta, notes=learner.notes(), report=report
        )
