"""The composition of merges that learn coefficients, and what is saved so that others can use the coefficients."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from taskvec.errors import UserError
from taskvec.needs import Signed
from taskvec.training.blocks import Blocks
from taskvec.training.coefficients import Coefficients
from taskvec.vectors import TaskVector, Tensors, weights_hash
from taskvec.vectors.composition import Scaled
from taskvec.vectors.task_vector import BASE_HASH

MERGED, READOUT, NOTES = "merged/", "readout/", "notes/"
COEFFICIENTS = "coefficients"


class Learned(Scaled):
    """theta_0 + alpha * sum_i Lambda_i tau_i: the vector, and the coefficients [n, m] that made it.

    ``meta`` says what rows and columns of the coefficients stand for (:func:`record`). ``readouts`` are adapters'
    tensors by task, ``notes`` what the objective kept, as TASK/NAME.
    """

    def __init__(
        self,
        base: Tensors,
        merged: TaskVector,
        coefficients: Tensor,
        meta: Mapping[str, Any],
        *,
        readouts: Mapping[str, Tensors] | None = None,
        notes: Tensors | None = None,
        report: Mapping[str, Any] | None = None,
    ):
        super().__init__(base, merged)
        self.coefficients, self.meta = coefficients, dict(meta)
        self.readouts, self.notes = dict(readouts or {}), dict(notes or {})
        self.report = dict(report or {})

    def readout(self, task: str) -> Tensors:
        """Return the tensors of the task's adapter."""
        return self.readouts.get(task, {})

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the deltas as merged/NAME, the coefficients, readout/TASK/NAME and notes/TASK/NAME, and the meta."""
        tensors = {f"{MERGED}{name}": delta for name, delta in self.merged.items()}
        for task, readout in self.readouts.items():
            tensors |= {f"{READOUT}{task}/{name}": tensor for name, tensor in readout.items()}
        tensors |= {f"{NOTES}{name}": tensor for name, tensor in self.notes.items()}
        return tensors | {COEFFICIENTS: self.coefficients}, self.meta

    @classmethod
    def unpack(cls, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Learned:
        """Invert ``pack``; the report stays in the store."""
        merged = TaskVector(_below(tensors, MERGED))
        readouts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in _below(tensors, READOUT).items():
            task, name = key.rsplit("/", 1)
            readouts.setdefault(task, {})[name] = tensor
        notes = _below(tensors, NOTES)
        return cls(base, merged, tensors[COEFFICIENTS], meta, readouts=readouts, notes=notes)


def record(base: Tensors, vectors: Sequence[Signed], blocks: Blocks) -> dict[str, Any]:
    """Return what coefficients [n, m] belong to: the base's hash, the n vectors' expressions, the m blocks' names."""
    hashes = {signed.vector.metadata.get(BASE_HASH) for signed in vectors} - {None}
    known = next(iter(hashes)) if hashes else weights_hash(base)
    expressions = []
    for signed in vectors:
        expression = {type(signed.expression).__name__: dataclasses.asdict(signed.expression)}
        expressions.append({"sign": signed.sign, "vector": expression})
    return {BASE_HASH: known, "vectors": expressions, "blocks": blocks.columns()}


def recomposed(
    base: Tensors,
    vectors: Sequence[Signed],
    blocks: Blocks,
    coefficients: Tensor,
    meta: Mapping[str, Any],
) -> TaskVector:
    """Return sum_i Lambda_i tau_i of saved coefficients [n, m] on the vectors that they were learned for.

    Raises:
        UserError: if base, vectors or blocks are not those of the coefficients.
    """
    present = record(base, vectors, blocks)
    for key, what in (
        (BASE_HASH, "base weights"),
        ("vectors", "task vectors"),
        ("blocks", "blocks"),
    ):
        if _as_json(present[key]) != _as_json(meta[key]):
            raise UserError(
                f"the coefficients were learned for other {what}; compose them with those they belong to"
            )
    again = Coefficients(base, [signed.delta for signed in vectors], blocks)
    again.coefficients.data.copy_(coefficients)
    return again.vector()


def _as_json(value: Any) -> Any:
    """Return a value with its tuples as lists, as a JSON file gives it back."""
    if isinstance(value, Mapping):
        return {key: _as_json(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(child) for child in value]
    return value


def _below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
