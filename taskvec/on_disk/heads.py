"""Input and output embeddings: tied in one model and not in another, absent, or changed apart from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taskvec.models.lm_layouts import LAYOUTS

INPUTS = ("embed_tokens.weight", "wte.weight", "shared.weight", "word_embeddings.weight")
OUTPUTS = ("lm_head.weight", "embed_out.weight")
# Other tensors with a row for each token
BY_TOKEN = (
    *INPUTS, *OUTPUTS, "lm_head.bias", "lm_head.decoder.weight", "lm_head.decoder.bias",
    "predictions.decoder.weight", "predictions.decoder.bias", "predictions.bias",
)  # fmt: skip
TIED = "tie_word_embeddings"


@dataclass(frozen=True)
class Embeddings:
    """The names of a model's input and output embedding; where the latter is tied, it may be stored nowhere."""

    input: str | None
    output: str | None


def embeddings_of(stored: Sequence[Mapping[str, Tensor]], touched: Sequence[str]) -> Embeddings:
    """Return the names of the embeddings, given the tensors of all models and the names that adapters change."""
    names = [*dict.fromkeys(name for tensors in stored for name in tensors), *touched]
    inputs = [name for name in names if name.endswith(INPUTS)]
    # T5 stores its one embedding up to three times
    inputs.sort(key=lambda name: name.count("."))
    outputs = [name for name in names if name.endswith(OUTPUTS)]
    return Embeddings(next(iter(inputs), None), next(iter(outputs), None))


def is_tied(config: Mapping[str, Any] | None) -> bool:
    """Return whether a model's output embedding is its input embedding, as transformers reads its config.

    A weight file without a config says what it holds: nothing in it is tied.
    """
    if config is None:
        return False
    layout = LAYOUTS.get(str(config.get("model_type")))
    by_default = layout.tied if layout else True
    return bool(config.get(TIED, by_default))


def with_output(tensors: Mapping[str, Tensor], names: Embeddings, tied: bool) -> dict[str, Tensor]:
    """Return a model's tensors with the output embedding that it computes with, if it has one."""
    found = dict(tensors)
    if tied and names.output and names.input in found:
        found[names.output] = found[names.input]
    return found


def without_output(tensors: Mapping[str, Tensor], names: Embeddings) -> dict[str, Tensor]:
    """Return a tied model's tensors, each once."""
    return {name: tensor for name, tensor in tensors.items() if name != names.output}
