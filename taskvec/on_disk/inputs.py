"""The checkpoints of a merge: opened, compared with each other, and brought under the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from taskvec.checkpoints.adapter import Adapter
from taskvec.checkpoints.names import OPTIONAL, OUTSIDE, require_base, stored_vector
from taskvec.checkpoints.reading import Checkpoint, Opened, VectorFile
from taskvec.errors import UserError
from taskvec.models.lm_layouts import LAYOUTS
from taskvec.on_disk import heads
from taskvec.on_disk.heads import Embeddings
from taskvec.on_disk.request import Request
from taskvec.on_disk.stacked import open_base, open_place
from taskvec.vectors import Tensors
from taskvec.vectors.deferred import like


@dataclass(frozen=True)
class Part:
    """One model as it takes part: its weights under the written names, or deltas of them."""

    label: str
    weights: Mapping[str, Tensor] | None = None
    deltas: Tensors | None = None
    opened: Opened | None = field(default=None, repr=False)

    def has(self, name: str) -> bool:
        """Return whether the model says anything about a tensor."""
        known = self.weights if self.weights is not None else self.deltas
        return name in (known or {})

    def announced(self, name: str) -> Tensor:
        """Return a meta tensor of what the model has of a name."""
        known = self.weights if self.weights is not None else self.deltas
        return like(known, name)


@dataclass(frozen=True)
class Inputs:
    """What is merged. ``reference`` gives names, config and tokenizer: the base, or the first model without one.

    ``base`` is None where theta_0 is zero. ``changes`` are those of the config.
    """

    reference: Checkpoint
    base: Mapping[str, Tensor] | None
    parts: Sequence[Part]
    embeddings: Embeddings
    changes: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The reference's tensors under the written names."""
        if self.base is not None:
            return self.base
        weights = self.parts[0].weights
        return {} if weights is None else weights


def opened(request: Request) -> Inputs:
    """Open and compare all checkpoints.

    Raises:
        UserError: naming the first thing that does not fit.
    """
    models = [open_place(place) for place in request.models]
    base = open_base(request.base) if request.base else None
    reference = base or _first(models)
    checkpoints = [model for model in models if isinstance(model, Checkpoint)]
    for model in checkpoints:
        _same_family(reference, model)
    _refuse_quantised([reference, *checkpoints])
    stored = {id(model): _renamed(model, reference) for model in checkpoints}
    adapters = [model for model in models if isinstance(model, Adapter)]
    touched = [name for adapter in adapters for name in _heads_of(adapter)]
    names = heads.embeddings_of([reference.tensors, *stored.values()], touched)
    tied = heads.is_tied(reference.config)
    origin = heads.with_output(reference.tensors, names, tied)
    parts = [_part(model, stored, origin, reference, names) for model in models]
    return _settled(reference, base is not None, origin, parts, names)


def _first(models: Sequence[Opened]) -> Checkpoint:
    """Return the first model, which stands in for a base.

    Raises:
        UserError: if it is none, or one of them needs a base.
    """
    for model in models:
        if not isinstance(model, Checkpoint):
            kind = "an adapter" if isinstance(model, Adapter) else "a task vector"
            hint = ""
            if isinstance(model, Adapter) and model.config.get("base_model_name_or_path"):
                hint = f" (it was trained on {model.config['base_model_name_or_path']})"
            raise UserError(f"models: {model.name} is {kind}, which needs base=MODEL{hint}")
    first = models[0]
    assert isinstance(first, Checkpoint)
    return first


