"""A merge that was checked and can be told before it starts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from taskvec.checkpoints import beside
from taskvec.checkpoints.writing import (
    UNLIMITED,
    Content,
    Shard,
    refuse_existing,
    shards_of,
    size_of,
)
from taskvec.errors import UserError
from taskvec.on_disk.inputs import Inputs, opened
from taskvec.on_disk.request import Request, weights_note
from taskvec.on_disk.sources import Sources, sources_of
from taskvec.on_disk.stream import Stream
from taskvec.on_disk.vocabulary import Pairing, Vocabulary, pairing_of, vocabulary_of

STEMS = {"transformers": "model", "open_clip": "open_clip_model", "file": "model"}


@dataclass
class Plan:
    """What will be read, merged and written; ``read`` counts the bytes of base and models that were looked at."""

    request: Request
    inputs: Inputs
    pairing: Pairing | None
    read: int = 0
    notes: list[str] = field(default_factory=list)

    @cached_property
    def sources(self) -> Sources:
        """What the merge reads."""
        return sources_of(self.inputs, self.pairing, self.request, self._count)

    def _count(self, size: int) -> None:
        self.read += size
        self.observe(self.read)

    observe: Callable[[int], None] = field(default=lambda _: None)

    @property
    def stem(self) -> str:
        """How weight files are called."""
        return STEMS[self.inputs.reference.kind]

    @property
    def limit(self) -> float:
        """Bytes of a shard; open_clip reads one file."""
        whole = self.inputs.reference.kind == "open_clip"
        return UNLIMITED if whole else self.request.shard_bytes

    @cached_property
    def shards(self) -> list[Shard]:
        """The weight files."""
        return shards_of(self.sources.written, self.stem, self.limit)

    @property
    def bytes_written(self) -> int:
        """The size of the written weights."""
        return sum(size_of(shape) for shape in self.sources.written.values())

    @cached_property
    def bytes_of_models(self) -> int:
        """The size of the models' weights that take part."""
        total = 0
        for part in self.inputs.parts:
            names = [name for name in self.sources.base if part.has(name)]
            total += sum(size_of(part.announced(name)) for name in names)
        return total

    @property
    def bytes_of_base(self) -> int:
        """The size of the base."""
        return sum(size_of(tensor) for tensor in (self.inputs.base or {}).values())

    @cached_property
    def stream(self) -> Stream:
        """The merged weights, made as they are asked for."""
        labels = [part.label for part in self.inputs.parts]
        return Stream(self.sources, self.request.rules, labels, self.request.alpha)

    @cached_property
    def bytes_read(self) -> int:
        """The bytes of base and models that merging reads, at most; a tensor as often as its merge looks at it."""
        total = self.bytes_of_models if self.stream.own_model is not None else 0
        for name, tensor in self.inputs.tensors.items():
            size = 0 if self.inputs.base is None else size_of(tensor)
            if name in self.sources.base:
                present = [part for part in self.inputs.parts if part.has(name)]
                size += sum(size_of(part.announced(name)) for part in present)
            total += size * self.stream.passes_of(name)
        return total

    @property
    def passes(self) -> float:
        """How often the checkpoints are read, at most: bytes read by bytes that there are."""
        return self.bytes_read / max(1, self.bytes_of_base + self.bytes_of_models)

    @cached_property
    def changes(self) -> dict[str, Any]:
        """What differs between the reference's config and the written one."""
        config = self.inputs.reference.config or {}
        changes = dict(self.inputs.changes)
        if (
            self.pairing is not None
            and config.get("vocab_size", self.pairing.rows) != self.pairing.rows
        ):
            changes["vocab_size"] = self.pairing.rows
        if self.request.dtype is not None and self.inputs.reference.kind == "transformers":
            key = "torch_dtype" if "torch_dtype" in config else "dtype"
            changes[key] = self.request.dtype
        return changes

    def beside(self) -> dict[str, Content]:
        """Return the files beside the weights: config, tokenizer, card."""
        reference = self.inputs.reference
        files = beside.config_files(reference, self.changes)
        if self.pairing is not None:
            files |= self.pairing.files
        elif reference.source is not None:
            files |= beside.tokenizer_files(reference.source)
        return files | {beside.CARD: self.card()}

    def card(self) -> bytes:
        """Return the model card: which models, how they were merged, what was special about them."""
        named = [beside.shown(part.label) for part in self.inputs.parts]
        base = [beside.shown(self.inputs.reference.name)] if self.inputs.base is not None else []
        front: dict[str, Any] = {"tags": ["merge", "taskvec"]}
        if self.inputs.reference.kind == "transformers":
            front["library_name"] = "transformers"
        lines = [
            f"Made by `taskvec merge` {self.request.version}: {self.request.rules.described}.",
            "",
        ]
        if base:
            lines.append(f"- theta_0: {base[0]}")
        lines += [f"- merged: {name}" for name in named]
        lines.append(f"- alpha: {self.request.alpha:g}")
        lines += [f"- {note}" for note in self.all_notes]
        lines += ["", "```yaml", self.request.recipe.rstrip(), "```"]
        return beside.card(self.request.out.name, front, "\n".join(lines))

    @property
    def all_notes(self) -> list[str]:
        """What a reader should know: of the request, of the models, of their vocabularies."""
        of_pairing = list(self.pairing.notes) if self.pairing is not None else []
        return [*self.request.notes, *self.inputs.notes, *of_pairing, *self.notes]

    def identity(self) -> str:
        """Return what unfinished work must share with this to be continued."""
        places: list[Any] = []
        everyone = [self.inputs.reference, *(part.opened for part in self.inputs.parts)]
        for found in everyone:
            for path in getattr(found, "places", ()):
                state = path.stat()
                places.append([str(path), state.st_size, state.st_mtime_ns])
        request = self.request
        asked = [request.recipe, request.alpha, request.dtype, request.tokenizer, str(self.limit)]
        text = json.dumps([self.request.version, torch.__version__, asked, places])
        return hashlib.sha256(text.encode()).hexdigest()

    def lines(self) -> list[str]:
        """Return the plan in words."""
        dtypes = sorted(
            {str(shape.dtype).removeprefix("torch.") for shape in self.sources.written.values()}
        )
        on = (
            self.inputs.reference.name
            if self.inputs.base is not None
            else "none (a mean of weights)"
        )
        said = [
            f"merge:   {self.request.rules.described}, alpha {self.request.alpha:g}",
            f"base:    {on}",
            *(f"model:   {part.label}" for part in self.inputs.parts),
            f"tensors: {len(self.sources.written)}, written as {', '.join(dtypes)}",
            f"reads:   {gigabytes(self.bytes_of_base + self.bytes_of_models)}, {_times(self.passes)}",
            f"writes:  {gigabytes(self.bytes_written)} to {self.request.out} in {len(self.shards)} file(s)",
            f"memory:  about {gigabytes(self.memory())} at once, beside the files that the system maps",
        ]
        return said + [f"note:    {note}" for note in self.all_notes]

    def memory(self) -> int:
        """Return an estimate of the anonymous memory that merging takes: the largest piece over all models."""
        largest = 0
        count = len(self.inputs.parts) + 4
        for name, shape in self.sources.base.like.items():
            merge = self.request.rules.merge_of(name)
            whole = merge.grain_of(name, shape.shape) == "tensor"
            entries = shape.numel() if whole else min(shape.numel(), 2**20)
            width = 8 if whole else 4
            largest = max(largest, entries * width * count)
            if self.stream.holds(name):
                largest = max(largest, self.stream.size_of(name) + entries * width * count)
        return largest


