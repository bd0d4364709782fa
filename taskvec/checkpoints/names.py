"""Vectors in taskvec's own layout under the names of a published checkpoint, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from taskvec.checkpoints.reading import Checkpoint
from taskvec.errors import UserError
from taskvec.models.clip.transformers import PREFIX, is_transformers
from taskvec.models.lm_layouts import LAYOUTS
from taskvec.vectors import Deferred, TaskVector, Tensors, weights_hash
from taskvec.vectors.deferred import like
from taskvec.vectors.task_vector import BASE_HASH

VISUAL = "visual."
# What one model may have and another lack: heads, poolers, and buffers that are no weights
HEADS = "lm_head|embed_out|cls|classifier|score|qa_outputs|mask_predictions|lm_predictions"
OPTIONAL = re.compile(
    rf"(^|\.)({HEADS}|pooler|summary|position_ids|masked_bias|attn\.bias|inv_freq)(\.|$)"
)
OUTSIDE = re.compile(rf"({HEADS})\.")  # names that stand beside the body
UNTIED = re.compile(r"(^|\.)(lm_head|embed_out)\.")  # weights like others where they are not tied


class Names(Protocol):
    """How a family names tensors; both maps take partial states and meta tensors, and ignore what they do not know.

    ``optional`` are weights of the layout that a file may lack because nobody trains them: their delta is zero.
    """

    optional: frozenset[str]

    def canonical(self, stored: Tensors) -> dict[str, Tensor]:
        """Return stored tensors in taskvec's layout."""

    def stored(self, canonical: Tensors) -> dict[str, Tensor]:
        """Return tensors of taskvec's layout as they are stored."""


class _OpenClip:
    """open_clip's image tower, of a whole model or bare."""

    optional: frozenset[str] = frozenset()

    def __init__(self, bare: bool):
        self.bare = bare

    def canonical(self, stored: Tensors) -> dict[str, Tensor]:
        """See :class:`Names`."""
        from taskvec.models.clip.vit import from_open_clip

        if not self.bare:
            stored = {name: t for name, t in stored.items() if name.startswith(VISUAL)}
        return from_open_clip(stored)

    def stored(self, canonical: Tensors) -> dict[str, Tensor]:
        """See :class:`Names`."""
        from taskvec.models.clip.vit import to_open_clip

        found = to_open_clip(canonical)
        if not self.bare:
            return found
        return {name.removeprefix(VISUAL): tensor for name, tensor in found.items()}


class _TransformersClip:
    """transformers' CLIP image tower, of a whole model or bare, with ``vision_model.`` before its names or without."""

    optional: frozenset[str] = frozenset({"projection.weight"})

    def __init__(self, prefix: str):
        self.prefix = prefix

    def canonical(self, stored: Tensors) -> dict[str, Tensor]:
        """See :class:`Names`."""
        from taskvec.models.clip.transformers import from_transformers

        return from_transformers(stored)

    def stored(self, canonical: Tensors) -> dict[str, Tensor]:
        """See :class:`Names`."""
        from taskvec.models.clip.transformers import to_transformers

        return to_transformers(canonical, self.prefix)


class _Transformers:
    """A language model's own names, with the attribute that holds the body where it was saved without its head."""

    optional: frozenset[str] = frozenset()

    def __init__(self, prefix: str, packed: bool):
        self.prefix, self.packed = prefix, packed

    def canonical(self, stored: Tensors) -> dict[str, Tensor]:
        """See :class:`Names`."""
        from taskvec.models.language import gpt2

        named = {self.prefix + name: tensor for name, tensor in stored.items()}
        return gpt2.from_transformers(named) if self.packed else named

    def stored(self, canonical: Tensors) -> dict[str, Tensor]:
        """See :class:`Names`."""
        from taskvec.models.language import gpt2

        named = gpt2.to_transformers(canonical) if self.packed else canonical
        return {name.removeprefix(self.prefix): tensor for name, tensor in named.items()}


def names_of(checkpoint: Checkpoint) -> Names:
    """Return how a checkpoint's family names tensors."""
    stored = checkpoint.tensors
    if checkpoint.kind == "open_clip" or _is_clip(stored):
        bare = not any(name.startswith(VISUAL) for name in stored)
        return _OpenClip(bare)
    if is_transformers(stored):
        prefixed = any(name.startswith(PREFIX) for name in stored)
        prefix = PREFIX if prefixed else ""
        return _TransformersClip(prefix)
    kind = (checkpoint.config or {}).get("model_type")
    layout = LAYOUTS.get(kind) if isinstance(kind, str) else None
    if layout is None:
        return _Transformers("", packed=False)
    prefix = f"{layout.prefix}." if layout.prefix else ""
    whole = any(name.startswith(prefix) for name in stored)
    missing = "" if whole else prefix
    return _Transformers(missing, packed=layout.package == "gpt2")


def canonical(checkpoint: Checkpoint) -> Deferred:
    """Return a checkpoint's weights in taskvec's layout, converted at every look, in the dtype that they are stored in.

    What is no weight of the layout (an open_clip text tower) is left out; heads and poolers are not.
    """
    names = names_of(checkpoint)
    shapes: dict[str, Tensor] = {}
    place: dict[str, str] = {}
    for stored, tensor in checkpoint.tensors.items():
        for name, shape in names.canonical({stored: tensor.to("meta")}).items():
            shapes[name], place[name] = shape, stored

    def make(name: str) -> Tensor:
        stored = place[name]
        return names.canonical({stored: checkpoint.tensors[stored]})[name]

    return Deferred(shapes, make)


