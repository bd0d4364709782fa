"""Language models that compute: transformers' networks behind the interface that all backbones share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec.models.base import Model
from taskvec.models.lm_layouts import Layout


class Encoder(nn.Module):
    """A bidirectional encoder: ids, mask and segments [N, L] -> the first token's final state [N, d]."""

    def __init__(self, network: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.body, self.config = layout.prefix, network.config
        self.add_module(layout.prefix, network)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """Pool the first token."""
        settings = {}
        # It would count padding by its id, which a text may hold
        if self.config.model_type == "roberta":
            settings["position_ids"] = (
                torch.arange(ids.shape[1], device=ids.device)[None] + 1 + self.config.pad_token_id
            )
        network = getattr(self, self.body)
        states = network(
            input_ids=ids, attention_mask=mask.long(), token_type_ids=segments, **settings
        ).last_hidden_state
        return states[:, 0]


class Causal(nn.Module):
    """A causal language model: ids [N, L] -> final-normed states at positions ``last`` [N, d], or at all [N, L, d].

    Padding stands on the right, where no real token looks, so no mask is needed.
    """

    def __init__(self, network: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.body, self.config = layout.prefix, network.config
        for name, child in network.named_children():
            self.add_module(name, child)

    def forward(self, ids: Tensor, last: Tensor | None = None) -> Tensor:
        """Run the body; the output embedding is applied to the rows that need it, outside."""
        states = getattr(self, self.body)(input_ids=ids, use_cache=False).last_hidden_state
        return states if last is None else states[torch.arange(len(ids), device=ids.device), last]


class TextToText(nn.Module):
    """T5: ids and mask [N, L] -> logits of the words ``head`` at the first decoding step [N, C], or of all words."""

    def __init__(self, network: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.config = network.config
        for name, child in network.named_children():
            self.add_module(name, child)

    def forward(self, ids: Tensor, mask: Tensor, head: Tensor | None = None) -> Tensor:
        """Encode, take the decoder's first step, and score."""
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        start = ids.new_full((len(ids), 1), self.config.decoder_start_token_id)
        decoded = self.decoder(
            input_ids=start,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state[:, 0]
        if self.config.scale_decoder_outputs:
            decoded = decoded * self.config.d_model**-0.5
        return decoded @ (self.lm_head.weight if head is None else self.lm_head.weight[head]).mT


def align(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids [N, L] int64 and their mask, moved to the left and cut to the longest row; -1 is padding anywhere.

    Padding becomes id 0. An empty row keeps one such position.
    """
    is_padding = inputs < 0
    lengths = (~is_padding).sum(dim=1).clamp(min=1)
    width = int(lengths.max()) if len(inputs) else 1
    # Stable, so that real tokens keep their order
    order = is_padding.to(torch.uint8).argsort(dim=1, stable=True)
    ids = inputs.gather(1, order[:, :width]).clamp(min=0)
    places = torch.arange(width, device=inputs.device)
    mask = places < lengths.unsqueeze(1)
    return ids.long(), mask


class LanguageModule(Model):
    """A loaded language model on int32 token ids [N, L], padded with -1."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(iter(self.parameters.values())).device

    def tokens(self, inputs: Tensor) -> Tensor:
        """Return which positions of the layers' inputs hold real tokens, [N, longest row] bool."""
        return align(inputs)[1].to(self.device, non_blocking=True)

    def _place(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)


class EncoderModel(LanguageModule):
    """An encoder whose head [C, d + 1], bias last, is trained with its task."""

    def __init__(self, module: Encoder, separator: int | None = None) -> None:
        super().__init__(module)
        self.separator = separator

    def prepare(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return ids, mask and segments [N, L]; a segment ends with its separator where the model tells them apart."""
        ids, mask = align(inputs)
        segments = torch.zeros_like(ids)
        kinds = getattr(self.module.config, "type_vocab_size", 0)
        if self.separator is not None and kinds > 1:
            ends = (ids == self.separator).long()
            segments = (ends.cumsum(dim=1) - ends).clamp(max=kinds - 1) * mask
        return self._place(ids, mask, segments)

    def logits(
        self, features: Tensor, head: Tensor, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return features W^T + b [N, C]."""
        head = head.to(features.device)
        return F.linear(features, head[:, :-1], head[:, -1])


class TextToTextModel(LanguageModule):
    """A text-to-text model whose features are the logits of a task's label words."""

    def prepare(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return ids and mask [N, L]."""
        return self._place(*align(inputs))

    def features(
        self, parameters: Mapping[str, Tensor], inputs: Tensor, head: Tensor | None = None
    ) -> Tensor:
        """Return the logits of the label words [N, C] at the first decoding step; without a head those of all words."""
        head = None if head is None else head.to(self.device)
        return self.call(parameters, *self.prepare(inputs), head)

    def logits(
        self, features: Tensor, head: Tensor, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return the features, which are the scores."""
        return features


class CausalModel(LanguageModule):
    """A causal language model; a task's head is the vocabulary ids [C] of its label words."""

    def __init__(self, module: Causal) -> None:
        super().__init__(module)
        output = module.lm_head.weight
        # The first name of a tied tensor, that of the input embedding, is the one under which it is edited.
        self.output = next(name for name, tensor in module.named_parameters() if tensor is output)
        self.cap = getattr(module.config, "final_logit_softcapping", None)

    def prepare(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return ids [N, L] and the position of each row's last real token [N]."""
        ids, mask = align(inputs)
        return self._place(ids, mask.sum(dim=1) - 1)

    def logits(
        self, features: Tensor, head: Tensor, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return the logits [N, C] of the label words, by the output embedding of ``parameters`` or of the base."""
        words = self._embedding(parameters)[head.to(features.device)]
        return self._capped(features @ words.to(features.dtype).mT)

    def token_states(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the final-normed state of every token [N, longest row, d], rows moved to the left."""
        return self.call(parameters, *self._place(align(inputs)[0]))

    def token_log_probs(
        self, states: Tensor, inputs: Tensor, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return log p(token i + 1 | tokens up to i) [N, L - 1] float32, 0 at padding, in rows moved to the left."""
        ids, mask = self._place(*align(inputs))
        embedding = self._embedding(parameters)
        before, after, counts = states[:, :-1], ids[:, 1:], mask[:, 1:]
        rows = []
        # One text at a time: each token has a whole vocabulary of logits
        for row, targets, real in zip(before, after, counts, strict=True):
            logits = self._capped(row.to(embedding.dtype) @ embedding.mT)
            loss = F.cross_entropy(logits.float(), targets, reduction="none")
            rows.append(torch.where(real, -loss, 0.0))
        cut = inputs.shape[1] - ids.shape[1]
        return F.pad(torch.stack(rows), (0, cut))

    def _embedding(self, parameters: Mapping[str, Tensor] | None) -> Tensor:
        return (parameters or {}).get(self.output, self.parameters[self.output])

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def wrap(network: nn.Module, layout: Layout) -> Any:
    """Return the canonical module of a network of transformers, which is rewritten in place."""
    from taskvec.models.language import gpt2
    from taskvec.models.language.attention import make_differentiable

    if layout.package == "gpt2":
        gpt2.split(network)
        # Or transformers would look for unmasked padding in every batch
        network.config.pad_token_id = None
    make_differentiable(network, layout.norm)
    return {"encoder": Encoder, "causal": Causal, "text_to_text": TextToText}[layout.style](
        network, layout
    )
