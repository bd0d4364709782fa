"""GPT-2 with one Linear layer per weight matrix, and exact key maps between it and the published format.

Radford et al., Language Models are Unsupervised Multitask Learners, 2019. transformers stores transposed weights
(``Conv1D``), with q, k and v side by side in one; the rest of its network is used as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_CONV1D = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)$")
_PART = re.compile(r"\.attn\.c_attn\.([qkv])\.(weight|bias)$")


class QKV(nn.Module):
    """Separate q, k and v projections that answer like the packed one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, device="meta") for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to [..., 3 * width]."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def split(network: nn.Module) -> None:
    """Replace the Conv1D layers of transformers' GPT-2, block by block, by Linear layers with the same weights."""
    for block in network.transformer.h:
        state = from_transformers(
            {f".{name}": tensor for name, tensor in block.state_dict().items()}
        )
        with torch.device("meta"):
            width = block.attn.embed_dim
            block.attn.c_attn = QKV(width)
            block.attn.c_proj = nn.Linear(width, width)
            block.mlp.c_fc = nn.Linear(width, block.mlp.c_fc.nf)
            block.mlp.c_proj = nn.Linear(block.mlp.c_fc.out_features, width)
        block.load_state_dict({name[1:]: tensor for name, tensor in state.items()}, assign=True)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the canonical tensors of a published state dict: q, k, v apart, weights [out, in]; others as they are.

    A partial state gives a partial result. Packed and transposed tensors are copied.
    """
    canonical = {}
    for name, tensor in state.items():
        match = _CONV1D.search(name)
        if not match:
            canonical[name] = tensor
            continue
        tensor = tensor.mT if match[2] == "weight" else tensor
        if match[1] == "attn.c_attn":
            stem = name.removesuffix(match[2])
            parts = zip("qkv", tensor.chunk(3), strict=True)
            canonical |= {f"{stem}{part}.{match[2]}": _copy(rows) for part, rows in parts}
        else:
            canonical[name] = _copy(tensor)
    return canonical


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert ``from_transformers``, exactly.

    Raises:
        ValueError: naming the missing part where only some of q, k and v are there.
    """
    packed = {}
    for name, tensor in state.items():
        part, conv = _PART.search(name), _CONV1D.search(name)
        if part and part[1] == "q":
            packed[_packed_name(name)] = _pack(state, name)
        elif part:
            if _packed_name(name) not in packed and _sibling(name, "q") not in state:
                raise ValueError(
                    f"GPT-2 packs q, k and v in one tensor, and {_sibling(name, 'q')} is missing"
                )
        elif conv and conv[2] == "weight":
            packed[name] = _copy(tensor.mT)
        else:
            packed[name] = tensor
    return packed


def _pack(state: Mapping[str, Tensor], q: str) -> Tensor:
    names = [_sibling(q, part) for part in "qkv"]
    missing = next((name for name in names if name not in state), None)
    if missing:
        raise ValueError(f"GPT-2 packs q, k and v in one tensor, and {missing} is missing")
    rows = torch.cat([state[name] for name in names])
    return _copy(rows.mT) if q.endswith("weight") else rows


def _sibling(name: str, part: str) -> str:
    return re.sub(r"\.[qkv]\.(weight|bias)$", rf".{part}.\1", name)


def _packed_name(name: str) -> str:
    return re.sub(r"\.[qkv]\.(weight|bias)$", r".\1", name)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
