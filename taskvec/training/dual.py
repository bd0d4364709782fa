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
    moved = {name: dual(value, directions[name]) for name, value in values.items()}
    with torch.no_grad():
        try:
            return parts(function(moved))
        except Overwritten:
            return _as_a_whole(function, dict(values), dict(directions))


def _as_a_whole(
    function: Function, values: dict[str, Tensor], directions: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    def along(direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return jvp(function, (values,), (direction,))

    return vmap(along, out_dims=(None, 0))(directions)


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
            kwargs = kwargs or {}
            if _overwrites(func.__name__, kwargs):
                raise Overwritten(f"{func.__name__} overwrites a tensor on the way to a derivative")
            rule = RULES.get(func, general)
            return rule(func, *args, **kwargs)


def _overwrites(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call writes into one of its arguments: ``add_``, an assignment, ``inplace`` or ``out``."""
    is_assignment = name in ("__setitem__", "__set__")
    is_in_place = name.endswith("_") and not name.endswith("__")
    is_asked_for = kwargs.get("inplace") or kwargs.get("out") is not None
    return bool(is_assignment or is_in_place or is_asked_for)


def dual(value: Tensor, tangents: Tensor) -> Dual:
    """Return ``value`` with its derivatives ``tangents`` [T, *shape]; nothing is copied."""
    made = value.as_subclass(Dual)
    made.tangents = tangents
    return made


def parts(x: Any) -> tuple[Any, Tensor | None]:
    """Return the value, and the tangents if there are any, of what may be a :class:`Dual`."""
    if isinstance(x, Dual):
        return x.as_subclass(Tensor), x.tangents
    return x, None


def aligned(tangents: Tensor | None, dims: int) -> Tensor | None:
    """Return tangents [T, *shape] as [T, 1, ..., *shape], which broadcast like a shape of ``dims`` dimensions."""
    if tangents is None:
        return None
    missing = dims + 1 - tangents.ndim
    first, *rest = tangents.shape
    return tangents.view(first, *[1] * missing, *rest)


def general(func: Callable, *args: Any, **kwargs: Any) -> Any:
    """Differentiate any function by ``vmap`` and ``jvp``; outputs that are not floating-point carry no derivative."""
    leaves, spec = tree_flatten((args, kwargs))
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Dual)]
    values = tuple(leaves[i].as_subclass(Tensor) for i in where)
    tangents = tuple(leaves[i].tangents for i in where)

    def call(*inputs: Tensor) -> tuple[list, Any]:
        for i, value in zip(where, inputs, strict=True):
            leaves[i] = value
        plain, named = tree_unflatten(leaves, spec)
        return tree_flatten(func(*plain, **named))

    found, shape = call(*values)
    floats = [i for i, leaf in enumerate(found) if _is_floating(leaf)]
    if not floats:
        return tree_unflatten(found, shape)

    def floating(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs, _ = call(*inputs)
        return tuple(outputs[i] for i in floats)

    def derivative(*directions: Tensor) -> tuple[Tensor, ...]:
        _, moved = jvp(floating, values, directions)
        return moved

    for i, moved in zip(floats, vmap(derivative)(*tangents), strict=True):
        found[i] = dual(found[i], moved)
    return tree_unflatten(found, shape)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def alone(x: Any, *others: Any) -> bool:
    """Return whether ``x`` carries derivatives and nothing in ``others`` does."""
    leaves, _ = tree_flatten(others)
    return isinstance(x, Dual) and not any(isinstance(leaf, Dual) for leaf in leaves)


def straight(func: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a linear function of one tensor, such as a view, to value and tangents alike."""
    if not alone(x, args, kwargs):
        return general(func, x, *args, **kwargs)
    value, tangents = parts(x)
    found = func(value, *args, **kwargs)
    if not found.is_floating_point():
        return found
    moved = vmap(lambda tangent: func(tangent, *args, **kwargs))(tangents)
    return dual(found, moved)


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
    moved = vmap(lambda *terms: func(*terms, **kwargs))(dx, dy)
    return dual(func(x, y, **kwargs), moved)


def product(func: Callable, x: Any, y: Any) -> Dual:
    """Multiply two tensors, or a tensor by a number."""
    (x, dx), (y, dy) = parts(x), parts(y)
    value = func(x, y)
    terms = []
    if dx is not None:
        terms.append(aligned(dx, value.ndim) * y)
    if dy is not None:
        terms.append(aligned(dy, value.ndim) * x)
    moved, *others = terms
    for other in others:
        moved += other
    return dual(value, moved)


def linear(func: Callable, input: Any, weight: Any, bias: Any = None) -> Dual:
    """Return x W^T + b, whose derivative dx W^T + x dW^T + db is added up in place."""
    (x, dx), (weight, dw), (bias, db) = parts(input), parts(weight), parts(bias)
    value = func(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    count = next(len(moved) for moved in (dx, dw, db) if moved is not None)
    size = (count, len(rows), len(weight))
    if dx is None:
        out = value.new_zeros(size)
    else:
        moved_rows = dx.reshape(-1, dx.shape[-1])
        out = torch.mm(moved_rows, weight.mT).view(size)
    if dw is not None:
        # Autocast may have made the product narrower than its factors
        each = rows.to(out.dtype).expand(count, -1, -1)
        torch.baddbmm(out, each, dw.mT.to(out.dtype), out=out)
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
    x_exact = x.to(exact)
    normed, mean, inverse_std = torch.native_layer_norm(x_exact, normalized_shape, None, None, eps)
    # The same values for every direction, as the kernel wants them
    each = [part.expand(*dx.shape[:-1], -1).contiguous() for part in (x_exact, mean, inverse_std)]
    moved = dx.to(exact).contiguous()
    of_input_alone = (True, False, False)
    out, _, _ = torch.ops.aten.native_layer_norm_backward(
        moved, each[0], normalized_shape, each[1], each[2], None, None, of_input_alone
    )
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
        k, dk, v, dv = (_repeated(x, groups) for x in (k, dk, v, dv))
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if is_causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    p = _masked((q * scale) @ k.mT, mask).softmax(dim=-1)
    slopes = []
    if dmask is not None:
        slopes.append(dmask)
    if dq is not None:
        slopes.append((dq * scale) @ k.mT)
    if dk is not None:
        slopes.append((q * scale) @ dk.mT)
    moved = []
    if dv is not None:
        moved.append(p @ dv)
    if slopes:
        ds = sum(slopes[1:], slopes[0])
        dp = p * (ds - (p * ds).sum(dim=-1, keepdim=True))
        moved.append(dp @ v)
    return dual(p @ v, sum(moved[1:], moved[0]))


def _repeated(x: Tensor | None, groups: int) -> Tensor | None:
    """Return keys or values once for each query head that shares them."""
    return None if x is None else x.repeat_interleave(groups, dim=-3)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return torch.where(mask, scores, torch.finfo(scores.dtype).min)
    return scores + mask


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
