"""CLIP image towers as data: the settings, names and shapes of open_clip's VisionTransformer, read without torch.

Source: open_clip 3.3, ``CLIPVisionCfg``, ``VisionTransformer`` and the ``model_configs`` folder of its package.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

from taskvec.models.layers import ATTENTION_ROLES, DEEPEST, MLP_ROLES, LinearLayer

LOCAL_DIR = "local-dir:"
FOLDER_CONFIG = "open_clip_config.json"

# open_clip's own defaults of the settings that shape a plain tower.
_DEFAULTS: dict[str, Any] = {
    "image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64, "mlp_ratio": 4.0,
    "ls_init_value": None, "no_ln_pre": False, "pos_embed_type": "learnable", "pool_type": "tok",
    "final_ln_after_pool": False, "act_kwargs": None, "norm_kwargs": None,
}  # fmt: skip
# Without effect on a plain tower's features at evaluation: patch dropout acts in training only, token output is an
# extra return value, and the custom block computes the default one unless a feature of ``_REFUSED`` is on.
_INERT = {
    "patch_dropout", "output_tokens", "block_type", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained",
    "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
}  # fmt: skip
_REFUSED = {
    "timm_model_name": "a timm tower",
    "attentional_pool": "attentional pooling",
    "qk_norm": "query and key normalisation",
    "scaled_cosine_attn": "scaled cosine attention",
    "scale_heads": "per-head scales",
    "scale_attn_inner": "normalisation inside the attention",
    "scale_attn": "normalisation after the attention",
    "scale_fc": "normalisation inside the MLP",
}

# open_clip's parameter names, in its state-dict order, with the canonical tensors each holds. ``in_proj`` stacks the
# rows of q, k and v; ``proj`` is the transpose of a Linear's weight.
_HEAD_KEYS = {
    "class_embedding": ("class_embedding",),
    "positional_embedding": ("positional_embedding",),
    "proj": ("projection.weight",),
    "conv1.weight": ("patch_embed.weight",),
    "ln_pre.weight": ("ln_pre.weight",),
    "ln_pre.bias": ("ln_pre.bias",),
}
_BLOCK_KEYS = {
    "ln_1.weight": ("ln_1.weight",),
    "ln_1.bias": ("ln_1.bias",),
    "attn.in_proj_weight": ("attn.q.weight", "attn.k.weight", "attn.v.weight"),
    "attn.in_proj_bias": ("attn.q.bias", "attn.k.bias", "attn.v.bias"),
    "attn.out_proj.weight": ("attn.out.weight",),
    "attn.out_proj.bias": ("attn.out.bias",),
    "ls_1.gamma": ("ls_1.gamma",),
    "ln_2.weight": ("ln_2.weight",),
    "ln_2.bias": ("ln_2.bias",),
    "mlp.c_fc.weight": ("mlp.fc.weight",),
    "mlp.c_fc.bias": ("mlp.fc.bias",),
    "mlp.c_proj.weight": ("mlp.proj.weight",),
    "mlp.c_proj.bias": ("mlp.proj.bias",),
    "ls_2.gamma": ("ls_2.gamma",),
}
_TAIL_KEYS = {"ln_post.weight": ("ln_post.weight",), "ln_post.bias": ("ln_post.bias",)}

# Tags whose weights want QuickGELU although the architecture's description says GELU.
_QUICK_GELU_TAGS = {
    "ViT-B-32": {"openai", "laion400m_e31", "laion400m_e32", "metaclip_400m", "metaclip_fullcc"},
    "ViT-B-16": {"openai", "dfn2b", "metaclip_400m", "metaclip_fullcc"},
    "ViT-L-14": {"openai", "dfn2b", "metaclip_400m", "metaclip_fullcc"},
    "ViT-L-14-336": {"openai"},
    "ViT-H-14": {"dfn5b", "metaclip_fullcc"},
    "ViT-H-14-378": {"dfn5b"},
    "ViT-H-14-worldwide": {"metaclip2_worldwide"},
    "ViT-bigG-14": {"metaclip_fullcc"},
}


class UnsupportedTowerError(ValueError):
    """The image tower is none that the canonical model computes; the message is one line with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"CLIP image tower not covered: {reason}")


