"""A language model's files, in a local folder or in the hub's cache, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from taskvec.errors import UserError
from taskvec.models.lm_layouts import LAYOUTS, Layout
from taskvec.models.sources import CONFIG, Source

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelSource(Source):
    """Where a language model is: its description and its weights, safetensors in one file or in shards."""

    @property
    def config(self) -> dict[str, Any] | None:
        """The model's description, its ``config.json``; None for a name of the hub that is not cached yet.

        Raises:
            UserError: if the folder has none, or it is not a JSON object.
        """
        config = self.json(CONFIG)
        if config is None and self.folder:
            raise UserError(f"{self.key}: {self.folder} has no {CONFIG}")
        return config

    @property
    def weights(self) -> dict[str, Path]:
        """The weight files by their names in the folder; none for a name of the hub that is not cached yet.

        Raises:
            UserError: if the folder has none, lacks a shard, or its index leads out of it.
        """
        single, index = self.file(WEIGHTS), self.file(INDEX)
        names = [WEIGHTS] if single or not index else shard_names(index)
        found = {name: self.file(name) for name in names}
        missing = next((name for name, path in found.items() if path is None), None)
        if missing and self.folder:
            hint = (
                ""
                if index
                else f"; save the model with transformers' save_pretrained to write {WEIGHTS}"
            )
            raise UserError(f"{self.key}: {self.folder} has no {missing}{hint}")
        return {} if missing else {name: path for name, path in found.items() if path}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files that the model is read from."""
        shards = tuple(self.weights)
        return (CONFIG, *shards) if shards == (WEIGHTS,) else (CONFIG, INDEX, *shards)


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that an index speaks of.

    Raises:
        UserError: if it is malformed.
    """
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({PurePosixPath(name).as_posix() for name in shards})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"backbone.model: {index} is malformed: {error}") from error


@dataclass(frozen=True)
class Header:
    """Names, shapes and kinds of a model's stored tensors under a layout's names, and the config they must fit."""

    layout: Layout
    config: Mapping[str, Any]
    files: tuple[Path, ...]

    @cached_property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype by canonical name, as stored (GPT-2: packed and transposed), without what is ignored.

        Raises:
            UserError: for a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        found = {}
        for path in self.files:
            try:
                with safe_open(path, "np") as file:
                    for name in file.keys():  # noqa: SIM118 (not a mapping)
                        part = file.get_slice(name)
                        found[name] = (tuple(part.get_shape()), part.get_dtype())
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"backbone.model: {path}: {' '.join(str(error).split())}"
                ) from error
        prefix = f"{self.layout.prefix}." if self.layout.prefix else ""
        bare = not any(name.startswith(prefix) for name in found)  # a body saved without its head
        named = {prefix + name if bare else name: tensor for name, tensor in found.items()}
        ignored = tuple(start for name in self.layout.ignored for start in (name, prefix + name))
        return {
            name: tensor
            for name, tensor in named.items()
            if not ignored or not name.startswith(ignored)
        }

    def check(self) -> None:
        """Compare the word embedding, the linear layers and the number of blocks with the config.

        Raises:
            ValueError: naming a tensor that is missing, of another shape, not floating-point or of no block.
        """
        layout, expected = self.layout, stored_shapes(self.layout, self.config)
        for name, shape in expected.items():
            if name not in self.tensors:
                raise ValueError(f"the checkpoint lacks {name} {shape}")
            found, dtype = self.tensors[name]
            if found != shape:
                raise ValueError(
                    f"{name} has shape {found} in the checkpoint, config.json says {shape}"
                )
            if "F" not in dtype:
                raise ValueError(f"{name} is not floating-point but {dtype}")
        for path, depth, _ in layout.blocks(self.config):
            extra = {name for name in self.tensors if name.startswith(f"{path}.")}
            beyond = next(
                (n for n in sorted(extra) if int(n[len(path) + 1 :].split(".")[0]) >= depth), None
            )
            if beyond:
                raise ValueError(
                    f"the checkpoint holds {beyond}, but config.json describes {depth} blocks"
                )

    def parameters(self) -> int:
        """Return the number of editable parameters; tied tensors that are stored twice count once."""
        return sum(prod(self.tensors[name][0]) for name in self._stored())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the editable parameters' shapes by canonical name."""
        stored = {name: self.tensors[name][0] for name in self._stored()}
        if self.layout.package != "gpt2":
            return stored
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in stored.items():
            found |= _unpacked(name, shape)
        return found

    def _stored(self) -> list[str]:
        """Return the names of the stored tensors that are parameters, tied ones once."""
        skipped = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
        tied = self.config.get("tie_word_embeddings", self.layout.tied)
        # T5 v1.1 says that its outputs are not scaled where it means that they are not tied.
        if tied and self.config.get("scale_decoder_outputs", True):
            skipped.add("lm_head.weight")
        buffers = (".attn.bias", ".attn.masked_bias", "position_ids", "rotary_emb.inv_freq")
        return [name for name in self.tensors if name not in skipped and not name.endswith(buffers)]


def _unpacked(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the canonical shapes of one of GPT-2's stored tensors: q, k and v apart, linear weights transposed."""
    *path, layer, leaf = name.split(".")
    if layer.startswith("c_"):
        shape = shape[::-1]
    if layer != "c_attn":
        return {name: shape}
    third = (shape[0] // 3, *shape[1:])
    return {".".join([*path, layer, part, leaf]): third for part in "qkv"}


def stored_shapes(layout: Layout, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of the word embedding and of every linear layer's weight in a checkpoint.

    Raises:
        ValueError: for a size that is missing or malformed.
    """
    vocabulary, width = layout.get(config, "vocab_size"), layout.get(config, "hidden_size")
    shapes: dict[str, tuple[int, ...]] = {layout.embedding: (vocabulary, width)}
    for layer, (rows, columns) in layout.shapes(config).items():
        if layout.package != "gpt2":
            shapes[f"{layer.name}.weight"] = (rows, columns)
        elif layer.role in ("attn.q", "attn.k", "attn.v"):  # GPT-2 packs the three and transposes
            shapes[f"{layer.name[:-2]}.weight"] = (columns, 3 * rows)
        else:
            shapes[f"{layer.name}.weight"] = (columns, rows)
    return shapes


# Settings of published configs that change what a network computes in a way that ours does not follow.
_UNSUPPORTED = {
    "encoder": {"quantization_config": bool, "add_cross_attention": bool},
    "text_to_text": {"quantization_config": bool},
    "causal": {
        "quantization_config": bool,
        "add_cross_attention": bool,
        "use_bidirectional_attention": bool,
        "is_causal": lambda value: value is not None and not value,
    },
}


def find_layout(config: Mapping[str, Any], style: str) -> Layout:
    """Return the layout of a config's family.

    Raises:
        UserError: for a family that is not covered, or of another kind of backbone, and for a setting that is not: a
            decoder that looks ahead gives no probability of a text, and no prompt could be padded on the right.
    """
    kind = config.get("model_type")
    layout = LAYOUTS.get(kind) if isinstance(kind, str) else None
    covered = ", ".join(name for name, known in LAYOUTS.items() if known.style == style)
    if layout is None:
        raise UserError(
            f"backbone.model: model_type {kind!r} is not covered (backbone.kind {style}: {covered})"
        )
    if layout.style != style:
        raise UserError(
            f"backbone.kind: a {kind} model is of kind {layout.style}, not {style} ({covered})"
        )
    for key, refused in _UNSUPPORTED[style].items():
        if refused(config.get(key)):
            raise UserError(
                f"backbone.model: config.json says {key}: {config[key]!r}, which is not covered"
            )
    return layout
