"""CLIP backbones: any plain open_clip ViT by name and tag, by name and checkpoint, or from a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from taskvec.data.files import remembered_sha256
from taskvec.data.prompt import Prompt
from taskvec.data.remote import Remote, reachable
from taskvec.data.tasks import ASSETS
from taskvec.errors import UserError
from taskvec.models.base import Ability, Backbone, Model, first_broken
from taskvec.models.clip.config import (
    FOLDER_CONFIG,
    VisionConfig,
    check_shapes,
    expected_shapes,
    linear_layers,
    local_folder,
    open_clip_config,
    trained_with_quick_gelu,
    vision_config,
)
from taskvec.models.clip.preprocessing import folder_preprocessing, malformed
from taskvec.models.clip.spaces import clip_shapes, clip_spaces
from taskvec.models.clip.tags import tag_repository
from taskvec.models.clip.text import TextSide, check_text, text_side
from taskvec.models.clip.transformers import described_vision
from taskvec.models.layers import Heads, LinearLayer
from taskvec.models.remote import tagged_files, tokenizer_files
from taskvec.models.sources import Source, one_line
from taskvec.models.spaces import Spaces
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "open_clip_model.safetensors"
OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


@register("backbone", "clip", paper="Radford et al., ICML 2021, arXiv 2103.00020")
class Clip(Backbone):
    """A CLIP model whose image tower is edited and whose text tower writes the frozen zero-shot heads.

    ``architecture`` is an open_clip name, a folder in open_clip's ``local-dir`` format, or ``pkg://NAME`` for one that
    ships with the package. ``pretrained`` is open_clip's tag, ``checkpoint`` a local file for the named architecture.
    """

    kind: Literal["clip"] = "clip"
    architecture: str
    pretrained: str | None = None
    checkpoint: str | None = None
    quick_gelu: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"

    gives: ClassVar[frozenset[Ability]] = frozenset({"zero_shot_heads"})

    @cached_property
    def name(self) -> str:
        """The architecture as open_clip takes it: a name, or the path of a folder."""
        if self.architecture.startswith("pkg://"):
            return str(ASSETS / self.architecture.removeprefix("pkg://"))
        return self.architecture

    @property
    def folder(self) -> Path | None:
        """The local folder that holds config and weights; None for a named architecture."""
        return local_folder(self.name)

    @cached_property
    def weights(self) -> Path | None:
        """The local weights file; None for a tag, which open_clip downloads and caches."""
        if self.folder:
            return self.folder / WEIGHTS
        return Path(self.checkpoint).expanduser() if self.checkpoint else None

    @cached_property
    def vision(self) -> VisionConfig:
        """The image tower's architecture.

        Raises:
            UserError: for an unknown architecture, or one that is not a plain vision transformer.
        """
        with malformed(self.name):
            by_tag = (
                self.quick_gelu is None
                and self.pretrained
                and trained_with_quick_gelu(self.name, self.pretrained)
            )
            quick = True if by_tag else self.quick_gelu
            return vision_config(open_clip_config(self.name), quick_gelu=quick)

    @cached_property
    def text(self) -> TextSide:
        """Where the text side is read from.

        Raises:
            UserError: for a description that asks for more than it may.
        """
        with malformed(self.name):
            return text_side(self.name, open_clip_config(self.name), self.trust_remote_code)

    @property
    def tokenizer_source(self) -> Source | None:
        """Where the tokenizer is; None for open_clip's own."""
        return self.text.tokenizer

    @cached_property
    def tagged(self) -> Source | None:
        """The hub's repository of a tag's weights; None for local weights, and for a tag from elsewhere."""
        repository = (
            tag_repository(self.name, self.pretrained)
            if self.pretrained and not self.weights
            else None
        )
        return Source(repository, key="backbone.pretrained") if repository else None

    @property
    def place(self) -> str:
        """The model's folder, its weights file, or the hub's repository of its tag."""
        local = self.folder or self.weights
        if local:
            return str(local)
        return self.tagged.name if self.tagged else self.name

    def function(self, description: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return the settings of the image tower: its own, of an ``open_clip_config.json``, or of transformers' CLIP.

        Raises:
            UserError: for a description without an image tower that is covered.
        """
        if description is None:
            return vars(self.vision)
        try:
            return vars(described_vision(description, self.vision))
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"not a plain CLIP image tower: {one_line(error)}") from error

    def remotes(self) -> list[Remote]:
        """Return a tag's weights, and the text side's files where they are of the hub."""
        self.vision  # noqa: B018 (an unknown architecture is told as one)
        found = [tagged_files(self.tagged, self.download_mb)] if self.tagged else []
        for source in (self.text.tokenizer, self.text.tower):
            if source and not source.folder:
                found.append(tokenizer_files(source))
        return found

    def identity(self) -> dict[str, Any]:
        """Return the settings with checksums or the hub's commits in place of paths."""
        settings = super().identity() | {
            "normalisation": [list(values) for values in self.normalisation()]
        }
        settings["text"] = self.text.identity()
        if self.weights:
            settings |= {
                "checkpoint": remembered_sha256(self.weights),
                "architecture": open_clip_config(self.name),
            }
        elif self.tagged:
            settings["weights"] = self.tagged.identity(())
        return settings

    def preprocessing(self) -> dict[str, Any]:
        """Return size, interpolation and resize mode, the settings that determine the decoded images."""
        values = {"interpolation": self.interpolation, "resize_mode": self.resize_mode}
        return self._folder_preprocessing(values) | {"size": list(self.vision.image_size)}

    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """Return the channels' mean and standard deviation for inputs in [0, 1]."""
        found = self._folder_preprocessing(dict(OPENAI))
        return self.mean or found["mean"], self.std or found["std"]

    def _folder_preprocessing(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return a folder's own preprocessing, with defaults for what it leaves out.

        Raises:
            UserError: for a value that cannot be worked with.
        """
        if not self.folder:
            return dict(defaults)
        fields = type(self).model_fields
        choices = ("interpolation", "resize_mode")
        allowed = {key: get_args(fields[key].annotation) for key in choices}
        return folder_preprocessing(self.folder / FOLDER_CONFIG, defaults, allowed)

    def linear_layers(self) -> list[LinearLayer]:
        """Return the image tower's linear layers in the order of the forward pass."""
        return linear_layers(self.vision)

    def attention_heads(self) -> Heads:
        """Return how attention is cut into heads."""
        return Heads(self.vision.heads, self.vision.heads, self.vision.width // self.vision.heads)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the image tower's trainable parameters by name."""
        return clip_shapes(self.vision)

    def described(self) -> dict[str, dict[str, Any]]:
        """Return the description in the form of ``open_clip_config.json``, the activation as the weights want it."""
        model = dict(open_clip_config(self.name))
        if self.vision.activation == "quick_gelu":
            model["quick_gelu"] = True
        mean, std = self.normalisation()
        prepared = self.preprocessing() | {"mean": list(mean), "std": list(std)}
        del prepared["size"]
        return {FOLDER_CONFIG: {"model_cfg": model, "preprocess_cfg": prepared}}

    def _spaces(self) -> Spaces:
        return clip_spaces(self.vision)

    def weight_bytes(self) -> int:
        """Return the size of the image tower in float32."""
        return 4 * sum(prod(shape) for shape in expected_shapes(self.vision).values())

    def check(self) -> None:
        """Compare the header of a local weights file with the architecture.

        Raises:
            UserError: for a missing source, a missing or unreadable file, or tensors that do not fit.
        """
        vision = self.vision
        if self.folder is None and not self.checkpoint and not self.pretrained:
            raise UserError(
                "backbone: give 'pretrained' (a tag) or 'checkpoint' (a file) with the architecture"
            )
        self.text.check()
        if self.weights is None:
            if self.tagged and not self.tagged.commit:
                raise UserError(
                    f"backbone.pretrained: {self.tagged.name} is not in the hub's cache and out of reach"
                )
            return
        if not self.weights.is_file():
            raise UserError(f"backbone.checkpoint: no file {self.weights}")
        if self.weights.suffix != ".safetensors":
            return  # read later with weights_only=True, which runs no code
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.weights, "np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                shapes = {name: s.get_shape() for name, s in slices.items()}
                integers = [
                    n
                    for n, s in slices.items()
                    if n.startswith("visual.") and "F" not in s.get_dtype()
                ]
            check_shapes(shapes, vision)
            check_text(shapes, open_clip_config(self.name))
        except (SafetensorError, ValueError) as error:
            raise UserError(f"backbone: {self.weights.name}: {error}") from error
        except (TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"backbone.architecture: {self.name}: malformed model description ({error})"
            ) from error
        if integers:
            raise UserError(f"backbone: {self.weights.name}: {integers[0]} is not floating-point")

    def load(self, device: str) -> ClipModel:
        """Return the image tower with its base weights.

        Raises:
            UserError: if weights cannot be read or are not finite.
        """
        import torch
        from safetensors.torch import load_file

        from taskvec.models.clip.vit import VisionTransformer, from_open_clip

        if self.weights and self.weights.suffix == ".safetensors":
            state = load_file(self.weights)
        else:
            state = self._open_clip[0].state_dict()
        weights = {name: tensor.float() for name, tensor in from_open_clip(state).items()}
        broken = first_broken(weights.items())
        if broken:
            raise UserError(
                f"backbone {self.architecture}: {broken} is not finite; the checkpoint is damaged"
            )
        with torch.device("meta"):
            module = VisionTransformer(self.vision)
        module.load_state_dict(weights, assign=True)
        return ClipModel(module.to(device), *self.normalisation())

    def heads(self, tasks: Mapping[str, Prompt]) -> dict[str, Tensor]:
        """Return each task's zero-shot head, written by the text tower on the CPU.

        Raises:
            UserError: if the text tower cannot be loaded or its output is not finite.
        """
        from taskvec.models.clip.zero_shot import zero_shot_head

        clip, tokenizer = self._open_clip
        heads = {}
        for task, prompt in tasks.items():
            words, templates, _ = Prompt(*prompt)
            try:
                heads[task] = zero_shot_head(clip, tokenizer, words, templates).cpu()
            except ValueError as error:  # the tokenizer's own, too
                raise UserError(
                    f"task {task}: backbone {self.architecture}: {one_line(error)}"
                ) from error
            if not heads[task].isfinite().all():
                raise UserError(
                    f"task {task}: backbone {self.architecture}: the text tower's output is not finite"
                )
        return heads

    @cached_property
    def _open_clip(self) -> tuple[Any, Any]:
        """Return open_clip's own model and tokenizer, after comparing its preprocessing with the config's.

        Raises:
            UserError: if they cannot be loaded, are not finite, or were trained with another preprocessing.
        """
        from taskvec.models.clip.zero_shot import load_open_clip

        if self.remotes():
            reachable()  # else the library asks for each file again and again
        try:
            quick = self.vision.activation == "quick_gelu"
            checkpoint = None if self.folder else self.weights
            clip, tokenizer, theirs = load_open_clip(
                self.name,
                self.pretrained,
                checkpoint,
                quick_gelu=quick,
                trusted=self.trust_remote_code,
            )
        except Exception as error:
            raise UserError(
                f"backbone {self.architecture}: {' '.join(str(error).split())}"
            ) from error
        text = [
            (name, tensor)
            for name, tensor in clip.named_parameters()
            if not name.startswith("visual.")
        ]
        broken = first_broken(text)
        if broken:
            raise UserError(
                f"backbone {self.architecture}: {broken} is not finite; the checkpoint is damaged"
            )
        if self.tagged and self.tagged.commit != replace(self.tagged).commit:
            raise UserError(
                f"backbone.pretrained: {self.tagged.name} changed while it was loaded; run it again"
            )
        mean, std = self.normalisation()
        ours = self.preprocessing() | {"mean": list(mean), "std": list(std)}
        for key in ("mean", "std", "interpolation", "resize_mode"):
            expected = list(theirs[key]) if key in ("mean", "std") else theirs[key]
            if ours[key] != expected:
                raise UserError(
                    f"backbone.{key}: {ours[key]} here, {expected} in the weights' training; set it so"
                )
        return clip, tokenizer


class ClipModel(Model):
    """A CLIP image tower on uint8 images [N, 3, H, W]; its features have unit length."""

    def __init__(self, module: Any, mean: Sequence[float], std: Sequence[float]):
        import torch

        super().__init__(module)
        device = next(module.parameters()).device
        self.mean = 255 * torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(std, device=device).view(1, 3, 1, 1)

    def prepare(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return (x / 255 - mean) / std in float32."""
        return ((inputs.to(self.mean.device, non_blocking=True).float() - self.mean) / self.std,)

    def features(
        self, parameters: Mapping[str, Tensor], inputs: Tensor, head: Tensor | None = None
    ) -> Tensor:
        """Return the image features at unit length [N, d]."""
        import torch

        features = super().features(parameters, inputs)
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        return torch.nn.functional.normalize(exact, dim=-1)

    def logits(
        self, features: Tensor, head: Tensor, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return exp(logit scale) * cos(features, class texts) [N, C]."""
        from taskvec.models.clip.zero_shot import classify

        return classify(features, head)
