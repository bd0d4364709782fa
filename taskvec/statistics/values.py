"""What collected statistics give: views of stored tensors, which are looked up as they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taskvec.statistics.symmetric import unfolded


class Moment(NamedTuple):
    """Rows x of one layer's input, summed: ``gram`` sum x x^T [in, in] float64, ``total`` sum x [in] float64."""

    gram: Tensor
    total: Tensor
    rows: int

    def second(self, device: str | torch.device | None = None) -> Tensor:
        """Return the mean of x x^T [in, in] float64 on a device (None: where it is)."""
        return self.gram.to(device) / self.rows


class LayerMoments(Mapping[str, Moment]):
    """The moment of each linear layer's inputs, looked up in the stored tensors and unfolded when it is asked for.

    ``sources`` names the layer whose moment each layer shares (k and v that of q; itself otherwise): what is computed
    from it, such as an inverse, is shared likewise. ``untracked`` says of each other layer why it has none.
    """

    def __init__(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]):
        self.tensors = tensors
        self.meta = meta
        self.sources = meta["sources"]
        self.untracked = meta["untracked"]

    def __getitem__(self, layer: str) -> Moment:
        source = self.sources[layer]
        total = self.tensors[f"{source}/total"]
        gram = unfolded(self.tensors[f"{source}/gram"], len(total))
        return Moment(gram, total, self.meta["rows"][source])

    def __contains__(self, layer: object) -> bool:
        return layer in self.sources  # to unfold a moment would be a long way to a name

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True, eq=False)
class ParameterGradient:
    """``mean``: the gradient of the mean loss, by parameter, in the parameter's shape.

    ``votes``, where they were counted: the number of examples with a positive gradient less that of those with a
    negative one, int32 of the same shape.
    """

    mean: Mapping[str, Tensor]
    votes: Mapping[str, Tensor] | None
    examples: int


class Prefixed(Mapping[str, Tensor]):
    """The tensors of a mapping whose names begin with a prefix, without it, looked up when they are asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str):
        self.tensors = tensors
        self.prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def __iter__(self) -> Iterator[str]:
        for name in self.tensors:
            if name.startswith(self.prefix):
                yield name.removeprefix(self.prefix)

    def __len__(self) -> int:
        return len(list(iter(self)))
