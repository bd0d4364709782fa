"""Adapters of peft as exact deltas of the weights that they adapt (Hu et al., LoRA; Liu et al., DoRA)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taskvec.checkpoints import files
from taskvec.errors import UserError
from taskvec.models.sources import Source
from taskvec.vectors import Deferred, LowRank, TaskVector, Tensors

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ROOT = "base_model.model."  # of every name in an adapter's file

# What changes the result in ways that are no delta of a weight, or not this one
REFUSED = (
    "use_qalora",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "target_parameters",
    "use_bdlora",
    "arrow_config",
    "megatron_config",
)
# Initialisations that move the base weights, on which such an adapter then stands
MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga")

A, B = "lora_A.weight", "lora_B.weight"
ROWS_A, ROWS_B = "lora_embedding_A", "lora_embedding_B"
OFFSET = "lora_B.bias"
MAGNITUDE = "lora_magnitude_vector"
OWN = "base_layer."  # before the base's own tensors, which are saved with an embedding


class Part(NamedTuple):
    """What an adapter holds for one module: its tensors by the end of their names."""

    module: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: factors by module, and the tensors that it replaces as a whole."""

    name: str
    config: Mapping[str, Any]
    tensors: Tensors = field(repr=False)
    source: Source | None = None
    places: tuple[Path, ...] = field(default=(), repr=False)

    @cached_property
    def parts(self) -> list[Part]:
        """The adapted modules, by the names that the base model gives them."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            bare = name.removeprefix(ROOT)
            match = re.search(r"(^|\.)(lora_\w+?|base_layer)(\.|$)", bare)
            if match:
                module, end = bare[: match.start()], bare[match.start(2) :]
                found.setdefault(module, {})[end] = tensor
        return [Part(module, tensors) for module, tensors in found.items()]

    @cached_property
    def replaced(self) -> dict[str, Tensor]:
        """The tensors that stand in for the base's: of ``modules_to_save``, and biases that were trained."""
        found = {}
        for name, tensor in self.tensors.items():
            bare = name.removeprefix(ROOT)
            if "lora_" not in bare and OWN not in bare:
                found[bare.replace("modules_to_save.default.", "")] = tensor
        return found

    def scale(self, module: str, rank: int) -> float:
        """Return alpha / r, or alpha / sqrt(r) with ``use_rslora``, of a module by the config's patterns."""
        alphas = self.config.get("alpha_pattern") or {}
        alpha = _by_pattern(alphas, module, self.config["lora_alpha"])
        return alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank

    def vector(self, base: Tensors) -> TaskVector:
        """Return the adapter as a task vector on base weights, products as factors wherever they are products.

        Magnitudes (DoRA), kernels and whole tensors become dense deltas, made at every look.

        Raises:
            UserError: for a module that the base lacks, and a part that is no delta of its weights.
        """
        made = _Made(self, base)
        for part in self.parts:
            made.add(part)
        for name, tensor in self.replaced.items():
            made.replace(name, tensor)
        return made.vector()


