"""The factors of LoRA vectors as tensors of their own, and the products of merged ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from taskvec.errors import UserError
from taskvec.needs import Signed, label_of
from taskvec.vectors import TaskVector, Tensors

UP, DOWN = "/up", "/down"  # suffixes of a parameter's name


def of_vectors(vectors: Sequence[Signed]) -> list[dict[str, Tensor]]:
    """Return each vector's factors as NAME/up and NAME/down, the root of the scale on both and the sign on the first.

    Raises:
        UserError: for a vector with a delta that is no product, or ranks that differ.
    """
    found = [_factors(signed) for signed in vectors]
    shapes: dict[str, tuple[int, ...]] = {}
    for own in found:
        for name, factor in own.items():
            shape = tuple(factor.shape)
            if shapes.setdefault(name, shape) != shape:
                raise UserError(
                    f"merge.of=factors: the ranks of {name} differ; use merge.of=deltas"
                )
    return found


def _factors(signed: Signed) -> dict[str, Tensor]:
    factors = signed.vector.factors
    dense = [name for name in signed.vector if name not in factors]
    if dense:
        label = label_of(signed.expression)
        raise UserError(
            f"merge.of=factors: {label} holds {dense[0]} as a whole, without factors; use merge.of=deltas"
        )
    found = {}
    for name, product in factors.items():
        scale = product.scale * signed.sign
        root = abs(scale) ** 0.5
        found[name + UP] = product.up * (root if scale >= 0 else -root)
        found[name + DOWN] = product.down * root
    return found


def products(merged: Tensors) -> TaskVector:
    """Return the deltas B A of merged factors."""
    deltas = {}
    for name, up in merged.items():
        if name.endswith(UP):
            own = name.removesuffix(UP)
            deltas[own] = up @ merged[own + DOWN]
    return TaskVector(deltas)
