"""CLIP's image tower as transformers stores it: key maps to and from the canonical layout, and its description.

Files of transformers 4 put ``vision_model.`` before every name, those of transformers 5 do not. A bare tower
(``CLIPVisionModel``) has no projection. Source: transformers 5.23, ``models/clip``; spec suites 3, trap 6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from taskvec.models.clip.config import VisionConfig, vision_config

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "vision_model."
PROJECTION = "projection.weight"
MODEL_TYPES = ("clip", "clip_vision_model")
_SIGN = "pre_layrnorm.weight"  # their spelling, which no other family has
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")

_OUTSIDE = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "patch_embed.weight",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
    "visual_projection.weight": PROJECTION,
}
_INSIDE = {
    "layer_norm1": "ln_1",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.out_proj": "attn.out",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.fc",
    "mlp.fc2": "mlp.proj",
}
# transformers' own values, which its descriptions may leave out
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh"}


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Return whether tensors have transformers' names of a CLIP image tower."""
    return _SIGN in state or PREFIX + _SIGN in state


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the canonical tensors of a model or a bare tower, as they are; position numbers and texts are left out."""
    found = {}
    for name, tensor in state.items():
        canonical = _canonical(name.removeprefix(PREFIX))
        if canonical is not None:
            found[canonical] = tensor
    return found


def to_transformers(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return canonical tensors under transformers' names, ``prefix`` before all but the projection's."""
    outside = {ours: theirs for theirs, ours in _OUTSIDE.items()}
    inside = {ours: theirs for theirs, ours in _INSIDE.items()}
    found = {}
    for name, tensor in state.items():
        if name == PROJECTION:
            found[outside[name]] = tensor
        elif name in outside:
            found[prefix + outside[name]] = tensor
        else:
            _, block, rest = name.split(".", 2)
            module, _, kind = rest.rpartition(".")
            found[f"{prefix}encoder.layers.{block}.{inside[module]}.{kind}"] = tensor
    return found


def _canonical(name: str) -> str | None:
    """Return the canonical name of a tensor without prefix, None for what is no weight of the tower."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return _OUTSIDE.get(name)
    block, module, kind = match.groups()
    ours = _INSIDE.get(module)
    return None if ours is None else f"blocks.{block}.{ours}.{kind}"


def described_vision(description: Mapping[str, Any], like: VisionConfig) -> VisionConfig:
    """Return the image tower of an ``open_clip_config.json``, or of a ``config.json`` of transformers.

    The latter does not speak of all settings; the others are those of ``like``.

    Raises:
        LookupError: if it is neither.
        ValueError: for a tower that is not covered, and malformed sizes.
    """
    if description.get("model_type") not in MODEL_TYPES:
        return vision_config(description["model_cfg"])
    told = description.get("vision_config") or description
    values = {key: told.get(key, default) for key, default in _DEFAULTS.items()}
    activation = values["hidden_act"]
    return replace(
        like,
        width=int(values["hidden_size"]),
        mlp_width=int(values["intermediate_size"]),
        layers=int(values["num_hidden_layers"]),
        heads=int(values["num_attention_heads"]),
        image_size=(int(values["image_size"]),) * 2,
        patch_size=(int(values["patch_size"]),) * 2,
        norm_eps=float(values["layer_norm_eps"]),
        activation=_ACTIVATIONS.get(activation, activation),
    )
