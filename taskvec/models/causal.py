"""Causal language models: GPT-2, and Llama, Qwen, SmolLM2, Gemma and Mistral, which share one layout.

A task's label words compete as the next token after its frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.data.prompt import Prompt
from taskvec.models.base import Ability
from taskvec.models.language.language import LanguageModel, named
from taskvec.models.lm_layouts import Style
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.models.language.labels import Seam
    from taskvec.models.language.modules import CausalModel
    from taskvec.models.language.tokens import Pieces


@register("backbone", "causal", paper="Radford et al., 2019; Touvron et al., arXiv 2302.13971")
class Causal(LanguageModel):
    """A causal language model whose label words compete as the token after the prompt."""

    kind: Literal["causal"] = "causal"

    style: ClassVar[Style] = "causal"
    gives: ClassVar[frozenset[Ability]] = frozenset({"label_words", "perplexity", "generation"})

    def load(self, device: str) -> CausalModel:
        """Return the model with its base weights.

        Raises:
            UserError: if weights cannot be read, are missing or not finite.
        """
        from taskvec.models.language.modules import CausalModel

        return CausalModel(self._network(device))

    def heads(self, tasks: Mapping[str, Prompt]) -> dict[str, Tensor]:
        """Return the vocabulary ids [C] int64 of the first token of each task's label words, as they follow its frame.

        Raises:
            UserError: if two label words share their first token.
        """
        import torch

        found = {}
        for task, prompt in tasks.items():
            with named(task):
                found[task] = torch.tensor(self._seam(Prompt(*prompt)).tokens)
        return found

    def _seam(self, prompt: Prompt) -> Seam:
        from taskvec.models.language.labels import seam

        return seam(self.fitting_tokenizer, prompt.words, prompt.before)

    def _end(self, prompt: Prompt) -> str:
        return self._seam(prompt).before

    def _encode(self, examples: Sequence[Pieces], room: int) -> list[list[int]]:
        from taskvec.models.language.tokens import encode_framed

        return encode_framed(self.text_tokenizer, examples, room, None)