@dataclass(frozen=True)
class VisionConfig:
    """Everything that determines a plain CLIP image tower; sizes are ``(height, width)`` in pixels.

    ``activation`` is ``gelu``, ``gelu_tanh`` or ``quick_gelu`` (x * sigmoid(1.702 x)); ``ls_init_value`` is None where
    there is no layer scale; the other names are open_clip's.

    Raises:
        UnsupportedTowerError: for a combination that no covered tower has.
    """

    embed_dim: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "gelu"
    norm_eps: float = 1e-5
    ls_init_value: float | None = None
    ln_pre: bool = True
    pos_embed_type: str = "learnable"
    pool_type: str = "tok"
    final_ln_after_pool: bool = False

    def __post_init__(self) -> None:
        sizes = (
            self.embed_dim,
            *self.image_size,
            *self.patch_size,
            self.width,
            self.layers,
            self.mlp_width,
        )
        if any(not isinstance(size, int) or size < 1 for size in sizes):
            raise UnsupportedTowerError(f"every size must be a positive integer, got {self}")
        if self.layers > DEEPEST:
            raise UnsupportedTowerError(f"{self.layers} layers (at most {DEEPEST})")
        if self.heads < 1 or self.width % self.heads:
            raise UnsupportedTowerError(
                f"width {self.width} does not divide into {self.heads} heads"
            )
        if min(self.grid) < 1:
            raise UnsupportedTowerError(
                f"patches of {self.patch_size} do not fit images of {self.image_size}"
            )
        if self.activation not in ("gelu", "gelu_tanh", "quick_gelu"):
            raise UnsupportedTowerError(
                f"activation {self.activation!r} (gelu, gelu_tanh or quick_gelu)"
            )
        if self.pool_type not in ("tok", "avg"):
            raise UnsupportedTowerError(
                f"pool_type {self.pool_type!r} does not give one vector per image (tok or avg does)"
            )
        if self.pos_embed_type not in ("learnable", "sin_cos_2d"):
            raise UnsupportedTowerError(
                f"pos_embed_type {self.pos_embed_type!r} (learnable or sin_cos_2d)"
            )
        if self.pos_embed_type == "sin_cos_2d" and (self.grid[0] != self.grid[1] or self.width % 4):
            found = f"got {self.grid} and {self.width}"
            raise UnsupportedTowerError(
                f"sin_cos_2d needs a square grid and a width divisible by 4, {found}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; pixels beyond the last whole patch are cut off."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def tokens(self) -> int:
        """Length of the token sequence: the class token and one token per patch."""
        return self.grid[0] * self.grid[1] + 1


def vision_config(model_cfg: Mapping[str, Any], quick_gelu: bool | None = None) -> VisionConfig:
    """Read the image tower from an open_clip model description (``embed_dim``, ``vision_cfg``, ``quick_gelu``, ...).

    ``quick_gelu`` overrides the description, because a pre-training tag (OpenAI's weights) can ask for another
    activation than the architecture's.

    Raises:
        UnsupportedTowerError: for whatever is not open_clip's plain VisionTransformer: timm towers, ResNets,
            attentional pooling, modified attention, unknown settings.
    """
    for key in ("embed_dim", "vision_cfg"):
        if key not in model_cfg:
            raise UnsupportedTowerError(f"the model description has no {key!r}")
    settings = _plain_settings(model_cfg["vision_cfg"])
    if quick_gelu is None:
        quick_gelu = bool(model_cfg.get("quick_gelu", False))
    norm = dict(settings["norm_kwargs"] or {})
    eps = norm.pop("eps", 1e-5)
    if norm:
        raise UnsupportedTowerError(f"norm_kwargs {sorted(norm)} (only eps is)")
    return VisionConfig(
        embed_dim=model_cfg["embed_dim"],
        image_size=_pair(settings["image_size"], "image_size"),
        patch_size=_pair(settings["patch_size"], "patch_size"),
        width=settings["width"],
        layers=settings["layers"],
        heads=settings["width"] // settings["head_width"],
        mlp_width=int(settings["width"] * settings["mlp_ratio"]),
        activation=_activation(settings["act_kwargs"] or {}, quick_gelu),
        norm_eps=eps,
        ls_init_value=settings["ls_init_value"],
        ln_pre=not settings["no_ln_pre"],
        pos_embed_type=settings["pos_embed_type"],
        pool_type=settings["pool_type"],
        final_ln_after_pool=settings["final_ln_after_pool"],
    )


def linear_layers(config: VisionConfig) -> list[LinearLayer]:
    """List the tower's ``6 * layers + 1`` linear layers in the order of the forward pass, the projection last."""
    blocks = [
        LinearLayer(f"blocks.{index}.{role}", role, index)
        for index in range(config.layers)
        for role in ATTENTION_ROLES + MLP_ROLES
    ]
    return [*blocks, LinearLayer("projection", "projection")]


def key_map(layers: int) -> dict[str, tuple[str, ...]]:
    """Map each visual name of open_clip (without ``visual.``, in its order) to the canonical tensors it holds.

    Optional parameters (``ln_pre``, layer scale) are included: a state dict of a tower without them lacks these names.
    """
    keys = dict(_HEAD_KEYS)
    for index in range(layers):
        for theirs, ours in _BLOCK_KEYS.items():
            keys[f"transformer.resblocks.{index}.{theirs}"] = tuple(
                f"blocks.{index}.{name}" for name in ours
            )
    return keys | _TAIL_KEYS


def expected_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every image-tower tensor of an open_clip checkpoint (``visual.`` prefix, open_clip's order)."""
    width, mlp = config.width, config.mlp_width
    exceptions = {
        "positional_embedding": (config.tokens, width),
        "proj": (width, config.embed_dim),
        "conv1.weight": (width, 3, *config.patch_size),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "mlp.c_fc.weight": (mlp, width),
        "mlp.c_fc.bias": (mlp,),
        "mlp.c_proj.weight": (width, mlp),
    }
    absent = () if config.ln_pre else ("ln_pre.weight", "ln_pre.bias")
    absent += () if config.ls_init_value is not None else ("ls_1.gamma", "ls_2.gamma")
    shapes = {}
    for key in key_map(config.layers):
        name = key.split(".", 3)[-1] if key.startswith("transformer.") else key
        if name not in absent:
            shapes[f"visual.{key}"] = exceptions.get(name, (width,))
    return shapes


def check_shapes(shapes: Mapping[str, Sequence[int]], config: VisionConfig) -> None:
    """Compare the header of an open_clip checkpoint (name -> shape; the text side is ignored) with the configuration.

    Raises:
        ValueError: naming the first image-tower tensor that is missing, unknown or of another shape.
    """
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in shapes:
            raise ValueError(f"the checkpoint lacks {name} {shape}")
        if tuple(shapes[name]) != shape:
            raise ValueError(
                f"{name} has shape {tuple(shapes[name])} in the checkpoint, the architecture has {shape}"
            )
    unknown = [name for name in shapes if name.startswith("visual.") and name not in expected]
    if unknown:
        raise ValueError(f"the checkpoint holds {unknown[0]}, which the architecture does not have")


def trained_with_quick_gelu(architecture: str, pretrained: str) -> bool:
    """Return whether a tag's weights want QuickGELU although the named architecture's description does not.

    The other tags keep the activation of the description, which is QuickGELU for the ``-quickgelu`` names.
    """
    tags = _QUICK_GELU_TAGS.get(architecture.replace("/", "-"), ())
    return pretrained.lower().replace("-", "_") in tags


@cache
def open_clip_names() -> list[str]:
    """Names of the architectures that the installed open_clip package describes, read without importing it."""
    return sorted(path.stem for path in _config_folder().glob("*.json"))


def open_clip_config(architecture: str) -> dict[str, Any]:
    """Return the description of a named architecture (``ViT-B-32``, ``ViT-B/32``) or of a folder in open_clip's format.

    A folder holds ``open_clip_config.json`` and is given as a path or as ``local-dir:PATH``; a known name wins over a
    path.

    Raises:
        ValueError: for an unknown name (with the nearest ones), and for a folder without a model description.
    """
    folder = local_folder(architecture)
    if folder is None:
        return json.loads(
            (_config_folder() / f"{architecture.replace('/', '-')}.json").read_text(
                encoding="utf-8"
            )
        )
    path = folder / FOLDER_CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {FOLDER_CONFIG}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no 'model_cfg'") from error


def local_folder(architecture: str) -> Path | None:
    """Resolve the architecture to its local folder, or to ``None`` if it is a name.

    Raises:
        ValueError: if it is neither, with the nearest names.
    """
    if architecture.startswith(LOCAL_DIR):
        return Path(architecture.removeprefix(LOCAL_DIR))
    names = open_clip_names()
    name = architecture.replace("/", "-")
    if name in names:
        return None
    if (Path(architecture) / FOLDER_CONFIG).is_file():
        return Path(architecture)
    by_fold = {known.lower(): known for known in names}
    near = [
        by_fold[fold] for fold in difflib.get_close_matches(name.lower(), by_fold, n=4, cutoff=0.6)
    ]
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise ValueError(
        f"open_clip has no architecture {architecture!r}, and it is no folder with {FOLDER_CONFIG}{hint}"
    )


def _config_folder() -> Path:
    return package_folder() / "model_configs"


@cache
def package_folder() -> Path:
    """Return the folder of the installed open_clip package, without importing it.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    spec = importlib.util.find_spec("open_clip")  # finds a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "open_clip is not installed: pip install open_clip_torch", name="open_clip"
        )
    return Path(spec.submodule_search_locations[0])


def _plain_settings(vision_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a plain VisionTransformer with open_clip's defaults filled in.

    Raises:
        UnsupportedTowerError: for any other tower, and for a setting that open_clip does not have.
    """
    for key, reason in _REFUSED.items():
        if vision_cfg.get(key):
            raise UnsupportedTowerError(f"{reason} ({key}={vision_cfg[key]})")
    unknown = sorted(set(vision_cfg) - set(_DEFAULTS) - _INERT - set(_REFUSED))
    if unknown:
        raise UnsupportedTowerError(f"unknown vision settings {unknown}")
    settings = _DEFAULTS | {key: value for key, value in vision_cfg.items() if key in _DEFAULTS}
    if isinstance(settings["layers"], Sequence):
        raise UnsupportedTowerError(f"a ResNet (layers={settings['layers']})")
    for key in ("width", "head_width", "mlp_ratio"):
        if not isinstance(settings[key], int | float) or not 0 < settings[key] < inf:
            raise UnsupportedTowerError(f"{key}={settings[key]!r} is not a positive number")
    return settings


def _pair(value: int | Sequence[int], key: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise UnsupportedTowerError(f"{key} must be one integer or (height, width), got {value}")
    return value[0], value[1]


def _activation(act_kwargs: Mapping[str, Any], quick_gelu: bool) -> str:
    if quick_gelu and not act_kwargs:
        return "quick_gelu"
    if not quick_gelu and set(act_kwargs) <= {"approximate"}:
        known = {"none": "gelu", "tanh": "gelu_tanh"}
        if (approximate := act_kwargs.get("approximate", "none")) in known:
            return known[approximate]
    found = f"act_kwargs {dict(act_kwargs)} with quick_gelu={quick_gelu}"
    raise UnsupportedTowerError(f"{found} (only approximate=none|tanh of GELU is)")
