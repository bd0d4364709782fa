"""One run as data: a choice per group, and what holds for all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field, SerializeAsAny

from taskvec.config import Component, Config, immaterial
from taskvec.needs import Side

if TYPE_CHECKING:
    from taskvec.protocols.base import Question


class Compute(Config):
    """Where and how to compute; only what can change a result is part of its identity.

    ``precision`` is that of the matrix products of every stage, on float32 weights. ``weights`` is the dtype that a
    model is held in when it predicts: merges, training and statistics work on float32, and "bf16" rounds each composed
    weight once. ``batch`` is how many examples are predicted, or taken statistics of, at once: a number, "auto" for
    what the device holds, None for the usual sizes. ``compile`` compiles the forward pass of training and predictions;
    what it changes is the order of rounding, as another device does. ``offload`` keeps weights in main memory.
    """

    device: str = immaterial("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    weights: Literal["fp32", "bf16"] = "fp32"
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = immaterial(None)
    compile: bool = immaterial(False)
    offload: bool = immaterial(False)

    def material(self) -> dict[str, Any]:
        """Return the fields that can change results; weights as they are stored change none."""
        found = super().material()
        if self.weights == "fp32":
            del found["weights"]
        return found

    def weights_for(self, question: Question) -> str | None:
        """Return the dtype that weights are rounded to when a question is asked; None where they stay as they are."""
        return self.weights if question.as_held and self.weights != "fp32" else None


class Plain(Config):
    """The settings of a run that belong to no component."""

    method: str = immaterial("custom")
    experiment: str | None = immaterial(None)
    seed: int = Field(ge=0, lt=2**31)
    compute: Compute = Compute()
    outputs: str = immaterial("outputs", min_length=1)


class RunConfig(Plain):
    """One run: the components of each group by their schemas.

    ``source`` is the backbone that vectors come from where a transform moves them. A recipe field that is left open is
    filled in from the recipe of the backbone that is tuned (:meth:`method_on`).
    """

    backbone: SerializeAsAny[Component]
    source: SerializeAsAny[Component] | None = None
    suite: SerializeAsAny[Component]
    finetune: SerializeAsAny[Component]
    transform: dict[str, SerializeAsAny[Component]]
    merge: SerializeAsAny[Component]
    protocol: SerializeAsAny[Component]
    tracker: SerializeAsAny[Component] = immaterial(None)
    choices: dict[str, str | None] = immaterial({})

    @property
    def root(self) -> Path:
        """The folder of runs and of the artefact store."""
        return Path(os.path.realpath(os.path.expanduser(self.outputs)))

    @property
    def moves(self) -> bool:
        """Whether a transform carries vectors from the source backbone to another one."""
        return any(transform.moves for transform in self.transform.values())

    def backbone_of(self, side: Side) -> Any:
        """Return the backbone of a side; without a source there is one for both."""
        return self.source if side == "source" and self.source is not None else self.backbone

    def method_on(self, side: Side) -> Any:
        """Return the fine-tuning method with what was left open filled in for a side's backbone."""
        return self._methods[side]

    @property
    def tuning(self) -> Any:
        """The fine-tuning method on the side that vectors are learned on."""
        side: Side = "source" if self.moves else "target"
        return self.method_on(side)

    @cached_property
    def _methods(self) -> Mapping[str, Any]:
        return {
            side: self.finetune.resolved(self.backbone_of(side)) for side in ("source", "target")
        }

    def settings(self) -> dict[str, Any]:
        """Return every setting that can change the result; the order of transforms counts."""
        found = super().settings()
        found["finetune"] = {side: method.settings() for side, method in self._methods.items()}
        found["transform"] = [
            [name, transform.settings()] for name, transform in self.transform.items()
        ]
        return found

    def to_yaml(self) -> str:
        """Return the config as it was asked for, the text of a run's ``config.yaml``."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def recorded(self) -> dict[str, Any]:
        """Return all settings as JSON values, what was left open filled in for the backbone that is tuned first."""
        side: Side = "source" if self.moves else "target"
        filled = self.model_copy(update={"finetune": self.method_on(side)})
        return filled.model_dump(mode="json")
