"""Layers that every family shares, differentiable to any order in forward and reverse mode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

SHORT = 64


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, differentiable to any order.

    Inside transforms the formula is computed as written: the second derivative of PyTorch's own operator is wrong
    there, as if the mean and the variance were constants (pytorch/pytorch#196700).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., width] in float32 or better."""
        if not transformed():
            return super().forward(x)
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        y = y - y.mean(dim=-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return (y * self.weight + self.bias).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q, k, v [..., L, d], by a fused kernel where its derivatives suffice.

    Inside ``torch.func`` transforms and dual levels the formula is computed as written, because the fused kernels have
    no forward-mode derivative and no batching rule; so it is when short sequences are trained on a CPU, where the fused
    kernel's backward pass takes longer than all the rest of a step.
    """
    if transformed() or torch.is_grad_enabled() and q.device.type == "cpu" and q.shape[-2] <= SHORT:
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def transformed() -> bool:
    """Return whether a ``torch.func`` transform or a dual level is active.

    The tensors cannot be asked: a tangent is invisible below a nested grad, and ``unpack_dual`` has no batching rule.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
