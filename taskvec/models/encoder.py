"""Encoder classifiers: RoBERTa, BERT and DeBERTa-v2/v3 with a linear head per task on the first token's state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.data.prompt import Prompt
from taskvec.models.base import Ability
from taskvec.models.language.language import LanguageModel
from taskvec.models.lm_layouts import Style
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.models.language.modules import EncoderModel
    from taskvec.models.language.tokens import Pieces


@register(
    "backbone",
    "encoder",
    paper="Devlin et al., NAACL 2019, arXiv 1810.04805; Liu et al., arXiv 1907.11692",
)
class Encoder(LanguageModel):
    """A bidirectional encoder; each task trains a linear head on its first token's final state."""

    kind: Literal["encoder"] = "encoder"

    style: ClassVar[Style] = "encoder"
    gives: ClassVar[frozenset[Ability]] = frozenset({"learned_heads"})

    def load(self, device: str) -> EncoderModel:
        """Return the encoder with its base weights, without pooler and pre-training head.

        Raises:
            UserError: if weights or tokenizer cannot be read, or weights are missing or not finite.
        """
        from taskvec.models.language.modules import EncoderModel

        module = self._network(device)
        kinds = getattr(module.config, "type_vocab_size", 0)
        separator = self.text_tokenizer.sep_token_id if kinds > 1 else None
        return EncoderModel(module, separator)

    def heads(self, tasks: Mapping[str, Prompt]) -> dict[str, Tensor]:
        """Return each task's initial head [C, d + 1] float32: normal(0, 0.02) by the task's name, bias 0.

        Raises:
            UserError: if the model's description cannot be read.
        """
        import torch

        width, heads = self.layout.get(self.architecture, "hidden_size"), {}
        for task, prompt in tasks.items():
            classes = len(Prompt(*prompt).words)
            seed = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8]) >> 1
            weights = 0.02 * torch.randn(
                classes, width, generator=torch.Generator().manual_seed(seed)
            )
            heads[task] = torch.cat([weights, torch.zeros(classes, 1)], dim=1)
        return heads

    def _encode(self, examples: Sequence[Pieces], room: int) -> list[list[int]]:
        from taskvec.models.language.tokens import encode_pairs

        return encode_pairs(self.text_tokenizer, examples, room)
