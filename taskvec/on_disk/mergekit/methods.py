"""mergekit's methods as ours under its conventions (see docs/merging.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from taskvec import registry
from taskvec.errors import UserError
from taskvec.merge.base import TensorWise

Values = dict[
    str, Any
]  # of one tensor: its parameters for all models by name, or a list with one for each


@dataclass(frozen=True)
class Method:
    """One method: its parameters with their defaults, those that each model has of its own, and what it is of ours.

    ``on_base`` says that deltas from the base are merged; "optional": if there is a base. A default of None must be
    given. ``base_first``: the base is one of the models that are merged, the first.
    """

    make: Callable[[Values, bool], TensorWise]
    shared: Values
    of_models: Values
    on_base: bool | str = True
    base_first: bool = False


def _ours(kind: str, **options: Any) -> TensorWise:
    """Return a merge of ours.

    Raises:
        UserError: for values that it does not take.
    """
    schema = registry.lookup("merge", kind).schema
    try:
        return schema.model_validate({"kind": kind, **options})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in detail["loc"])
        said = detail["msg"].removeprefix("Value error, ")
        raise UserError(f"mergekit recipe: merge={kind}: {path}: {said}") from error


def _linear(values: Values, on_base: bool) -> TensorWise:
    kind = "average" if values["normalize"] else "task_arithmetic"
    return _ours(kind, weights=values["weight"])


def _slerp(values: Values, on_base: bool) -> TensorWise:
    return _ours("slerp", t=values["t"])


def _nuslerp(values: Values, on_base: bool) -> TensorWise:
    along = "columns" if values["nuslerp_row_wise"] else "rows"
    if values["nuslerp_flatten"]:
        along = "tensor"
    of = "deltas" if on_base else "weights"
    return _ours("nuslerp", weights=values["weight"], along=along, of=of)


def _multislerp(values: Values, on_base: bool) -> TensorWise:
    if not values["normalize_weights"]:
        raise UserError("mergekit recipe: multislerp: normalize_weights: false is not covered")
    of = "deltas" if on_base else "weights"
    return _ours("multislerp", weights=values["weight"], of=of)


def _karcher(values: Values, on_base: bool) -> TensorWise:
    return _ours("karcher", steps=values["max_iter"], tolerance=values["tol"])


def _model_stock(values: Values, on_base: bool) -> TensorWise:
    if values["filter_wise"]:
        raise UserError("mergekit recipe: model_stock: filter_wise is not covered")
    return _ours("model_stock")


def _sce(values: Values, on_base: bool) -> TensorWise:
    return _ours("sce", select=values["select_topk"])


def _passthrough(values: Values, on_base: bool) -> TensorWise:
    scales = [1.0 if scale is None else scale for scale in values["scale"]]
    return _ours("task_arithmetic", weights=scales)


def _task_arithmetic(values: Values, on_base: bool) -> TensorWise:
    return _ours("task_arithmetic", weights=_weights(values))


def _weights(values: Values) -> Sequence[float]:
    """Return the weights of a sum; divided by their own sum where a mean is asked for."""
    weights = values["weight"]
    total = sum(weights)
    if not values["normalize"] or abs(total) < 1e-8:
        return weights
    return [weight / total for weight in weights]


def _sparse(kind: str, elect: bool) -> Callable[[Values, bool], TensorWise]:
    """Return what makes a method that sparsifies deltas and adds them up, or elects their sign."""

    def make(values: Values, on_base: bool) -> TensorWise:
        options: Values = {"densities": values["density"], "seed": values["seed"]}
        if kind == "ties":
            options |= {"scope": "tensor", "kept": "exact"}
        if kind == "breadcrumbs":
            options["outliers"] = _same(values, "gamma")
        if kind == "della":
            options["spread"] = _same(values, "epsilon")
        options["rescale"] = "l1" if values["rescale"] else "none"
        if not elect:
            return _ours(kind, weights=_weights(values), consensus="sum", **options)
        combine = "mean" if values["normalize"] else "sum"
        options |= {"undecided": "plus", "divide": "weights", "combine": combine}
        return _ours(kind, weights=values["weight"], consensus="elect", **options)

    return make


def _same(values: Values, key: str) -> Any:
    """Return a parameter that all models share.

    Raises:
        UserError: if they do not.
    """
    if len(set(values[key])) > 1:
        raise UserError(
            f"mergekit recipe: {key}: one value for all models is covered, got {values[key]}"
        )
    return values[key][0]


def _sums(normalize: bool, rescale: bool = False) -> Values:
    return {"normalize": normalize, "rescale": rescale, "int8_mask": False, "lambda": 1.0}


_DELTA: Values = {"weight": None, "density": 1.0}
_BREADCRUMBS = _DELTA | {"gamma": 0.01}
_DELLA = _DELTA | {"epsilon": 0.15}

METHODS: dict[str, Method] = {
    "linear": Method(_linear, {"normalize": True}, {"weight": None}, on_base=False),
    "slerp": Method(_slerp, {"t": None}, {}, on_base=False, base_first=True),
    "nuslerp": Method(
        _nuslerp, {"nuslerp_flatten": True, "nuslerp_row_wise": False}, {"weight": None}, "optional"
    ),
    "multislerp": Method(
        _multislerp, {"normalize_weights": True, "eps": 1e-8}, {"weight": None}, "optional"
    ),
    "karcher": Method(_karcher, {"max_iter": 10, "tol": 1e-5}, {}, on_base=False),
    "model_stock": Method(_model_stock, {"filter_wise": False}, {}),
    "sce": Method(_sce, {"select_topk": 1.0, "int8_mask": False}, {}),
    "passthrough": Method(_passthrough, {}, {"scale": "none"}, on_base=False),
    "task_arithmetic": Method(_task_arithmetic, _sums(False), {"weight": None}),
    "ties": Method(_sparse("ties", True), _sums(True), _DELTA),
    "dare_linear": Method(_sparse("dare", False), _sums(False, True), _DELTA),
    "dare_ties": Method(_sparse("dare", True), _sums(False, True), _DELTA),
    "breadcrumbs": Method(_sparse("breadcrumbs", False), _sums(False), _BREADCRUMBS),
    "breadcrumbs_ties": Method(_sparse("breadcrumbs", True), _sums(False), _BREADCRUMBS),
    "della": Method(_sparse("della", True), _sums(True, True), _DELLA),
    "della_linear": Method(_sparse("della", False), _sums(False, True), _DELLA),
}
