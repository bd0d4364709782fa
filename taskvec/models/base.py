"""What a backbone owes the rest: how it is described without torch, and how it computes once loaded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from taskvec.config import Component, Config, immaterial
from taskvec.data.prompt import Prompt
from taskvec.data.remote import Remote
from taskvec.errors import UserError
from taskvec.models.layers import Heads, LinearLayer
from taskvec.models.sources import Source
from taskvec.models.spaces import Axes, Seen, Spaces

if TYPE_CHECKING:
    from torch import Tensor, nn


class Recipe(Config):
    """Fine-tuning settings that suit a backbone; configs refer to them as ``${backbone.recipe.lr}`` and so on.

    ``drift_weight`` is that of a penalty on drift: the square of what the backbone's features measure, so smaller where
    they have no unit length (experiments/kfac).
    """

    lr: float = Field(1e-5, gt=0)
    steps: int = Field(2000, ge=1)
    warmup: int = Field(500, ge=0)
    batch_size: int = Field(128, ge=1)
    drift_weight: float = Field(100.0, ge=0)


# What a family can do, asked instead of its kind. ``perplexity``: it gives the probability of a text; ``generation``:
# it writes. The others say where heads come from: the text tower, the vocabulary (label words after a task's frame), or
# training.
Ability = Literal["zero_shot_heads", "label_words", "learned_heads", "perplexity", "generation"]


class Backbone(Component):
    """A pre-trained model by name, tag or local path; everything here works without torch but :meth:`load`.

    ``gives`` says what the family can do. ``trust_remote_code`` is the consent to run Python that comes with the files,
    ``download_mb`` about how large they are where the hub gives them: the parameters at four bytes each, or at two
    where the hub has half precision.
    """

    trust_remote_code: bool = False
    recipe: Recipe = immaterial(Recipe())
    download_mb: float | None = immaterial(None, ge=0)

    modality: ClassVar[str] = "images"
    gives: ClassVar[frozenset[Ability]]
    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard", "tangent"})

    @abstractmethod
    def check(self) -> None:
        """Compare the weights' header with the architecture before anything is loaded; raises UserError."""

    def check_inputs(self) -> None:
        """Check that what reads the inputs fits the weights, before anything is loaded; raises UserError."""

    def remotes(self) -> Sequence[Remote]:
        """Return what the hub has to give; nothing for a model in a local folder."""
        return ()

    @property
    @abstractmethod
    def tokenizer_source(self) -> Source | None:
        """Where the tokenizer's files are; None where a library brings its own."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the weights are: a file, a folder, or a name of the hub."""

    @abstractmethod
    def described(self) -> dict[str, dict[str, Any]]:
        """Return the description that libraries want beside weights in float32, by the name of its file."""

    @abstractmethod
    def function(self, description: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return the settings that say what weights compute, by a model's description (None: the backbone's own).

        Raises:
            UserError: for a description of another family.
        """

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
    def attention_heads(self) -> Heads:
        """Return how attention is cut into heads."""

    def parameter_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Return the editable parameters' shapes by name; None where only the loaded model knows them."""
        return None

    def spaces(self) -> dict[str, Axes]:
        """Return the activation space of each axis of every editable parameter (see :mod:`taskvec.models.spaces`).

        Raises:
            UserError: for a model of the hub that is not cached yet, and a parameter whose spaces are not known.
        """
        return self._known_spaces.axes

    def observed(self) -> dict[str, Seen]:
        """Return the module, and its ``input`` or ``output``, at which each space can be seen.

        Raises:
            UserError: as :meth:`spaces`.
        """
        return self._known_spaces.observed

    @cached_property
    def _known_spaces(self) -> Spaces:
        shapes = self.parameter_shapes()
        if shapes is None:
            raise UserError(
                f"backbone={self.kind}: the weights are not there yet, so their spaces are not known"
            )
        return self._spaces().of(shapes)

    @abstractmethod
    def _spaces(self) -> Spaces:
        """Return the spaces of every parameter that a model of the family can have."""

    @abstractmethod
    def load(self, device: str) -> Model:
        """Return the model with its base weights."""

    @abstractmethod
    def heads(self, tasks: Mapping[str, Prompt]) -> dict[str, Tensor]:
        """Return each task's head before fine-tuning; a plain tuple of a prompt's first fields is a prompt too.

        CLIP: the frozen zero-shot weights [C, d] float32. Text-to-text and causal language models: the vocabulary ids
        [C] int64 of the label words. Encoders: the initial weights [C, d + 1] of a linear head, bias last.
        """