def require_base(vector: TaskVector, checkpoint: Checkpoint, label: str) -> None:
    """Compare the hash of the weights that a vector was made on with those of a base; nothing is known of other files.

    Raises:
        UserError: if they differ.
    """
    known = checkpoint.config is not None or _is_clip(checkpoint.tensors)
    if known and BASE_HASH in vector.metadata:
        require_weights(vector, canonical(checkpoint), label, checkpoint.name)


def require_weights(vector: TaskVector, weights: Tensors, label: str, base: str) -> None:
    """Compare the hash of the weights that a vector was made on, in float32, with those of weights in taskvec's layout.

    Heads and poolers beside the model may be there or not.

    Raises:
        UserError: if they differ.
    """
    made_on = vector.metadata.get(BASE_HASH)
    if made_on is None:
        return
    hashes = []
    for names in _editable(vector, weights):
        wide = Deferred(
            {name: like(weights, name).float() for name in names},
            lambda name: weights[name].float(),
        )
        hashes.append(weights_hash(wide))
        if made_on == hashes[-1]:
            return
    raise UserError(
        f"{label} was made on other base weights ({made_on[:12]}) than {base} ({hashes[0][:12]}); "
        "give the base that it was made on"
    )


def _editable(vector: TaskVector, weights: Tensors) -> Iterator[set[str]]:
    """Yield the names that a vector's base may have had: the model without heads, with an output embedding, its own."""
    plain = {name for name in weights if like(weights, name).is_floating_point()}
    body = {name for name in plain if not OPTIONAL.search(name)}
    untied = body | {name for name in plain if UNTIED.search(name)}
    seen: list[set[str]] = []
    for names in (body, untied, plain, set(vector) & plain):
        if names not in seen:
            seen.append(names)
            yield names


def difference(tuned: Checkpoint, base: Tensors) -> TaskVector:
    """Return tau = theta - theta_0 of a checkpoint over the editable weights of its base, in the base's dtype.

    It is subtracted at every look, on the CPU. Weights that the family's files may lack have no delta.

    Raises:
        UserError: if the checkpoint lacks a weight, or has one of another shape.
    """
    theirs = canonical(tuned)
    optional = names_of(tuned).optional
    shapes = {}
    for name, weight in base.items():
        if name not in theirs and name in optional:
            continue
        if name not in theirs:
            raise UserError(f"{tuned.name} lacks {name}, which the base has")
        found = theirs.announced(name).shape
        if found != weight.shape:
            raise UserError(
                f"{tuned.name}: {name} has shape {tuple(found)}, the base has {tuple(weight.shape)}"
            )
        shapes[name] = weight.to("meta")

    def subtract(name: str) -> Tensor:
        weight = base[name].detach().cpu()
        return theirs[name].to("cpu", weight.dtype) - weight

    return TaskVector(Deferred(shapes, subtract))


def stored_vector(vector: TaskVector, checkpoint: Checkpoint, label: str) -> Tensors:
    """Return a task vector's deltas under a checkpoint's names, converted at every look; itself if it has them.

    Where a stored tensor packs several of ours (q, k and v), those that the vector lacks are zeros.

    Raises:
        UserError: if the vector changes what the checkpoint does not have, or in another shape.
    """
    names = names_of(checkpoint)
    parts: dict[str, Mapping[str, Tensor]] = {}
    left = set(vector)
    for stored, tensor in checkpoint.tensors.items():
        shapes = names.canonical({stored: tensor.to("meta")})
        if not left.isdisjoint(shapes):
            parts[stored] = shapes
            left -= shapes.keys()
    if left:
        raise UserError(f"{label}: {sorted(left)[0]} is no weight of {checkpoint.name}")
    for shapes in parts.values():
        _check_shapes(vector, shapes, label)
    if all(list(shapes) == [stored] for stored, shapes in parts.items()):
        return vector
    announced = {
        stored: torch.empty(checkpoint.tensors[stored].shape, dtype=torch.float32, device="meta")
        for stored in parts
    }

    def make(stored: str) -> Tensor:
        whole = {}
        for name, shape in parts[stored].items():
            delta = vector[name] if name in vector else torch.zeros(shape.shape)
            whole[name] = delta.float()
        return names.stored(whole)[stored]

    return Deferred(announced, make)


def _check_shapes(vector: TaskVector, shapes: Mapping[str, Tensor], label: str) -> None:
    """Compare a vector's shapes with those of the base.

    Raises:
        UserError: for one that differs.
    """
    for name, shape in shapes.items():
        if name not in vector:
            continue
        found = vector.announced(name).shape
        if found != shape.shape:
            raise UserError(
                f"{label}: {name} has shape {tuple(found)}, the base has {tuple(shape.shape)}"
            )


def _is_clip(stored: Tensors) -> bool:
    return f"{VISUAL}class_embedding" in stored or "visual.conv1.weight" in stored
