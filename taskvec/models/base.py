"""What a backbone owes the rest: how it is described without torch, and how it computes once loaded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from taskvec.config import Component, Config
from taskvec.models.layers import LinearLayer

if TYPE_CHECKING:
    from torch import Tensor, nn


class Recipe(Config):
    """Fine-tuning settings that suit a backbone; configs refer to them as ``${backbone.recipe.lr}`` and so on."""

    lr: float = Field(1e-5, gt=0)
    steps: int = Field(2000, ge=1)
    warmup: int = Field(500, ge=0)
    batch_size: int = Field(128, ge=1)


class Backbone(Component):
    """A pre-trained model by name, tag or local path; everything here works without torch but :meth:`load`."""

    recipe: Recipe = Recipe()

    unfingerprinted: ClassVar[frozenset[str]] = frozenset({"recipe"})

    @abstractmethod
    def check(self) -> None:
        """Compare the weights' header with the architecture before anything is loaded; raises UserError."""

    @abstractmethod
    def weight_bytes(self) -> int:
        """Return the size of the editable float32 parameters in bytes."""

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """Return what determines the decoded inputs, as JSON values."""

    @abstractmethod
    def linear_layers(self) -> list[LinearLayer]:
        """Return the linear layers in the order of the forward pass."""

    @abstractmethod
    def load(self, device: str) -> Model:
        """Return the model with its base weights."""

    @abstractmethod
    def heads(self, tasks: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, Tensor]:
        """Return the frozen head [C, d] float32 of each task, given (class names, templates)."""


class Model:
    """A loaded backbone: the canonical module and its editable base weights, both frozen.

    ``parameters`` maps canonical names to theta_0; all functions take the weights to use, so one module serves every
    composition.
    """

    def __init__(self, module: nn.Module):
        self.module = module.eval()
        self.parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        for parameter in module.parameters():
            parameter.requires_grad_(False)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return the module's input for a batch of decoded examples."""
        raise NotImplementedError

    def features(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return f(x; theta) [N, d] for decoded examples; absent parameters keep their base value."""
        from torch.func import functional_call

        return functional_call(self.module, dict(parameters), (self.prepare(inputs),))

    def logits(self, features: Tensor, head: Tensor) -> Tensor:
        """Return the class scores [N, C] of features under a task's head."""
        raise NotImplementedError
