"""The fine-tuning recipe of the task-arithmetic papers, as a schema every fine-tuning method extends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, ValidationError, field_validator, model_validator

from taskvec.config import immaterial
from taskvec.errors import NotFinite, UserError
from taskvec.finetune.base import Finetune, Learned
from taskvec.needs import ForwardMode, Given
from taskvec.training.callbacks import Kept
from taskvec.training.objectives.base import ChosenObjective
from taskvec.training.objectives.cross_entropy import CrossEntropy
from taskvec.training.schedule import PenaltySettings, Schedule
from taskvec.training.selectors import check_selector

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.parameterisation import Weights

# (step, deltas) -> what is added to the loss
Penalty: TypeAlias = Callable[[int, Mapping[str, "Tensor"]], "Tensor"]

HEAD = "head/"  # prefix of the heads among the leaves
LEFT_OPEN = ("lr", "steps", "warmup", "batch_size")


class Recipe(Schedule, Finetune):
    """AdamW on all selected parameters, linear warm-up and cosine decay per step, gradient-norm clipping (spec 1.4).

    ``lr``, ``steps``, ``warmup`` and ``batch_size`` that are left open are those that suit the backbone (its
    ``recipe``, see :meth:`resolved`). ``select`` names the parameters that move (:mod:`taskvec.training.selectors`),
    ``lora`` with ``rank`` and ``lora_alpha``. ``forward_mode`` ``tangent`` trains, and later evaluates, the model
    linearised at theta_0. ``decay_towards`` says what weight decay pulls to: weights to zero (the papers), or deltas to
    zero (``base``, TAK). ``gradient_checkpointing`` computes every block twice to save memory.
    """

    select: str = "full"
    forward_mode: ForwardMode = "standard"
    decay_towards: Literal["zero", "base"] = "zero"
    rank: int = Field(16, ge=1)
    lora_alpha: float = Field(16.0, gt=0)
    objective: ChosenObjective = CrossEntropy()
    gradient_checkpointing: bool = immaterial(False)

    lr: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    warmup: int | None = Field(None, ge=0)
    batch_size: int | None = Field(None, ge=1)

    keeps: ClassVar[bool] = True

    @model_validator(mode="after")
    def _recomputable(self) -> Self:
        if self.gradient_checkpointing and self.forward_mode == "tangent":
            raise ValueError(
                "gradient_checkpointing cannot go through the forward-mode derivative of forward_mode=tangent; "
                "raise accumulation instead"
            )
        return self

    @field_validator("select")
    @classmethod
    def _known(cls, select: str) -> str:
        return check_selector(select)

    @property
    def mode(self) -> ForwardMode:
        """The forward mode that vectors are trained and evaluated in."""
        return self.forward_mode

    def resolved(self, backbone: Any) -> Self:
        """Return the method with everything that was left open filled in from the recipe of a backbone.

        Raises:
            UserError: if what was set does not go with what was filled in.
        """
        found = {
            name: getattr(backbone.recipe, name)
            for name in LEFT_OPEN
            if getattr(self, name) is None
        }
        try:
            return type(self).model_validate(dict(self) | found)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"finetune={self.kind}: {message}") from error

    def penalties(self, given: Given) -> Sequence[Penalty]:
        """Return what is added to the loss, given what :meth:`needs` asks for."""
        return ()

    def frozen(self, given: Given) -> Collection[str]:
        """Return the names that stay at theta_0 although ``select`` takes them, given the same."""
        return ()

    def learn(self, given: Given) -> Learned:
        """Return the vector that is learned on the union of ``given.views``, from ``given.start`` or theta_0.

        The loss is the objective's, of the model itself or of its linearisation, plus the penalties; ``given.ascend``
        turns the objective's sign (the gradient-ascent baseline of Ilharco et al. 2023). Heads are learned along where
        the backbone learns heads. On several tasks there are as many steps as they have one by one.

        Raises:
            NotFinite: naming tasks and step if loss, gradient or weights are not finite.
            ValueError: if the recipe selects no parameter.
        """
        from taskvec.training.loop import Group, train
        from taskvec.training.recompute import recomputed

        views = given.views
        trained = self.parameterise(given)
        heads = {task: view.head for task, view in views.items()}
        learned = {}
        if "learned_heads" in given.scope.backbone.gives:
            learned = {task: head.clone().requires_grad_() for task, head in heads.items()}
        heads |= learned
        sign = -1.0 if given.ascend else 1.0

        def logits_of(task: str, inputs: Tensor) -> Tensor:
            direction = trained.deltas() if self.forward_mode == "tangent" else None
            return given.evaluator.scores(inputs, heads[task], trained.parameters(), direction)

        leaves = trained.leaves | {f"{HEAD}{task}": head for task, head in learned.items()}
        schedule = self.model_copy(update={"steps": self.steps * len(views)})
        kept = Kept(leaves, given.kept)
        watching = [kept] if given.kept else []
        with recomputed(given.model.module) if self.gradient_checkpointing else nullcontext():
            try:
                curve = train(
                    [Group(leaves)],
                    lambda batch, state: sign * self.objective.loss(logits_of, batch, state),
                    self.objective.steps(views, self, given.seed),
                    schedule,
                    epoch=lambda epoch, epochs, state: self.objective.epoch(
                        logits_of, views, epoch, epochs, state
                    ),
                    after=[*self.objective.callbacks(leaves), *watching],
                    penalties=[_on_deltas(penalty, trained) for penalty in self.penalties(given)],
                    checkpoint=given.checkpoint,
                    observe=given.observe,
                )
            except NotFinite as error:
                raise NotFinite(f"fine-tuning on {', '.join(views)}: {error}") from error
        course = {share: _learned(trained, kept.at(share)) for share in given.kept}
        return replace(_learned(trained, leaves), curve=curve, course=course)

    def parameterise(self, given: Given) -> Weights:
        """Return the leaves that are trained, all selected ones but the frozen, and how they make weights and deltas.

        Raises:
            ValueError: if the recipe selects no parameter.
        """
        from taskvec.training.parameterisation import Deltas, Factors, Weights
        from taskvec.training.selectors import selected

        base, frozen = given.model.parameters, self.frozen(given)
        free = [name for name in base if name not in frozen]
        names = selected(self.select, free, given.model.layers)
        if self.select == "lora":
            return Factors(base, names, self.rank, self.lora_alpha, given.seed, given.start)
        kind = Deltas if self.decay_towards == "base" else Weights
        return kind(base, names, given.start)


class Penalised(Recipe):
    """A recipe with a quadratic penalty on drift; its weight, left open, is the backbone's ``drift_weight``."""

    forward_mode: ForwardMode = "tangent"
    decay_towards: Literal["zero", "base"] = "base"
    penalty: PenaltySettings = PenaltySettings()

    def resolved(self, backbone: Any) -> Self:
        """Return the method with everything that was left open filled in from the recipe of a backbone.

        Raises:
            UserError: if what was set does not go with what was filled in.
        """
        found = super().resolved(backbone)
        if self.penalty.weight is not None:
            return found
        penalty = self.penalty.model_copy(update={"weight": backbone.recipe.drift_weight})
        return found.model_copy(update={"penalty": penalty})


def _learned(trained: Weights, leaves: Mapping[str, Tensor]) -> Learned:
    """Return the vector and the heads that leaves stand for."""
    heads = {}
    for name, leaf in leaves.items():
        if name.startswith(HEAD):
            heads[name.removeprefix(HEAD)] = leaf.detach()
    return Learned(trained.at(leaves).vector(), heads)


def _on_deltas(penalty: Penalty, trained: Weights) -> Callable[[int], Tensor]:
    return lambda step: penalty(step, trained.deltas())
