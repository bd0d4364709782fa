"""Text-to-text models: T5, T5 v1.1 and Flan-T5, which answer with a label word at the first decoding step."""

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

    from taskvec.models.language.modules import TextToTextModel
    from taskvec.models.language.tokens import Pieces


@register("backbone", "text_to_text", paper="Raffel et al., JMLR 2020, arXiv 1910.10683")
class TextToText(LanguageModel):
    """An encoder-decoder whose label words compete at the first decoding step."""

    kind: Literal["text_to_text"] = "text_to_text"

    style: ClassVar[Style] = "text_to_text"
    gives: ClassVar[frozenset[Ability]] = frozenset({"label_words"})

    def load(self, device: str) -> TextToTextModel:
        """Return the model with its base weights.

        Raises:
            UserError: if weights cannot be read, are missing or not finite.
        """
        from taskvec.models.language.modules import TextToTextModel

        return TextToTextModel(self._network(device))

    def heads(self, tasks: Mapping[str, Prompt]) -> dict[str, Tensor]:
        """Return the vocabulary ids [C] int64 of the first token of each task's label words, which stand alone.

        Raises:
            UserError: if two label words share their first token.
        """
        import torch

        from taskvec.models.language.labels import first_tokens

        found = {}
        for task, prompt in tasks.items():
            with named(task):
                found[task] = torch.tensor(
                    first_tokens(self.fitting_tokenizer, Prompt(*prompt).words)
                )
        return found

    def _encode(self, examples: Sequence[Pieces], room: int) -> list[list[int]]:
        from taskvec.models.language.tokens import encode_framed

        return encode_framed(self.text_tokenizer, examples, room, self.text_tokenizer.eos_token_id)