def first_broken(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with a value that is not finite, None if there is none."""
    return next((name for name, tensor in tensors if not tensor.isfinite().all()), None)


class Model:
    """A loaded backbone: the canonical module and its editable base weights, both frozen.

    ``parameters`` maps canonical names to theta_0; all functions take the weights to use, so one module serves every
    composition. ``inputs`` are decoded examples: uint8 images [N, 3, H, W], or token ids [N, L] int32 padded on the
    right with -1.
    """

    backbone: Backbone  # what it was loaded from

    def __init__(self, module: nn.Module):
        self.module = module.eval()
        self.parameters = {
            name: p.detach() for name, p in module.named_parameters() if p.requires_grad
        }
        for parameter in module.parameters():
            parameter.requires_grad_(False)

    @cached_property
    def layers(self) -> list[LinearLayer]:
        """The linear layers in the order of the forward pass."""
        return self.backbone.linear_layers()

    @cached_property
    def heads(self) -> Heads:
        """How attention is cut into heads."""
        return self.backbone.attention_heads()

    @cached_property
    def spaces(self) -> dict[str, Axes]:
        """The activation space of each axis of every editable parameter."""
        return self.backbone.spaces()

    @cached_property
    def observed(self) -> dict[str, Seen]:
        """The module, and its side, at which each space can be seen."""
        return self.backbone.observed()

    def prepare(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the module's arguments for a batch of decoded examples."""
        raise NotImplementedError

    def tokens(self, inputs: Tensor) -> Tensor | None:
        """Return which positions of the layers' inputs hold real tokens, [N, L] bool; None if all of them do."""
        return None

    def features(
        self, parameters: Mapping[str, Tensor], inputs: Tensor, head: Tensor | None = None
    ) -> Tensor:
        """Return f(x; theta) [N, d], the features that drift and disentanglement are measured on.

        CLIP: the image feature at unit length. Encoders: the pooled state before the head. Text-to-text: the logits of
        the label words in ``head`` at the first decoding step. Causal language models: the final-normed state at the
        last token of the prompt. Absent parameters keep their base value.
        """
        return self.call(parameters, *self.prepare(inputs))

    def call(self, parameters: Mapping[str, Tensor], *arguments: Any) -> Any:
        """Return the module's value with some weights in place of the base's.

        :func:`taskvec.models.compiled.compiled` makes models of which this is compiled.
        """
        from torch.func import functional_call

        return functional_call(self.module, dict(parameters), arguments)

    def token_states(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the final-normed state of every token [N, longest row, d], rows moved to the left.

        Raises:
            UserError: if the model gives no probability of a text.
        """
        raise UserError(
            "this backbone gives no probability of a text; perplexity needs a causal language model"
        )

    def token_log_probs(
        self, states: Tensor, inputs: Tensor, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return log p(token i + 1 | tokens up to i) [N, L - 1] float32 of :meth:`token_states`, 0 at padding.

        Scored with the output embedding of ``parameters`` (None: that of the base), as in :meth:`logits`.
        """
        raise NotImplementedError

    def logits(
        self, features: Tensor, head: Tensor, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return the class scores [N, C] of features under a task's head.

        Causal language models score with the output embedding of ``parameters`` (None: that of the base).
        """
        raise NotImplementedError