class _Made:
    """A vector in the making."""

    def __init__(self, adapter: Adapter, base: Tensors):
        self.adapter, self.base = adapter, base
        self.factors: dict[str, LowRank] = {}
        self.dense: dict[str, Callable[[], Tensor]] = {}

    def vector(self) -> TaskVector:
        """Return what was added."""
        shapes = {}
        for name in self.dense:
            shape = self.base[name].shape
            shapes[name] = torch.empty(shape, dtype=torch.float32, device="meta")
        return TaskVector(Deferred(shapes, lambda name: self.dense[name]()), {}, self.factors)

    def replace(self, name: str, tensor: Tensor) -> None:
        """Add a tensor that stands in for the base's.

        Raises:
            UserError: if the base has none of its name and shape.
        """
        name = self._found(name)
        weight = self.base[name]
        if weight.shape != tensor.shape:
            raise UserError(
                f"{self.adapter.name}: {name} has shape {tuple(tensor.shape)}, the base has {tuple(weight.shape)}"
            )
        self.dense[name] = lambda: tensor.float() - weight.float()

    def add(self, part: Part) -> None:
        """Add one module's factors.

        Raises:
            UserError: if the base lacks the module, or they are no delta of its weight.
        """
        tensors = dict(part.tensors)
        name = self._found(f"{part.module}.weight")
        weight = self.base[name]
        own = tensors.pop(f"{OWN}weight", None)
        trained = tensors.pop(f"{OWN}bias", None)
        magnitude = tensors.pop(f"{MAGNITUDE}.weight", tensors.pop(MAGNITUDE, None))
        offset = tensors.pop(OFFSET, None)
        factors = self._factors(part.module, tensors)
        if trained is not None:
            self.replace(f"{part.module}.bias", trained)
        if offset is not None:
            self._offset(part.module, offset, factors.scale)
        if magnitude is not None:
            self._dora(name, factors, magnitude)
        elif weight.ndim != 2:
            self._dense_product(name, factors)
        elif own is not None and not torch.equal(own, weight):
            start = own.float()
            self.dense[name] = lambda: start - weight.float() + factors.delta()
        else:
            self._check_shape(name, factors.like().shape)
            self.factors[name] = factors

    def _factors(self, module: str, tensors: dict[str, Tensor]) -> LowRank:
        """Return a module's factors in the orientation of its weight [rows, columns], in float32.

        Raises:
            UserError: if they are not complete, or something else is with them.
        """
        rows = ROWS_A in tensors
        names = (ROWS_A, ROWS_B) if rows else (A, B)
        left = [name for name in tensors if name not in names]
        lacking = [name for name in names if name not in tensors]
        if left or lacking:
            problem = f"holds {left[0]}" if left else f"lacks {lacking[0]}"
            raise UserError(
                f"{self.adapter.name}: {module} {problem}, which is no LoRA that is covered"
            )
        down, up = (tensors[name].float() for name in names)
        rank = len(down)
        scale = self.adapter.scale(module, rank)
        if down.ndim > 2:
            return LowRank(up.reshape(len(up), rank), down.reshape(rank, -1), scale)
        if rows or self.adapter.config.get("fan_in_fan_out"):
            # The weight is stored transposed: (B A)^T = A^T B^T
            return LowRank(down.T, up.T, scale)
        return LowRank(up, down, scale)

    def _dense_product(self, name: str, factors: LowRank) -> None:
        """Add a kernel's delta: the product, in the kernel's shape.

        Raises:
            UserError: if it does not fit.
        """
        shape = self.base[name].shape
        if factors.like().numel() != shape.numel():
            raise UserError(
                f"{self.adapter.name}: the factors of {name} do not fit its shape {tuple(shape)}"
            )
        self.dense[name] = lambda: factors.delta().view(shape)

    def _dora(self, name: str, factors: LowRank, magnitude: Tensor) -> None:
        """Add m (W + s B A) / ||W + s B A|| - W, the norm taken over each output's entries.

        Raises:
            UserError: for a module that is not linear.
        """
        weight = self.base[name]
        if weight.ndim != 2 or name.endswith(("embeddings.weight", "embed_tokens.weight")):
            raise UserError(f"{self.adapter.name}: DoRA on {name}, which is not a linear layer")
        self._check_shape(name, factors.like().shape)
        turned = bool(self.adapter.config.get("fan_in_fan_out"))
        outputs = 1 if turned else 0
        sizes = magnitude.float().reshape(-1)

        def delta() -> Tensor:
            wide = weight.float()
            moved = wide + factors.delta()
            norms = torch.linalg.vector_norm(moved, dim=1 - outputs, keepdim=True)
            lengths = sizes.view(1, -1) if turned else sizes.view(-1, 1)
            return moved * (lengths / norms) - wide

        self.dense[name] = delta

    def _offset(self, module: str, offset: Tensor, scale: float) -> None:
        """Add the bias of B, scaled, to the layer's."""
        name = self._found(f"{module}.bias")
        before = self.dense.get(name)

        def delta() -> Tensor:
            added = offset.float() * scale
            return added if before is None else before() + added

        self.dense[name] = delta

    def _check_shape(self, name: str, shape: torch.Size) -> None:
        """Compare a product's shape with the base's.

        Raises:
            UserError: if they differ.
        """
        expected = self.base[name].shape
        if shape != expected:
            raise UserError(
                f"{self.adapter.name}: the factors of {name} make {tuple(shape)}, the base has {tuple(expected)}"
            )

    def _found(self, name: str) -> str:
        """Return the base's name of a tensor: the same, or without the attribute that holds the body.

        Raises:
            UserError: if the base has none of that name.
        """
        body = name.partition(".")[2]
        for known in (name, body):
            if known in self.base:
                return known
        ended = [known for known in self.base if known.endswith(f".{name}")]
        if len(ended) == 1:
            return ended[0]
        raise UserError(
            f"{self.adapter.name}: adapts {name}, which the base does not have; choose the base that it was trained on"
        )


def open_adapter(source: Source) -> Adapter:
    """Open an adapter's folder.

    Raises:
        UserError: for another kind than LoRA, and settings whose result is no delta of the base's weights.
    """
    config = source.json(ADAPTER_CONFIG) or {}
    _check(source, config)
    for name in ADAPTER_WEIGHTS:
        path = source.file(name)
        if path is not None:
            tensors = files.tensors_of(path)
            described = source.file(ADAPTER_CONFIG)
            places = tuple(place for place in (described, path) if place)
            return Adapter(source.name, config, tensors, source, places)
    raise UserError(f"{source.key}: {source.name} has no {ADAPTER_WEIGHTS[0]}")


def _check(source: Source, config: Mapping[str, Any]) -> None:
    """Check that an adapter is one that can be read.

    Raises:
        UserError: naming the setting that keeps it from that.
    """
    where = f"{source.key}: {source.name}"
    if config.get("peft_type") != "LORA":
        raise UserError(f"{where}: an adapter of type {config.get('peft_type')!r}; covered is LORA")
    for patterns in (config.get("rank_pattern"), config.get("alpha_pattern")):
        _check_patterns(where, patterns or {})
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UserError(f"{where}: {ADAPTER_CONFIG}: lora_alpha must be a number, got {alpha!r}")
    refused = next((key for key in REFUSED if config.get(key)), None)
    if refused:
        raise UserError(
            f"{where}: {refused} is not a delta of the base's weights; merge it with peft"
        )
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(MOVING):
        raise UserError(
            f"{where}: init_lora_weights {start!r} moves the base weights; save it with peft's "
            "path_initial_model_for_weight_conversion"
        )


def _check_patterns(where: str, patterns: Any) -> None:
    """Check that patterns are expressions with numbers.

    Raises:
        UserError: if they are not.
    """
    try:
        for pattern, value in patterns.items():
            re.compile(pattern)
            float(value)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise UserError(f"{where}: {ADAPTER_CONFIG}: malformed patterns ({error})") from error


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that a module's name ends in, as peft looks it up."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
