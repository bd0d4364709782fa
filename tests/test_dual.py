"""Derivatives along several directions at once, operation by operation, against one jvp per direction."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from taskvec.training.dual import differentiate

DIRECTIONS = 3


OPERATIONS = {
    "linear": lambda v: F.linear(v["x"], v["w"], v["b"]),
    "linear without bias": lambda v: F.linear(v["x"][None], v["w"]),
    "linear of constants": lambda v: F.linear(torch.ones(2, 6).double(), v["w"], v["b"]),
    "bias alone": lambda v: F.linear(torch.ones(2, 6).double(), torch.eye(6).double(), v["b"]),
    "layer norm": lambda v: F.layer_norm(v["x"], (6,), v["b"], v["b"] * 2, 1e-3),
    "layer norm alone": lambda v: F.layer_norm(v["x"].mT, (4,)),
    "layer norm of constants": lambda v: F.layer_norm(torch.arange(6.0).double(), (6,), v["b"]),
    "layer norm over two": lambda v: F.layer_norm(v["x"], (4, 6)),
    "attention": lambda v: F.scaled_dot_product_attention(*heads(v)),
    "causal": lambda v: F.scaled_dot_product_attention(*heads(v), is_causal=True, scale=0.7),
    "masked": lambda v: F.scaled_dot_product_attention(*heads(v), attn_mask=torch.eye(4).bool()),
    "biased": lambda v: F.scaled_dot_product_attention(*heads(v), attn_mask=v["x"] @ v["x"].mT),
    "values alone": lambda v: F.scaled_dot_product_attention(*[torch.eye(6).double()] * 2, v["w"]),
    "keys alone": lambda v: F.scaled_dot_product_attention(
        torch.eye(6).double(), v["w"], torch.eye(6).double()
    ),
    "groups": lambda v: F.scaled_dot_product_attention(
        v["x"].view(1, 2, 2, 6), *[v["w"].view(1, 1, 6, 6)] * 2, enable_gqa=True
    ),
    "activations": lambda v: (
        F.gelu(v["x"], approximate="tanh") + F.silu(v["x"]) - torch.tanh(v["x"]).sigmoid()
    ),
    "products": lambda v: (
        v["x"] * v["b"] * 2 * v["b"].square() + v["b"][0] * v["x"] - (3 * v["b"]) * v["x"][0].pow(3)
    ),
    "powers": lambda v: (
        v["x"].square().add(1).rsqrt() + 1.5 ** v["x"] + v["x"].square() ** v["b"].square()
    ),
    "several powers": lambda v: v["b"].square().pow(torch.arange(1.0, 4.0).double().view(3, 1)),
    "views": lambda v: (
        v["x"].unflatten(-1, (2, 3)).transpose(0, 1).flatten(1)[:, ::2].permute(1, 0).reshape(3, -1)
    ),
    "broadcast": lambda v: v["x"].expand(2, 4, 6) + v["b"] - 3 * v["x"] / (2 + v["b"].square()),
    "chunks": lambda v: torch.cat([x * i for i, x in enumerate(v["x"].chunk(3, dim=-1))]),
    "the largest": lambda v: v["x"].max(dim=1).values + v["x"].sort(dim=0).values.sum(),
    "integers on the way": lambda v: (
        v["x"][v["x"].argmax(dim=0)] * (v["x"] > 0).to(v["x"].dtype).sum()
    ),
    "writing": lambda v: (v["x"] @ v["w"]).add_(v["b"]).mul_(2),
    "writing into constants": lambda v: into(torch.zeros_like(v["x"]), v["x"] @ v["w"]),
    "in place by a flag": lambda v: F.silu(v["x"] @ v["w"], inplace=True),
}


def heads(v):
    """Queries, keys and values [1, 2, 4, 3]."""
    return [(v["x"] @ v["w"] * i).view(1, 4, 2, 3).transpose(1, 2) for i in (1.0, 2.0, 3.0)]


def into(target, source):
    """Write a row of ``source`` into ``target``."""
    target[0] = source[1]
    return target


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("seed", [3, 71])
def test_equals_one_jvp_per_direction(name, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (4, 6), "w": (6, 6), "b": (6,)}
    values = {
        n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()
    }
    directions = {
        n: torch.randn(DIRECTIONS, *s, generator=generator, dtype=torch.float64)
        for n, s in shapes.items()
    }
    before = {n: x.clone() for n, x in values.items()}
    value, tangents = differentiate(OPERATIONS[name], values, directions)
    for i in range(DIRECTIONS):
        with sdpa_kernel(SDPBackend.MATH):  # the one that has a forward mode
            expected, slope = jvp(
                OPERATIONS[name], (values,), ({n: d[i] for n, d in directions.items()},)
            )
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tangents[i], slope, rtol=1e-11, atol=1e-12)
    assert type(value) is type(tangents) is torch.Tensor
    assert all(torch.equal(values[n], before[n]) for n in values)


def test_follows_autocast():
    generator = torch.Generator().manual_seed(5)
    shapes = {"x": (4, 6), "w": (6, 6), "b": (6,)}
    values = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    directions = {n: torch.randn(DIRECTIONS, *s, generator=generator) for n, s in shapes.items()}

    def network(v):
        return F.layer_norm(F.gelu(F.linear(v["x"], v["w"], v["b"])), (6,)) @ v["w"]

    exact, expected = differentiate(network, values, directions)
    with torch.autocast("cpu", torch.bfloat16):
        value, tangents = differentiate(network, values, directions)
    assert value.dtype == tangents.dtype == torch.bfloat16
    torch.testing.assert_close(value.float(), exact, rtol=0.05, atol=0.1)
    assert (tangents.float() - expected).norm() < 0.03 * expected.norm()