def _same_family(reference: Checkpoint, model: Checkpoint) -> None:
    """Compare what two models are.

    Raises:
        UserError: if they are of different families.
    """
    kinds = [(found.config or {}).get("model_type") for found in (reference, model)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise UserError(
            f"{reference.name} is a {kinds[0]} model and {model.name} a {kinds[1]} model; merge models of one family"
        )


def _refuse_quantised(checkpoints: Sequence[Checkpoint]) -> None:
    """Check that weights are numbers, not codes.

    Raises:
        UserError: naming a quantised model.
    """
    for checkpoint in checkpoints:
        if (checkpoint.config or {}).get("quantization_config"):
            raise UserError(
                f"{checkpoint.name} is quantised; merge the checkpoint that it was made from"
            )


def _renamed(model: Checkpoint, reference: Checkpoint) -> dict[str, Tensor]:
    """Return a model's tensors under the reference's names: with or without the attribute that holds the body."""
    layout = LAYOUTS.get(str((model.config or {}).get("model_type")))
    if layout is None or not layout.prefix:
        return dict(model.tensors)
    prefix = f"{layout.prefix}."
    theirs = any(name.startswith(prefix) for name in model.tensors)
    wanted = any(name.startswith(prefix) for name in reference.tensors)
    if theirs == wanted:
        return dict(model.tensors)
    if wanted:
        return {
            name if OUTSIDE.match(name) else prefix + name: tensor
            for name, tensor in model.tensors.items()
        }
    return {name.removeprefix(prefix): tensor for name, tensor in model.tensors.items()}


def _heads_of(adapter: Adapter) -> list[str]:
    """Return the output embeddings that an adapter changes, which a tied base does not store."""
    names = [f"{part.module}.weight" for part in adapter.parts] + list(adapter.replaced)
    return [name for name in names if name.endswith(heads.OUTPUTS)]


def _part(
    model: Opened,
    stored: Mapping[int, Mapping[str, Tensor]],
    origin: Mapping[str, Tensor],
    reference: Checkpoint,
    names: Embeddings,
) -> Part:
    """Return a model as it takes part, with the output embedding that it computes with."""
    if isinstance(model, Checkpoint):
        weights = heads.with_output(stored[id(model)], names, heads.is_tied(model.config))
        return Part(model.name, weights=weights, opened=model)
    if isinstance(model, VectorFile):
        require_base(model.vector, reference, model.name)
        deltas = stored_vector(model.vector, reference, model.name)
        return Part(model.name, deltas=deltas, opened=model)
    return Part(model.name, deltas=model.vector(origin), opened=model)


def _settled(
    reference: Checkpoint,
    on_base: bool,
    origin: Mapping[str, Tensor],
    parts: Sequence[Part],
    names: Embeddings,
) -> Inputs:
    """Decide whether the output embedding is written, and compare every tensor."""
    notes: list[str] = []
    changes: dict[str, Any] = {}
    tied = heads.is_tied(reference.config)
    if names.output and names.output in origin:
        if tied and all(_is_tied(part, names) for part in parts):
            origin = heads.without_output(origin, names)
            parts = [_without_output(part, names) for part in parts]
        elif tied:
            changes[heads.TIED] = False
            notes.append(f"{names.output} is written: not all models tie it to {names.input}")
            parts = [_untied(part, names) for part in parts]
    kept = []
    for part in parts:
        kept.append(_compared(part, origin, names, notes))
    base = origin if on_base else None
    return Inputs(reference, base, kept, names, changes, notes)


def _is_tied(part: Part, names: Embeddings) -> bool:
    """Return whether a model leaves the output embedding what the input embedding is."""
    if isinstance(part.opened, Checkpoint):
        return heads.is_tied(part.opened.config) or names.output not in (part.weights or {})
    if isinstance(part.opened, Adapter):
        return not (part.has(str(names.input)) or part.has(str(names.output)))
    return True


def _without_output(part: Part, names: Embeddings) -> Part:
    if part.weights is None:
        return part
    return Part(part.label, heads.without_output(part.weights, names), None, part.opened)


def _untied(part: Part, names: Embeddings) -> Part:
    """Return a vector that was made where embeddings were tied as one of both."""
    if not isinstance(part.opened, VectorFile) or names.input not in (part.deltas or {}):
        return part
    return Part(part.label, None, _Twice(part.deltas, names), part.opened)


class _Twice(dict):
    """Deltas with that of the input embedding under the output embedding's name, too; made at every look."""

    def __init__(self, deltas: Tensors, names: Embeddings):
        super().__init__(dict.fromkeys(deltas))
        self[names.output] = None
        self.deltas, self.names = deltas, names

    def __getitem__(self, name: str) -> Tensor:
        return self.deltas[self.names.input if name == self.names.output else name]


def _compared(
    part: Part, origin: Mapping[str, Tensor], names: Embeddings, notes: list[str]
) -> Part:
    """Return a model with what the reference has, too.

    Raises:
        UserError: for a weight that one of them lacks, or of another shape or kind.
    """
    if part.weights is None:
        return part
    lacking = [name for name in origin if name not in part.weights]
    extra = [name for name in part.weights if name not in origin]
    for these, whose in ((lacking, f"{part.label} lacks"), (extra, "the base lacks")):
        needed = [name for name in these if not OPTIONAL.search(name) and name != names.output]
        if needed:
            raise UserError(
                f"{whose} {needed[0]} (and {len(needed) - 1} more); merge models of one architecture"
            )
    if lacking:
        notes.append(f"{part.label} lacks {_listed(lacking)}: the base's stays")
    if extra:
        notes.append(f"{part.label} has {_listed(extra)}, which the base lacks: left out")
    weights = {name: part.weights[name] for name in origin if name in part.weights}
    for name, tensor in weights.items():
        _same_tensor(part.label, name, tensor, origin[name])
    return Part(part.label, weights, None, part.opened)


def _same_tensor(label: str, name: str, tensor: Tensor, own: Tensor) -> None:
    """Compare one tensor's kind and shape; rows that belong to tokens are compared with the vocabularies.

    Raises:
        UserError: if they differ.
    """
    if tensor.is_floating_point() != own.is_floating_point():
        raise UserError(f"{label}: {name} is {tensor.dtype}, the base has {own.dtype}")
    shape, wanted = tuple(tensor.shape), tuple(own.shape)
    # The first axis counts the tokens of a vocabulary
    skipped = 1 if name.endswith(heads.BY_TOKEN) else 0
    same = len(shape) == len(wanted) and shape[skipped:] == wanted[skipped:]
    if not same:
        raise UserError(f"{label}: {name} has shape {shape}, the base has {wanted}")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