def plan_of(request: Request) -> Plan:
    """Open, compare and check everything, before anything is computed.

    Raises:
        UserError: naming the first thing that is wrong.
    """
    refuse_existing(request.out)
    request.rules.check(len(request.models))
    inputs = opened(request)
    _needs_base(request, inputs)
    pairing = _pairing(inputs, request)
    plan = Plan(request, inputs, pairing)
    for merge in request.rules.merges:
        note = weights_note(merge, len(request.models))
        if note and note not in plan.notes:
            plan.notes.append(note)
    _check_rows(plan)
    _check_disk(plan)
    return plan


def _needs_base(request: Request, inputs: Inputs) -> None:
    """Check that what moves theta_0 has one.

    Raises:
        UserError: if it has not.
    """
    if inputs.base is not None or request.zero:
        return
    relative = [merge.kind for merge in request.rules.merges if merge.relative]
    if relative:
        raise UserError(
            f"merge={relative[0]} merges what models changed; give base=MODEL, which they were tuned from"
        )
    if request.alpha != 1:
        raise UserError(
            "alpha scales what models changed; give base=MODEL, which they were tuned from"
        )


def _pairing(inputs: Inputs, request: Request) -> Pairing | None:
    """Return how rows of embeddings are paired.

    Raises:
        UserError: if vocabularies differ and nothing is chosen.
    """
    name = inputs.embeddings.input
    reference = inputs.reference
    if name not in inputs.tensors or reference.kind != "transformers":
        if request.tokenizer:
            raise UserError(f"--tokenizer: {reference.name} is no language model of transformers")
        return None
    base = vocabulary_of(reference, len(inputs.tensors[name]))
    models = []
    for part in inputs.parts:
        if part.weights is None or name not in part.weights:
            models.append(Vocabulary(part.label, base.tokens, base.rows))
        else:
            models.append(vocabulary_of(part.opened, len(part.weights[name])))
    return pairing_of(base, models, request.tokenizer)


def _check_rows(plan: Plan) -> None:
    """Check that tables with a row for each token fit each other, where no rows are paired.

    Raises:
        UserError: naming one that does not.
    """
    if plan.pairing is not None:
        return
    for part in plan.inputs.parts:
        for name, tensor in plan.inputs.tensors.items():
            if part.has(name) and part.announced(name).shape != tensor.shape:
                found = tuple(part.announced(name).shape)
                raise UserError(
                    f"{part.label}: {name} has shape {found}, the base has {tuple(tensor.shape)}"
                )


def _check_disk(plan: Plan) -> None:
    """Check that there is room for what will be written.

    Raises:
        UserError: if there is not.
    """
    place = plan.request.out.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if plan.bytes_written > free:
        raise UserError(
            f"out: {gigabytes(plan.bytes_written)} are to be written, {place} has {gigabytes(free)}; name another place"
        )


def gigabytes(size: float) -> str:
    """Return bytes in words."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _times(count: float) -> str:
    return "once" if count <= 1 else f"up to {count:.2g} times"
