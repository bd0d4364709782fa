"""The CLIP image tower in the canonical layout, numerically equal to open_clip's, and exact key maps between the two.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from taskvec.models.clip.config import VisionConfig, key_map
from taskvec.models.layers_torch import LayerNorm, attend


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it elementwise."""
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    """gamma * x with one learned factor per channel (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x`` [..., width]."""
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention whose four projections are separate, really called Linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, L, width] to [N, L, width]."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for layer in (self.q, self.k, self.v)
        )  # [N, heads, L, width / heads]
        return self.out(attend(q, k, v).transpose(-3, -2).flatten(-2))


class MLP(nn.Module):
    """proj(activation(fc(x)))."""

    def __init__(self, width: int, mlp_width: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(width, mlp_width)
        self.activation = activation
        self.proj = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [..., width] to [..., width]."""
        return self.proj(self.activation(self.fc(x)))


class Block(nn.Module):
    """Pre-norm residual block: x + s1 * attn(ln_1(x)), then x + s2 * mlp(ln_2(x)); s1 = s2 = 1 without layer scale."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, scale = config.width, config.ls_init_value
        self.ln_1 = LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(width, config.heads)
        self.ls_1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.ln_2 = LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, config.mlp_width, _activation(config.activation))
        self.ls_2 = nn.Identity() if scale is None else LayerScale(width, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, L, width] to [N, L, width]."""
        x = x + self.ls_1(self.attn(self.ln_1(x)))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class VisionTransformer(nn.Module):
    """CLIP's image tower: normalised images [N, 3, H, W] -> features [N, embed_dim], not scaled to unit length.

    Equal to open_clip's VisionTransformer at evaluation; ``torch.func`` transforms, nested too, apply to it directly.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width, scale = config.width, config.width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        if config.pos_embed_type == "sin_cos_2d":
            self.positional_embedding = nn.Parameter(
                sin_cos_2d(width, config.grid[0]), requires_grad=False
            )
        else:
            self.positional_embedding = nn.Parameter(scale * torch.randn(config.tokens, width))
        self.patch_embed = nn.Conv2d(
            3, width, config.patch_size, stride=config.patch_size, bias=False
        )
        self.ln_pre = LayerNorm(width, eps=config.norm_eps) if config.ln_pre else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_post = LayerNorm(width, eps=config.norm_eps)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W], taken in the weights' dtype, to features [N, embed_dim]."""
        images = images.to(self.patch_embed.weight.dtype)
        patches = self.patch_embed(images).flatten(2).mT  # [N, rows * columns, width]
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = self.ln_pre(torch.cat([class_token, patches], dim=1) + self.positional_embedding)
        for block in self.blocks:
            x = block(x)
        return self.projection(self._pool(x))

    def _pool(self, x: Tensor) -> Tensor:
        """Reduce tokens [N, L, width] to [N, width]."""
        if self.config.pool_type == "tok":
            # The norm acts on each token alone, so before or after pooling is the same
            return self.ln_post(x[:, 0])
        if self.config.final_ln_after_pool:
            return self.ln_post(x[:, 1:].mean(dim=1))
        return self.ln_post(x[:, 1:]).mean(dim=1)


def sin_cos_2d(width: int, side: int) -> Tensor:
    """Fixed positions [side^2 + 1, width] float32: (sin x w, cos x w, sin y w, cos y w), zero for the class token.

    w_i = 10000^(-4 i / width), i < width / 4; patches run along the rows (Chen et al., MoCo v3, arXiv 2104.02057).
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.outer(torch.arange(side, dtype=torch.float64), frequencies)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    patches = torch.cat([waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)], dim=1)
    return torch.cat([patches.new_zeros(1, width), patches]).float()


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the canonical tensors of a CLIP state dict (``visual.`` prefix, text side ignored) or of its bare tower.

    q, k, v are the row thirds of ``in_proj`` and ``projection.weight`` is ``proj`` transposed; these are copies, the
    others are passed on as they are. A partial state gives a partial result.

    Raises:
        ValueError: naming an unknown key.
    """
    if any(name.startswith("visual.") for name in state):
        state = {
            name.removeprefix("visual."): tensor
            for name, tensor in state.items()
            if name.startswith("visual.")
        }
    keys = key_map(_depth(state, r"transformer\.resblocks\.(\d+)\."))
    _refuse_unknown(state, keys)
    canonical = {}
    for theirs, ours in keys.items():
        if theirs not in state:
            continue
        tensor = state[theirs]
        if len(ours) > 1:
            canonical |= {
                name: part.clone() for name, part in zip(ours, tensor.chunk(len(ours)), strict=True)
            }
        else:
            canonical[ours[0]] = _transposed(tensor) if theirs == "proj" else tensor
    return canonical


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert ``from_open_clip``, exactly: ``visual.``-prefixed tensors in open_clip's own names and order.

    Raises:
        ValueError: naming an unknown key, or the missing part where only some of q, k and v are there.
    """
    keys = key_map(_depth(state, r"blocks\.(\d+)\."))
    _refuse_unknown(state, {name for ours in keys.values() for name in ours})
    packed = {}
    for theirs, ours in keys.items():
        missing = [name for name in ours if name not in state]
        if len(missing) == len(ours):
            continue
        if missing:
            raise ValueError(
                f"open_clip packs q, k and v in one tensor, and {missing[0]} is missing"
            )
        if len(ours) > 1:
            packed[f"visual.{theirs}"] = torch.cat([state[name] for name in ours])
        else:
            packed[f"visual.{theirs}"] = (
                _transposed(state[ours[0]]) if theirs == "proj" else state[ours[0]]
            )
    return packed


def _depth(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return the number of blocks that the names speak of."""
    matches = (re.match(pattern, name) for name in state)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def _refuse_unknown(state: Mapping[str, Tensor], known: Mapping[str, object] | set[str]) -> None:
    for name in state:
        if name not in known:
            raise ValueError(f"{name} is no parameter of a CLIP image tower")


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.T.clone(memory_format=torch.contiguous_format)


def _activation(name: str) -> nn.Module:
    if name == "quick_gelu":
        return QuickGELU()
    approximation = "tanh" if name == "gelu_tanh" else "none"
    return nn.GELU(approximation)
