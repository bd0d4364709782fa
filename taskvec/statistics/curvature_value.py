"""The curvature of a model's features on one task or merged over several, and its tensors for the store.

TAK, the authors' KFAC-regularised task vectors (spec 3.1, 3.2); Eschenhagen et al., Kronecker-Factored Approximate
Curvature for Modern Neural Network Architectures, NeurIPS 2023, arXiv 2311.00636.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from taskvec.statistics.blocks import KINDS, Block


@dataclass(frozen=True, eq=False)
class Curvature:
    """G = (1/n) sum_x J(x)^T J(x) of the features at theta_0, as independent blocks.

    ``layers``: by layer name, a block on [dW | db] [out, in + 1] where the layer's bias is editable (``biased``), else
    on dW. ``vectors``: by parameter name, blocks of norm gains and shifts and the class token. ``roles``: by layer
    name. ``examples`` is n, ``untracked`` says of each editable parameter without a block why, and ``settings`` is the
    record of all that shaped the tensors.
    """

    layers: dict[str, Block]
    vectors: dict[str, Block]
    biased: frozenset[str]
    roles: dict[str, str]
    examples: int
    untracked: dict[str, str]
    settings: dict[str, Any]

    def trace(self) -> Tensor:
        """Return tr G over the tracked parameters, a scalar."""
        traces = [block.trace() for _, block in self.blocks()]
        return torch.stack(traces).sum()

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Yield all blocks by path, ``layers/NAME`` or ``vectors/NAME``."""
        yield from ((f"layers/{name}", block) for name, block in self.layers.items())
        yield from ((f"vectors/{name}", block) for name, block in self.vectors.items())

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Curvature:
        """Return the curvature on a device and in a dtype (None: as it is); shared factors stay shared."""
        moved = {}

        def move(tensor: Tensor) -> Tensor:
            key = id(tensor)
            if key not in moved:
                moved[key] = tensor.to(device, dtype or tensor.dtype)
            return moved[key]

        layers = {name: block.map(move) for name, block in self.layers.items()}
        vectors = {name: block.map(move) for name, block in self.vectors.items()}
        return replace(self, layers=layers, vectors=vectors)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors by flat name, a shared factor once, and the JSON header that ``unpack`` needs."""
        tensors = {}
        names = {}
        blocks = {}
        for path, block in self.blocks():
            _, name = path.split("/", 1)
            keys = {}
            for field, tensor in block.tensors().items():
                key = names.setdefault(id(tensor), f"{name}/{field}")
                keys[field] = key
                tensors[key] = tensor
            kind = type(block).__name__
            blocks[path] = {"kind": kind, "tensors": keys}
        header = {
            "blocks": blocks,
            "biased": sorted(self.biased),
            "roles": self.roles,
            "examples": self.examples,
            "untracked": self.untracked,
            "settings": self.settings,
        }
        return tensors, header

    @classmethod
    def unpack(
        cls,
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ) -> Curvature:
        """Invert ``pack`` on tensors that may be memory-mapped; each is looked up once and none is copied.

        Raises:
            ValueError: where ``settings`` is given and others shaped the curvature, naming those that differ.
        """
        if settings is not None:
            _same_settings(
                [header["settings"], settings], "the stored curvature was made with other settings"
            )
        known = {}
        groups: dict[str, dict[str, Block]] = {"layers": {}, "vectors": {}}
        for path, block in header["blocks"].items():
            group, name = path.split("/", 1)
            fields = {}
            for field, key in block["tensors"].items():
                if key not in known:  # a shared factor must stay one object
                    known[key] = tensors[key]
                fields[field] = known[key]
            kind = KINDS[block["kind"]]
            groups[group][name] = kind(**fields)
        return cls(
            layers=groups["layers"],
            vectors=groups["vectors"],
            biased=frozenset(header["biased"]),
            roles=dict(header["roles"]),
            examples=header["examples"],
            untracked=dict(header["untracked"]),
            settings=dict(header["settings"]),
        )


def exact_sum(
    curvatures: Sequence[Curvature],
    counts: Sequence[float] | None = None,
) -> list[tuple[float, Curvature]]:
    """Return the pairs (lambda_t, G_t) of sum_t lambda_t G_t, lambda_t = n_t / sum_s n_s: cost O(T) (spec 3.1).

    n_t are the examples each curvature was estimated on, or ``counts``. The caller leaves the trained task out.

    Raises:
        ValueError: for no curvature, or settings that differ between tasks.
    """
    if not curvatures:
        raise ValueError("no task to take the curvature of")
    settings = [curvature.settings for curvature in curvatures]
    _same_settings(settings, "the tasks' curvatures differ in their settings")
    if counts is None:
        counts = [curvature.examples for curvature in curvatures]
    total = sum(counts)
    weights = [count / total for count in counts]
    return list(zip(weights, curvatures, strict=True))


def merge(
    curvatures: Iterable[Curvature],
    counts: Sequence[float] | None = None,
) -> Curvature:
    """Return one curvature in place of the sum over tasks, of constant cost (spec 3.1).

    A = sum_t lambda_t A_t and B = sum_t lambda_t B_t, full and diagonal blocks sum_t lambda_t H_t (exact), with lambda
    as in ``exact_sum``: identical tasks give back their curvature. Where the curvatures are ``faithful`` to the
    authors' code, B = sum_t B_t: for T identical tasks T times as much. Tasks are taken one by one, so two are held at
    a time if ``curvatures`` loads them so; the caller leaves the trained one out.

    Raises:
        ValueError: for no curvature, settings or blocks that differ between tasks, or EKFAC's, which share no basis.
    """
    totals = {}
    header = {}
    mass, examples = 0.0, 0
    for index, part in enumerate(curvatures):
        tensors, own = part.pack()
        if not header:
            header = own
            totals = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        _same_kind(header, own)
        count = part.examples if counts is None else counts[index]
        mass += count
        examples += part.examples
        for name, tensor in tensors.items():
            total = totals[name]
            tensor = tensor.to(total)
            if part.settings["faithful"] and name.endswith("/gradients"):
                total += tensor
            elif count:  # the running mean, exact for identical tasks
                total.lerp_(tensor, count / mass)
    if not header:
        raise ValueError("no task to take the curvature of")
    return Curvature.unpack(totals, header | {"examples": examples})


def _same_kind(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Compare the headers of two curvatures that are to be merged.

    Raises:
        ValueError: for settings or blocks that differ, or blocks that cannot be added.
    """
    if other["settings"]["structure"] == "ekfac":
        raise ValueError("EKFAC blocks of several tasks have no common basis; use their exact sum")
    _same_settings(
        [first["settings"], other["settings"]], "the tasks' curvatures differ in their settings"
    )
    if other["blocks"] != first["blocks"]:
        raise ValueError("the tasks' curvatures have blocks for different parameters")


def _same_settings(records: Sequence[Mapping[str, Any]], message: str) -> None:
    """Compare records key by key.

    Raises:
        ValueError: with ``message`` and the settings that differ.
    """
    keys = dict.fromkeys(key for record in records for key in record)
    differing = []
    for key in keys:
        values = [str(record.get(key)) for record in records]
        distinct = dict.fromkeys(values)
        if len(distinct) > 1:
            choices = " or ".join(distinct)
            differing.append(f"{key}: {choices}")
    if differing:
        details = "; ".join(differing)
        raise ValueError(f"{message} ({details})")
