"""Merging task vectors that are in memory, without a run: what ``taskvec.merge(...)`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from taskvec import registry
from taskvec.errors import UserError
from taskvec.needs import Imported, Signed

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.base import Merge
    from taskvec.vectors import TaskVector, Tensors
    from taskvec.vectors.composition import Composition


def merge(
    vectors: Sequence[TaskVector] | Mapping[str, TaskVector],
    method: str = "task_arithmetic",
    base: Tensors | None = None,
    **options: Any,
) -> TaskVector:
    """Return the one vector that a merge makes of several of the same base weights; ``options`` are the merge's fields.

    ``base`` are the pre-trained weights theta_0 by name, which a few merges look at; they are those of the vectors'
    ``base_hash``.

    Raises:
        UserError: for an unknown merge or option, vectors of different bases or shapes, and a merge that needs data,
            learns, or makes no single vector.
    """
    from taskvec.vectors import TaskVector

    component = _component(method, options)
    named = vectors if isinstance(vectors, Mapping) else dict(enumerate(vectors))
    _check_bases(named)
    _check_shapes(named, base)
    _check_base(named, base)
    signed = [Signed(Imported(str(name), ""), 1.0, vector) for name, vector in named.items()]
    made = _composed(component, signed, base)
    direction = None if made.per_task else made.direction()
    if direction is None:
        raise UserError(f"merge={method} makes no single vector; run it in an experiment")
    return TaskVector(dict(direction), _shared(list(named.values())))


def _composed(component: Merge, signed: Sequence[Signed], base: Tensors | None) -> Composition:
    """Return what a merge makes of vectors.

    Raises:
        UserError: if it looks at more than it is given.
        RuntimeError: what the merge itself raises.
    """
    if base is not None:
        return component.compose(base, signed, None)
    try:
        # only shapes are there: whoever looks at an entry of theta_0 fails
        return component.compose(_shapes(signed), signed, None)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):  # torch names the device of the tensor without entries
            raise
        raise UserError(
            f"merge={component.kind} looks at the pre-trained weights: give base="
        ) from error


def _component(method: str, options: Mapping[str, Any]) -> Merge:
    """Return the merge of a name with its options.

    Raises:
        UserError: if there is none, an option does not fit, or it needs more than vectors.
    """
    from taskvec.merge.catalogue import data

    schema = registry.lookup("merge", method).schema
    seen = data(schema)
    if seen != "none":
        wanted = seen if seen.startswith("learns") else f"needs {seen}"
        raise UserError(
            f"merge={method} {wanted}, which vectors do not hold; run it in an experiment"
        )
    try:
        return schema.model_validate({"kind": method, **options})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(map(str, detail["loc"]))
        known = [name for name in schema.model_fields if name != "kind"]
        unknown = detail["type"] == "extra_forbidden"
        hint = registry.did_you_mean(key, known) if unknown else ""
        raise UserError(f"merge={method}: {key}: {detail['msg']}{hint}") from error


def _check_bases(vectors: Mapping[Any, TaskVector]) -> None:
    """Check that vectors belong to the same weights.

    Raises:
        UserError: if there is none, or two are of different base weights.
    """
    if not vectors:
        raise UserError("merge: no vectors given")
    hashes = {vector.metadata.get("base_hash") for vector in vectors.values()} - {None}
    if len(hashes) > 1:
        named = " and ".join(sorted(made_on[:12] for made_on in hashes))
        raise UserError(f"merge: the vectors are of different base weights ({named})")


def _check_base(vectors: Mapping[Any, TaskVector], base: Tensors | None) -> None:
    """Check that given base weights are those that the vectors were made on, as far as their files say.

    Raises:
        UserError: if they are not.
    """
    from taskvec.checkpoints.names import require_weights

    said = [name for name, vector in vectors.items() if vector.metadata.get("base_hash")]
    if base is not None and said:
        # they were compared with each other before
        require_weights(vectors[said[0]], base, f"merge: vector {said[0]}", "base=")


def _check_shapes(vectors: Mapping[Any, TaskVector], base: Tensors | None) -> None:
    """Check that each parameter has one shape in all vectors that have it, and in the base, which has them all.

    Raises:
        UserError: naming the first parameter that has not.
    """
    known: dict[str, tuple[int, ...]] = {}
    for name, tensor in (base or {}).items():
        known[name] = tuple(tensor.shape)
    for called, vector in vectors.items():
        for name in vector:
            shape = tuple(vector[name].shape)
            if base is not None and name not in base:
                raise UserError(f"merge: base= has no {name}, which vector {called} has")
            wanted = known.setdefault(name, shape)
            if shape != wanted:
                raise UserError(f"merge: {name} is {shape} in vector {called}, {wanted} elsewhere")


def _shapes(signed: Sequence[Signed]) -> dict[str, Tensor]:
    """Return meta tensors of all parameters that some vector has."""
    found: dict[str, Tensor] = {}
    for entry in signed:
        for name in entry.vector:
            found.setdefault(name, entry.vector[name].to("meta"))
    return found


def _shared(vectors: Sequence[TaskVector]) -> dict[str, Any]:
    """Return the metadata that all vectors share."""
    kept = {}
    for key, value in vectors[0].metadata.items():
        if all(vector.metadata.get(key) == value for vector in vectors):
            kept[key] = value
    return kept
