"""Forward-mode differentiation along many directions at once, for evaluation: one pass carries all derivatives.

``vmap`` over ``torch.func.jvp`` gives the same numbers. It writes each term of a layer's derivative to memory of its
own, and the derivative of an activation once per direction; the rules below add terms inside the matrix product and
share what does not depend on the direction. Every other operation goes through ``vmap`` and ``jvp`` by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

Function = Callable[[Mapping[str, Tensor]], Tensor]


def differentiate(
    function: Function, values: Mapping[str, Tensor], directions: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return function(values) and its derivatives [T, ...] along ``directions`` [T, *shape], without a graph.

    The derivatives are None where the function depends on none of the values. One that writes into tensors, as
    transformers' DeBERTa does, goes through ``vmap`` and ``jvp`` as a whole.
    """
    with torch.no_grad():
        try:
            return parts(
                function({name: dual(value, directions[name]) for name, value in values.items()})
            )
        except Overwritten:
            product = vmap(
                lambda tangents: jvp(function, (dict(values),), (tangents,)), out_dims=(None, 0)
            )
            return product(dict(directions))


class Overwritten(Exception):
    """A function writes into a tensor on the way to a derivative."""


class Dual(Tensor):
    """A floating-point tensor with its derivatives ``tangents`` [T, *shape] along T directions."""

    tangents: Tensor

    @classmethod
    def __torch_function__(
        cls,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Apply ``func`` to the values and its derivative to the tangents.

        Raises:
            Overwritten: if ``func`` writes into one of its arguments.
        """
        with torch._C.DisableTorchFunctionSubclass():
            name, kwargs = func.__name__, kwargs or {}
            writes = (
                name in ("__setitem__", "__set__") or name.endswith("_") and not name.endswith("__")
            )
            if writes or kwargs.get("inplace") or kwargs.get("out") is not None:
                raise Overwritten(f"{name} overwrites a tensor on the way to a derivative")
            return RULES.get(func, general)(func, *args, **kwargs)


def dual(value: Tensor, tangents: Tensor) -> Dual:
    """Return ``value`` with its derivatives ``tangents`` [T, *shape]; nothing is copied."""
    made = value.as_subclass(Dual)
    made.tangents = tangents
    return made


def parts(x: Any) -> tuple[Any, Tensor | None]:
    """Return the value, and the tangents if there are any, of what may be a :class:`Dual`."""
    return (x.as_subclass(Tensor), x.tangents) if isinstance(x, Dual) else (x, None)


def aligned(tangents: Tensor | None, dims: int) -> Tensor | None:
    """Return tangents [T, *shape] as [T, 1, ..., *shape], which broadcast like a shape of ``dims`` dimensions."""
    return (
        tangents
        if tangents is None
        else tangents[(slice(None), *[None] * (dims + 1 - tangents.ndim))]
    )


def general(func: Callable, *args: Any, **kwargs: Any) -> Any:
    """Differentiate any function by ``vmap`` and ``jvp``; outputs that are not floating-point carry no derivative."""
    leaves, spec = tree_flatten((args, kwargs))
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Dual)]
    values, tangents = zip(*(parts(leaves[i]) for i in where), strict=True)

    def call(*inputs: Tensor) -> tuple[list, Any]:
        for i, value in zip(where, inputs, strict=True):
            leaves[i] = value
        plain, named = tree_unflatten(leaves, spec)
        return tree_flatten(func(*plain, **named))

    found, shape = call(*values)
    floats = [
        i for i, leaf in enumerate(found) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    if floats:

        def derivative(*directions: Tensor) -> tuple[Tensor, ...]:
            return jvp(
                lambda *inputs: tuple(call(*inputs)[0][i] for i in floats), values, directions
            )[1]

        for i, moved in zip(floats, vmap(derivative)(*tangents), strict=True):
            found[i] = dual(found[i], moved)
    return tree_unflatten(found, shape)


def alone(x: Any, *others: Any) -> bool:
    """Return whether ``x`` carries derivatives and nothing in ``others`` does."""
    return isinstance(x, Dual) and not any(
        isinstance(leaf, Dual) for leaf in tree_flatten(others)[0]
    )


def straight(func: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a linear function of one tensor, such as a view, to value and tangents alike."""
    if not alone(x, args, kwargs):
        return general(func, x, *args, **kwargs)
    value, tangents = parts(x)
    found = func(value, *args, **kwargs)
    if not found.is_floating_point():
        return found
    return dual(found, vmap(lambda tangent: func(tangent, *args, **kwargs))(tangents))


def elementwise(func: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a function of one tensor elementwise; its slope is the same for all directions."""
    if not alone(x, args, kwargs):
        return general(func, x, *args, **kwargs)
    value, tangents = parts(x)
    y, slope = jvp(
        lambda inputs: func(inputs, *args, **kwargs), (value,), (torch.ones_like(value),)
    )
    return dual(y, aligned(tangents, y.ndim) * slope)


def total(func: Callable, x: Any, y: Any, **kwargs: Any) -> Any:
    """Add, or subtract, two tensors."""
    if not (isinstance(x, Dual) and isinstance(y, Dual)):
        return general(func, x, y, **kwargs)
    (x, dx), (y, dy) = parts(x), parts(y)
    return dual(func(x, y, **kwargs), vmap(lambda *terms: func(*terms, **kwargs))(dx, dy))


def product(func: Callable, x: Any, y: Any) -> Dual:
    """Multiply two tensors, or a tensor by a number."""
    (x, dx), (y, dy) = parts(x), parts(y)
    value = func(x, y)
    terms = [(aligned(dx, value.ndim), y)] * (dx is not None) + [(aligned(dy, value.ndim), x)] * (
        dy is not None
    )
    moved, *others = (tangents * factor for tangents, factor in terms)
    for other in others:
        moved += other
    return dual(value, moved)


def linear(func: Callable, input: Any, weight: Any, bias: Any = None) -> Dual:
    """Return x W^T + b, whose derivative dx W^T + x dW^T + db is added up in place."""
    (x, dx), (weight, dw), (bias, db) = parts(input), parts(weight), parts(bias)
    value = func(x, weight, bias)
    rows, count = x.reshape(-1, x.shape[-1]), next(len(d) for d in (dx, dw, db) if d is not None)
    if dx is None:
        out = value.new_zeros(count, len(rows), len(weight))
    else:
        out = torch.mm(dx.reshape(-1, dx.shape[-1]), weight.mT).view(count, len(rows), len(weight))
    if dw is not None:
        # May be autocast
        torch.baddbmm(out, rows.to(out.dtype).expand(count, -1, -1), dw.mT.to(out.dtype), out=out)
    if db is not None:
        out += db.unsqueeze(1)
    return dual(value, out.view(count, *value.shape))


def layer_norm(
    func: Callable,
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Dual:
    """Layer norm over the last dimension, differentiated by its backward kernel: before the scale J is symmetric."""
    if not isinstance(input, Dual) or len(normalized_shape) != 1:
        return general(func, input, normalized_shape, weight, bias, eps)
    (x, dx), (weight, dw), (bias, db) = parts(input), parts(weight), parts(bias)
    exact = torch.promote_types(x.dtype, torch.float32)
    normed, *moments = torch.native_layer_norm(x.to(exact), normalized_shape, None, None, eps)
    wide = [part.expand(*dx.shape[:-1], -1).contiguous() for part in (x.to(exact), *moments)]
    backward = torch.ops.aten.native_layer_norm_backward
    moved = dx.to(exact).contiguous()
    out = backward(moved, wide[0], normalized_shape, *wide[1:], None, None, (True, False, False))[0]
    if weight is not None:
        out *= weight
    if dw is not None:
        out.addcmul_(normed, aligned(dw, x.ndim).to(exact))
    if db is not None:
        out += aligned(db, x.ndim)
    return dual(func(x, normalized_shape, weight, bias, eps), out.to(x.dtype))


def attention(
    func: Callable,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Return P v, P = softmax(s), s = scale q k^T + mask, by the formula: fused kernels have no forward mode.

    Its derivative is dP v + P dv with dP = P (ds - sum P ds).

    Raises:
        ValueError: with dropout.
    """
    if dropout_p:
        raise ValueError("attention with dropout is random; derivatives are taken in evaluation")
    (q, dq), (k, dk), (v, dv), (mask, dmask) = map(parts, (query, key, value, attn_mask))
    dims = max(x.ndim for x in (q, k, v, mask) if x is not None)
    dq, dk, dv, dmask = (aligned(x, dims) for x in (dq, dk, dv, dmask))
    if enable_gqa:
        groups = q.shape[-3] // k.shape[-3]
        k, dk, v, dv = (
            x if x is None else x.repeat_interleave(groups, dim=-3) for x in (k, dk, v, dv)
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if is_causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    scores = (q * scale) @ k.mT
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = torch.where(mask, scores, lowest) if mask.dtype == torch.bool else scores + mask
    p = scores.softmax(dim=-1)
    slopes = [] if dmask is None else [dmask]
    slopes += [] if dq is None else [(dq * scale) @ k.mT]
    slopes += [] if dk is None else [(q * scale) @ dk.mT]
    moved = [] if dv is None else [p @ dv]
    if slopes:
        ds = sum(slopes[1:], slopes[0])
        moved.append((p * (ds - (p * ds).sum(dim=-1, keepdim=True))) @ v)
    return dual(p @ v, sum(moved[1:], moved[0]))


_VIEWS = (
    "unflatten",
    "flatten",
    "transpose",
    "reshape",
    "view",
    "expand",
    "contiguous",
    "to",
    "__getitem__",
)
RULES: dict[Callable, Callable] = {
    F.linear: linear,
    F.layer_norm: layer_norm,
    F.scaled_dot_product_attention: attention,
    **dict.fromkeys((getattr(Tensor, name) for name in _VIEWS), straight),
    **dict.fromkeys((Tensor.mT.__get__, torch.flatten, torch.transpose, F.dropout), straight),
    **dict.fromkeys((Tensor.add, torch.add, Tensor.sub, torch.sub), total),
    **dict.fromkeys((Tensor.mul, torch.mul), product),
    **dict.fromkeys(
        (F.gelu, F.silu, F.relu, torch.tanh, Tensor.tanh, torch.sigmoid, Tensor.sigmoid),
        elementwise,
    ),
    **dict.fromkeys(
        (torch.square, Tensor.square, torch.pow, Tensor.pow, torch.rsqrt, Tensor.rsqrt), elementwise
    ),
}
