"""Tip-Adapter: a cache of few examples beside the zero-shot head, as it is or trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.merge.adapters.base import Adapter, Shots
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.loop import Group

PAPER = "Zhang et al., Tip-Adapter, ECCV 2022, arXiv 2207.09519; spec atlas 6.5"
KEYS, SHARPNESS, STRENGTH = "keys", "sharpness", "strength"


@register("adapter", "tip", paper=PAPER)
class Tip(Adapter):
    """logits + alpha exp(-beta (1 - z F^T)) V, F the unit features of the examples and V their one-hot classes.

    Nothing is trained; ``strength`` is alpha, ``sharpness`` beta.
    """

    kind: Literal["tip"] = "tip"
    sharpness: float = Field(1.0, gt=0)
    strength: float = Field(2.0, ge=0)

    def fit(self, shots: Shots, seed: int) -> dict[str, Tensor]:
        """Return the cache as it is."""
        return self.readout(self.start(shots), shots)

    def start(self, shots: Shots) -> dict[str, Tensor]:
        """Return F, beta and alpha."""
        features = shots.features
        return {
            KEYS: features.clone(),
            SHARPNESS: features.new_tensor(self.sharpness),
            STRENGTH: features.new_tensor(self.strength),
        }

    def readout(self, leaves: Mapping[str, Tensor], shots: Shots) -> dict[str, Tensor]:
        """Return leaves and one-hot classes."""
        return {**leaves, "classes": shots.one_hot()}


@register("adapter", "tip_f", paper=PAPER)
class TipF(Tip):
    """Tip-Adapter whose keys F, alpha and beta are trained by cross-entropy: jointly with a merge, or alone.

    Alone it takes ``epochs`` full-batch AdamW steps on frozen features of ``copies`` crops, with a cosine to zero.
    ``keys_lr`` is the keys' rate, ``lr`` that of alpha and beta, in joint training too.
    """

    kind: Literal["tip_f"] = "tip_f"
    lr: float = Field(0.1, gt=0)
    keys_lr: float = Field(1e-3, gt=0)
    epochs: int = Field(300, ge=1)
    eps: float = Field(1e-4, gt=0)
    copies: int = Field(10, ge=1)

    joint: ClassVar[bool] = True

    def groups(self, leaves: Mapping[str, Tensor], rate: float) -> list[Group]:
        """Return keys, and alpha with beta; neither decays."""
        from taskvec.training.loop import Group

        mixing = {name: leaf for name, leaf in leaves.items() if not name.endswith(KEYS)}
        keys = {name: leaf for name, leaf in leaves.items() if name.endswith(KEYS)}
        return [Group(keys, self.keys_lr / rate, 0.0), Group(mixing, self.lr / rate, 0.0)]

    def fit(self, shots: Shots, seed: int) -> dict[str, Tensor]:
        """Train on frozen features."""
        from taskvec.merge.adapters.frozen import train_readout
        from taskvec.training.schedule import Schedule

        leaves = self.start(shots)
        schedule = Schedule(lr=self.lr, steps=self.epochs, eps=self.eps, clip_norm=None)
        return train_readout(
            leaves,
            self.groups(leaves, self.lr),
            lambda: self.readout(leaves, shots),
            shots,
            schedule,
        )
