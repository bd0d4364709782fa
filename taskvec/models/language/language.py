"""What all language-model backbones share: where the model is, its header, its tokenizer, its layout."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from taskvec.data.prompt import Prompt
from taskvec.data.remote import Remote
from taskvec.errors import UserError
from taskvec.models.base import Backbone, Recipe, first_broken
from taskvec.models.language.files import Header, ModelSource, find_layout
from taskvec.models.language.spaces import language_spaces
from taskvec.models.layers import LinearLayer
from taskvec.models.lm_layouts import Heads, Layout, Style
from taskvec.models.remote import language_model_files, tokenizer_files
from taskvec.models.sources import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_FILES,
    Source,
    largest_token,
    one_line,
)
from taskvec.models.spaces import Spaces

if TYPE_CHECKING:
    from torch import Tensor, nn

    from taskvec.models.language.tokens import Pieces


# Of a model's description: what changes the function that the same weights compute
FUNCTION = (
    "model_type", "hidden_act", "hidden_activation", "activation_function", "feed_forward_proj", "num_attention_heads",
    "num_key_value_heads", "n_head", "num_heads", "head_dim", "rope_theta", "rope_parameters", "rope_scaling",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "sliding_window", "scale_attn_weights",
)  # fmt: skip


class LanguageModel(Backbone):
    """A language model in transformers' format: a public name of the hub, a local folder, or ``pkg://NAME``.

    ``revision`` pins a version of the hub's, ``tokenizer`` is a place of its own (None: beside the model), and
    ``start_token`` is put before every text where the tokenizer itself puts nothing there. A model's own Python
    is never run: networks are transformers'. With ``trust_remote_code`` a tokenizer's own is.
    """

    model: str
    revision: str | None = None
    tokenizer: str | None = None
    max_length: int = Field(128, ge=2)
    start_token: str | None = None
    recipe: Recipe = Recipe(drift_weight=1.0)

    style: ClassVar[Style]
    modality: ClassVar[str] = "texts"

    @cached_property
    def source(self) -> ModelSource:
        """Where the model is."""
        return ModelSource(self.model, self.revision, trusted=self.trust_remote_code)

    @cached_property
    def tokenizer_source(self) -> Source:
        """Where the tokenizer is."""
        if not self.tokenizer:
            return self.source
        return Source(self.tokenizer, key="backbone.tokenizer", trusted=self.trust_remote_code)

    @property
    def architecture(self) -> dict[str, Any]:
        """The model's description, its ``config.json``.

        Raises:
            UserError: if it is missing, or of the hub and not cached yet.
        """
        config = self.source.config
        if config is None:
            raise UserError(
                f"backbone.model: {self.model} is not in the hub's cache yet, and it is no folder"
            )
        return config

    @property
    def layout(self) -> Layout:
        """The family's layout.

        Raises:
            UserError: for a family that is not covered, or of another kind of backbone.
        """
        return find_layout(self.architecture, self.style)

    def identity(self) -> dict[str, Any]:
        """Return the settings with the files' checksums, or the hub's commit, in place of names and paths."""
        settings = super().identity()
        del settings["revision"]  # the commit says it
        return settings | {
            "model": self.source.identity(self._read()),
            "tokenizer": self._tokenizer_identity(),
        }

    def _read(self) -> tuple[str, ...]:
        return self.source.names if self.source.folder else ()

    def preprocessing(self) -> dict[str, Any]:
        """Return what determines the token ids: tokenizer, longest input, start token and style."""
        return {
            "tokenizer": self._tokenizer_identity(),
            "max_length": self.max_length,
            "start_token": self.start_token,
            "style": self.style,
        }

    def _tokenizer_identity(self) -> Any:
        return self.tokenizer_source.identity(TOKENIZER_FILES)

    def check(self) -> None:
        """Compare the header of the weights, local or cached, with the architecture.

        Raises:
            UserError: for a missing or damaged file, a family that is not covered, tensors that do not fit, and code
                that would have to be run without consent.
        """
        tokenizer = self.tokenizer_source
        if tokenizer.folder and not any(tokenizer.file(name) for name in TOKENIZER):
            raise UserError(f"{tokenizer.key}: {tokenizer.folder} holds no tokenizer")
        self.source.check()
        tokenizer.check()
        if (config := self.source.config) is None:
            return
        layout = find_layout(config, self.style)
        try:
            layout.linear_layers(config)
            limit = layout.longest(config)
            if self.source.weights:
                self._header(config).check()
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"backbone.model: {self.model}: {error}") from error
        if limit is not None and self.max_length > limit:
            raise UserError(
                f"backbone.max_length: {self.max_length} exceeds the model's {limit} positions"
            )

    def check_inputs(self) -> None:
        """Compare the tokenizer's files with the number of rows of the embedding.

        Raises:
            UserError: if there is a token without a row.
        """
        largest = largest_token(self.tokenizer_source)
        if largest:
            self._check_row(*largest)

    def _check_row(self, number: int, token: str) -> None:
        if self.source.file(CONFIG) is None:
            return
        rows = self.layout.get(self.architecture, "vocab_size")
        if number >= rows:
            raise UserError(
                f"{self.tokenizer_source.key}: token {number} ({token!r}) is beyond the embedding's {rows} rows; take "
                "the tokenizer that the model was trained with, or resize the embedding"
            )

    def _header(self, config: Mapping[str, Any]) -> Header:
        return Header(find_layout(config, self.style), config, tuple(self.source.weights.values()))

    @property
    def place(self) -> str:
        """The model's folder, or its name on the hub."""
        return self.model

    def described(self) -> dict[str, dict[str, Any]]:
        """Return the model's ``config.json``."""
        told = dict(self.architecture)
        for key in ("dtype", "torch_dtype"):
            if key in told:
                told[key] = "float32"
        return {CONFIG: told}

    def function(self, description: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return activation, heads, positions and normalisation of a ``config.json``."""
        described = self.architecture if description is None else description
        return {key: described.get(key) for key in FUNCTION}

    def remotes(self) -> list[Remote]:
        """Return the model and, where it is elsewhere, the tokenizer."""
        found = []
        if not self.source.folder:
            found.append(language_model_files(self.source, self.download_mb))
        if self.tokenizer and not self.tokenizer_source.folder:
            found.append(tokenizer_files(self.tokenizer_source))
        return found

    def weight_bytes(self) -> int:
        """Return the size of the editable float32 parameters in bytes; 0 for a model of the hub not cached yet."""
        config = self.source.config
        return 4 * self._header(config).parameters() if config and self.source.weights else 0

    def parameter_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Return the editable parameters' shapes by name; None for a model not cached yet."""
        config = self.source.config
        return self._header(config).shapes() if config and self.source.weights else None

    def _spaces(self) -> Spaces:
        try:
            return language_spaces(self.layout, self.architecture)
        except ValueError as error:
            raise UserError(f"backbone.model: {self.model}: {error}") from error

    def linear_layers(self) -> list[LinearLayer]:
        """Return the linear layers in the order of the forward pass."""
        return self.layout.linear_layers(self.architecture)

    def attention_heads(self) -> Heads:
        """Return how attention is cut into heads."""
        return self.layout.heads(self.architecture)

    def to_transformers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return canonical tensors under transformers' names; only GPT-2's differ."""
        from taskvec.models.language import gpt2

        return gpt2.to_transformers(state) if self.layout.package == "gpt2" else dict(state)

    def from_transformers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Invert :meth:`to_transformers`, exactly."""
        from taskvec.models.language import gpt2

        return gpt2.from_transformers(state) if self.layout.package == "gpt2" else dict(state)

    def tokenize(self, examples: Sequence[Pieces], prompt: Prompt | None = None) -> Tensor:
        """Return token ids int32 [N, longest row], padded on the right with -1, none longer than ``max_length``.

        An example is (before, text, after) or (before, text, between, text, after): fixed pieces around one text or
        two. The texts are cut from their end, so that the fixed pieces stay whole; the start token stands there once.
        Where label words follow the examples, ``prompt`` says which, and the last piece ends where they begin.

        Raises:
            UserError: if the tokenizer cannot be loaded, lacks the start token, is larger than the embedding, or a
                frame alone is too long.
        """
        from taskvec.models.language.tokens import opening, padded, special_id, started

        tokenizer = self.fitting_tokenizer
        own = opening(tokenizer)[:1]
        start = [special_id(tokenizer, self.start_token)] if self.start_token else own
        if prompt:
            end = self._end(prompt)
            examples = [[*pieces[:-1], end] for pieces in examples]
        rows = self._encode(examples, self.max_length - int(start != own))
        return padded([started(row, *start) for row in rows])

    def _end(self, prompt: Prompt) -> str:
        """Return how a frame ends in front of its label words."""
        return prompt.before

    @abstractmethod
    def _encode(self, examples: Sequence[Pieces], room: int) -> list[list[int]]:
        """Return the ids of examples, at most ``room`` each."""

    @cached_property
    def text_tokenizer(self) -> Any:
        """The tokenizer of transformers, without the padding and truncation that its files may ask for.

        Raises:
            UserError: if it cannot be loaded.
        """
        from transformers import AutoTokenizer

        source = self.tokenizer_source
        try:
            with quiet(), source.opened(TOKENIZER_FILES) as place:
                tokenizer = AutoTokenizer.from_pretrained(**place)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{source.key}: {source.name}: {one_line(error)}") from error
        if not tokenizer.is_fast:
            raise UserError(
                f"{source.key}: {source.name} has no tokenizer.json, which framed texts need"
            )
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.truncation_side = "right"
        tokenizer.model_max_length = sys.maxsize
        return tokenizer

    @cached_property
    def fitting_tokenizer(self) -> Any:
        """The tokenizer, none of whose tokens lies beyond the embedding.

        Raises:
            UserError: if one does, or the tokenizer cannot be loaded.
        """
        tokenizer = self.text_tokenizer
        token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
        self._check_row(number, token)
        return tokenizer

    def _network(self, device: str) -> nn.Module:
        """Return the canonical module with its base weights in float32, without pooler and pre-training head.

        Raises:
            UserError: if it cannot be reached or read, lacks tensors, or holds values that are not finite.
        """
        from taskvec.models.language.modules import wrap

        try:
            with quiet(), self.source.opened(self._read()) as place:
                network, report = self._load(place)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"backbone.model: {self.model}: {one_line(error)}") from error
        if report["missing_keys"]:
            raise UserError(
                f"backbone.model: {self.model}: the checkpoint lacks {sorted(report['missing_keys'])[0]}"
            )
        broken = first_broken(network.named_parameters())
        if broken:
            raise UserError(
                f"backbone.model: {self.model}: {broken} is not finite; the checkpoint is damaged"
            )
        return wrap(network, self.layout).to(device)

    def _load(self, place: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
        """Return transformers' network and its report on the weights.

        Raises:
            UserError: if what was loaded is an adapter on another model.
        """
        import torch

        from taskvec.models.language.attention import ATTENTION

        layout = self.layout
        settings = {"add_pooling_layer": False} if layout.package in ("bert", "roberta") else {}
        package = import_module(f"transformers.models.{layout.package}.modeling_{layout.package}")
        attention = "eager" if layout.package == "deberta_v2" else ATTENTION
        network, report = getattr(package, layout.network).from_pretrained(
            **place,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
        if getattr(network, "_hf_peft_config_loaded", False):
            raise UserError(
                f"backbone.model: {self.model} holds an adapter beside a model; take one of the two apart"
            )
        return network, report


@contextmanager
def named(task: str) -> Iterator[None]:
    """Say in an error about label words which task has them.

    Raises:
        UserError: as it was, with the task.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"task {task}: {error} in task/{task}.yaml") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and reports of unused tensors off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
