"""Attention and norms of transformers' models, differentiable to any order in forward and reverse mode.

transformers looks attention functions up by name, so its own modules call ours; norms are swapped in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from taskvec.models.layers_torch import LayerNorm, transformed

ATTENTION = "taskvec"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    # Transformers passes on what single models need: window sizes (in the mask already), positions
    **_: Any,
) -> tuple[Tensor, None]:
    """Return softmax(cap(scale q k^T + bias), masked) v as [N, L, heads, d] for q [N, heads, L, d], k and v by group.

    ``attention_mask`` is boolean, True where a query may look; None means all of them, up to itself in a causal layer.
    A fused kernel computes it, unless the scores are capped or a transform is active (see ``layers_torch.attend``).
    """
    if softcap is None and not transformed():
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            position_bias=position_bias,
        )
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scale) @ repeat_kv(key, groups).mT  # [N, heads, L, S]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is None and module.is_causal and query.shape[2] > 1:
        attention_mask = torch.ones(
            scores.shape[-2:], dtype=torch.bool, device=scores.device
        ).tril()
    if attention_mask is not None:
        scores = torch.where(attention_mask, scores, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(
        value.dtype
    )
    return (weights @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), None


def attention_mask(*positions: Any, **settings: Any) -> Tensor | None:
    """Return transformers' boolean mask, always written out where it speaks of padding.

    Whether anything is padded would have to be read from the device, and would choose another kernel per batch.
    """
    return sdpa_mask(*positions, **settings | {"allow_is_bidirectional_skip": False})


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, attention_mask)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + weight) over the last dimension, in float32 or better.

    transformers' own rounds float64 to float32. Gemma's (``offset`` 1) multiplies before it rounds to the dtype of x,
    the others after.
    """

    def __init__(self, weight: nn.Parameter, eps: float, offset: int) -> None:
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., width]."""
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return (y * (1 + self.weight)).to(x.dtype) if self.offset else self.weight * y.to(x.dtype)


def make_differentiable(network: nn.Module, norm: str) -> None:
    """Swap the norms of a network for ours, and let embeddings learn every row.

    ``norm`` is that of the family: ``layer``, ``rms`` or ``rms_plus_one``.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            if type(child) is nn.LayerNorm:
                swapped = LayerNorm(child.normalized_shape, eps=child.eps, device="meta")
                swapped.weight, swapped.bias = child.weight, child.bias
                setattr(parent, name, swapped)
            elif norm != "layer" and (kind.endswith("RMSNorm") or kind == "T5LayerNorm"):
                eps = child.eps if hasattr(child, "eps") else child.variance_epsilon
                setattr(parent, name, RMSNorm(child.weight, eps, int(norm == "rms_plus_one")))
            elif isinstance(child, nn.Embedding):
                # A padding row is skipped in reverse mode only; padding is masked, so no row needs the exception.
                child.padding_idx = None
