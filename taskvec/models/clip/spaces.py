"""The shapes and the activation spaces of a CLIP image tower's parameters."""

from __future__ import annotations

from taskvec.models.clip.config import VisionConfig, expected_shapes, key_map
from taskvec.models.layers import ATTENTION_ROLES, MLP_ROLES
from taskvec.models.spaces import Spaces


def clip_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every trainable parameter of a tower by its canonical name."""
    stored, found = expected_shapes(config), {}
    for theirs, ours in key_map(config.layers).items():
        shape = stored.get(f"visual.{theirs}")
        if shape is None:
            continue
        # open_clip packs the rows of q, k and v, and keeps the projection transposed
        shape = (shape[0] // len(ours), *shape[1:])
        if theirs == "proj":
            shape = shape[::-1]
        found |= dict.fromkeys(ours, shape)
    if config.pos_embed_type == "sin_cos_2d":
        del found["positional_embedding"]
    return found


def clip_spaces(config: VisionConfig) -> Spaces:
    """Return the spaces of every parameter that a tower can have.

    ``residual`` is the sum of patches, class token and positions, ``projection.in`` the pooled output of the last norm
    and ``embedding`` the image feature before it is scaled to unit length.
    """
    spaces = Spaces()
    spaces.axes |= {
        "patch_embed.weight": ("residual", None, None, None),
        "class_embedding": ("residual",),
        "positional_embedding": (None, "residual"),
    }
    spaces.observed["residual"] = ("ln_pre", "input")
    spaces.add_norm("ln_pre", "ln_pre")
    for index in range(config.layers):
        block = f"blocks.{index}"
        for role in ATTENTION_ROLES + MLP_ROLES:
            spaces.add_block_layer(block, f"{block}.{role}", role)
        spaces.add_norm(f"{block}.ln_1", f"{block}.attn.in")
        spaces.add_norm(f"{block}.ln_2", f"{block}.mlp.in")
        for scale in ("ls_1", "ls_2"):
            spaces.axes[f"{block}.{scale}.gamma"] = (f"{block}.{scale}",)
            spaces.observed[f"{block}.{scale}"] = (f"{block}.{scale}", "output")
    spaces.add_linear("projection", "projection.in", "embedding")
    spaces.add_norm("ln_post", "projection.in")
    return spaces
