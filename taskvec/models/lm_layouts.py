"""Language-model families as data: names, roles and shapes of their linear layers, read from config.json without torch.

The names are those of transformers' own modules and checkpoints, except for GPT-2, whose packed and transposed weights
become Linear layers (``gpt2``). In every family

- editable is every parameter: embeddings, norms, linear layers, and the output embedding where it is not tied; poolers
  and pre-training heads are not built, and tied parameters appear once, under the name of the input embedding;
- a linear layer is a weight matrix inside a block; the output embedding counts as an embedding;
- a head owns ``width`` rows of q and, with its group's other heads, of k and v, and ``width`` columns of out.

Source: transformers 5.23, ``models/*/modeling_*.py`` and ``configuration_*.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from taskvec.models.layers import DEEPEST, Heads, LinearLayer

Style = Literal["encoder", "text_to_text", "causal"]

# Within a block: path -> (role, (rows, columns) in the sizes of ``sizes``), in the order of the forward pass.
Roles = Mapping[str, tuple[str, tuple[str, str]]]

_BERT: Roles = {
    "attention.self.query": ("attn.q", ("inner", "width")),
    "attention.self.key": ("attn.k", ("inner", "width")),
    "attention.self.value": ("attn.v", ("inner", "width")),
    "attention.output.dense": ("attn.out", ("width", "inner")),
    "intermediate.dense": ("mlp.fc", ("mlp", "width")),
    "output.dense": ("mlp.proj", ("width", "mlp")),
}
_DEBERTA: Roles = {
    "attention.self.query_proj": ("attn.q", ("inner", "width")),
    "attention.self.key_proj": ("attn.k", ("inner", "width")),
    "attention.self.value_proj": ("attn.v", ("inner", "width")),
    # Their inputs are relative positions
    "attention.self.pos_key_proj": ("attn.pos_k", ("inner", "width")),
    "attention.self.pos_query_proj": ("attn.pos_q", ("inner", "width")),
    "attention.output.dense": ("attn.out", ("width", "inner")),
    "intermediate.dense": ("mlp.fc", ("mlp", "width")),
    "output.dense": ("mlp.proj", ("width", "mlp")),
}
_GPT2: Roles = {
    "attn.c_attn.q": ("attn.q", ("inner", "width")),
    "attn.c_attn.k": ("attn.k", ("inner", "width")),
    "attn.c_attn.v": ("attn.v", ("inner", "width")),
    "attn.c_proj": ("attn.out", ("width", "inner")),
    "mlp.c_fc": ("mlp.fc", ("mlp", "width")),
    "mlp.c_proj": ("mlp.proj", ("width", "mlp")),
}
_LLAMA: Roles = {
    "self_attn.q_proj": ("attn.q", ("inner", "width")),
    "self_attn.k_proj": ("attn.k", ("kv", "width")),
    "self_attn.v_proj": ("attn.v", ("kv", "width")),
    "self_attn.o_proj": ("attn.out", ("width", "inner")),
    "mlp.gate_proj": ("mlp.gate", ("mlp", "width")),
    "mlp.up_proj": ("mlp.up", ("mlp", "width")),
    "mlp.down_proj": ("mlp.proj", ("width", "mlp")),
}


def _t5_attention(path: str, kind: str) -> Roles:
    rows = {letter: (f"{kind}.{letter}", ("inner", "width")) for letter in "qkv"} | {
        "o": (f"{kind}.out", ("width", "inner"))
    }
    return {f"{path}.{letter}": role for letter, role in rows.items()}


def _t5_mlp(path: str, gated: bool) -> Roles:
    inputs = {"wi_0": "mlp.gate", "wi_1": "mlp.up"} if gated else {"wi": "mlp.fc"}
    roles = {f"{path}.{name}": (role, ("mlp", "width")) for name, role in inputs.items()}
    return roles | {f"{path}.wo": ("mlp.proj", ("width", "mlp"))}


@dataclass(frozen=True)
class Layout:
    """One family: its network in transformers, where its blocks stand, and the keys of its config.

    ``prefix`` is the attribute of the published classes that holds the network's body, ``stacks`` maps the path of each
    list of blocks to the config key of its depth and its roles, ``norm`` names the norm that is swapped for one of
    ours, ``keys`` gives the config's names of the sizes, ``positions`` the key of the longest input.
    """

    style: Style
    package: str
    network: str
    prefix: str
    embedding: str
    stacks: Mapping[str, tuple[str, Roles]]
    norm: Literal["layer", "rms", "rms_plus_one"]
    keys: Mapping[str, str] = field(default_factory=dict)
    positions: str | None = "max_position_embeddings"
    tied: bool = True  # the output embedding is the input embedding, where the config does not say
    ignored: tuple[str, ...] = ()  # prefixes of checkpoint tensors that are not part of the model
    rotary: bool = False  # positions turn the channels of q and k
    biased: bool = False  # positions add to each head's scores, the same in all blocks

    def get(self, config: Mapping[str, Any], size: str, default: int | None = None) -> int:
        """Return a size of the config under the family's own name.

        Raises:
            ValueError: if it is missing without a default, or no positive integer.
        """
        key = self.keys.get(size, size)
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or value <= 0:
            raise ValueError(f"config.json: {key} must be a positive integer, got {value!r}")
        return value

    def longest(self, config: Mapping[str, Any]) -> int | None:
        """Return the length of the longest input; None where positions are relative without an end.

        Raises:
            ValueError: if the config does not say it.
        """
        if self.positions is None:
            return None
        # RoBERTa counts from 2
        return self.get(config, self.positions) - 2 * (self.package == "roberta")

    def heads(self, config: Mapping[str, Any]) -> Heads:
        """Return the number of heads and groups and the width of a head.

        Raises:
            ValueError: for a size that is missing or malformed.
        """
        count = self.get(config, "num_attention_heads")
        width = self.get(config, "head_dim", self.get(config, "hidden_size") // count)
        groups = self.get(config, "num_key_value_heads", count)
        return Heads(count, groups, width, channels=not self.rotary, places=not self.biased)

    def sizes(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Return the sizes that the shapes are written in.

        Raises:
            ValueError: for a size that is missing or malformed.
        """
        heads, width = self.heads(config), self.get(config, "hidden_size")
        usual = 4 * width if self.package == "gpt2" else None
        mlp = self.get(config, "intermediate_size", usual)
        return {
            "width": width,
            "inner": heads.query * heads.width,
            "kv": heads.key_value * heads.width,
            "mlp": mlp,
        }

    def linear_layers(self, config: Mapping[str, Any]) -> list[LinearLayer]:
        """Return the linear layers in the order of the forward pass, the decoder's blocks counted on.

        Raises:
            ValueError: for a size that is missing or malformed.
        """
        return list(self.shapes(config))

    def shapes(self, config: Mapping[str, Any]) -> dict[LinearLayer, tuple[int, int]]:
        """Return the shape (rows, columns) of each linear layer's weight.

        Raises:
            ValueError: for a size that is missing or malformed, or more blocks than any model has.
        """
        sizes, shapes, first = self.sizes(config), {}, 0
        for path, depth, roles in self.blocks(config):
            if depth > DEEPEST:
                raise ValueError(f"config.json describes {depth} blocks (at most {DEEPEST})")
            for index in range(depth):
                for name, (role, (rows, columns)) in roles.items():
                    layer = LinearLayer(f"{path}.{index}.{name}", role, first + index)
                    shapes[layer] = (sizes[rows], sizes[columns])
            first += depth
        return shapes

    def blocks(self, config: Mapping[str, Any]) -> list[tuple[str, int, Roles]]:
        """Return path, depth and roles of each list of blocks.

        Raises:
            ValueError: for a size that is missing or malformed.
        """
        if self.package == "t5":
            return _t5_blocks(self, config)
        ((path, (depth, roles)),) = self.stacks.items()
        if self.package == "deberta_v2":
            roles = {name: role for name, role in roles.items() if _deberta_has(name, config)}
        return [(path, self.get(config, depth), roles)]


def _t5_blocks(layout: Layout, config: Mapping[str, Any]) -> list[tuple[str, int, Roles]]:
    """Return T5's encoder and decoder; v1.1 and Flan gate their MLP."""
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
    attention, depth = (
        _t5_attention("layer.0.SelfAttention", "attn"),
        layout.get(config, "num_layers"),
    )
    cross = _t5_attention("layer.1.EncDecAttention", "cross")
    return [
        ("encoder.block", depth, attention | _t5_mlp("layer.1.DenseReluDense", gated)),
        (
            "decoder.block",
            layout.get(config, "num_decoder_layers", depth),
            attention | cross | _t5_mlp("layer.2.DenseReluDense", gated),
        ),
    ]


def _deberta_has(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether DeBERTa has a projection: those of relative positions are optional, and shared in v3.

    Raises:
        ValueError: if the kinds of positions are neither a list nor words between bars.
    """
    term = {"pos_key_proj": "c2p", "pos_query_proj": "p2c"}.get(name.rpartition(".")[2])
    if term is None:
        return True
    kinds = config.get("pos_att_type") or []
    if isinstance(kinds, str):
        kinds = kinds.split("|")
    if not isinstance(kinds, list):
        raise ValueError(f"config.json: pos_att_type must be a list, got {kinds!r}")
    own = config.get("relative_attention") and not config.get("share_att_key")
    return bool(own) and term in kinds


def _bert_like(package: str, network: str, prefix: str, roles: Roles, **changes: Any) -> Layout:
    stacks = {f"{prefix}.encoder.layer": ("num_hidden_layers", roles)}
    embedding = f"{prefix}.embeddings.word_embeddings.weight"
    ignored = (
        "cls.",
        "lm_head.",
        "classifier.",
        "qa_outputs.",
        "mask_predictions.",
        "lm_predictions.",
        "pooler.",
    )
    return Layout(
        "encoder", package, network, prefix, embedding, stacks, "layer", ignored=ignored, **changes
    )


def _llama_like(package: str, name: str) -> Layout:
    stacks, network = {"model.layers": ("num_hidden_layers", _LLAMA)}, f"{name}ForCausalLM"
    embedding = "model.embed_tokens.weight"
    return Layout(
        "causal", package, network, "model", embedding, stacks, "rms", tied=False, rotary=True
    )


def _gemma_like(package: str, name: str) -> Layout:
    return replace(_llama_like(package, name), norm="rms_plus_one", tied=True)


_GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
}
_T5_KEYS = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "head_dim": "d_kv",
    "intermediate_size": "d_ff",
}

# transformers' model_type -> layout
LAYOUTS: dict[str, Layout] = {
    "roberta": _bert_like("roberta", "RobertaModel", "roberta", _BERT),
    "bert": _bert_like("bert", "BertModel", "bert", _BERT),
    "deberta-v2": _bert_like("deberta_v2", "DebertaV2Model", "deberta", _DEBERTA, positions=None),
    "t5": Layout(
        "text_to_text",
        "t5",
        "T5ForConditionalGeneration",
        "",
        "shared.weight",
        {},
        "rms",
        _T5_KEYS,
        None,
        biased=True,
    ),
    "gpt2": Layout(
        "causal",
        "gpt2",
        "GPT2LMHeadModel",
        "transformer",
        "transformer.wte.weight",
        {"transformer.h": ("num_hidden_layers", _GPT2)},
        "layer",
        _GPT2_KEYS,
        "n_positions",
    ),
    "llama": _llama_like("llama", "Llama"),
    "qwen2": _llama_like("qwen2", "Qwen2"),
    "qwen3": _llama_like("qwen3", "Qwen3"),
    "mistral": _llama_like("mistral", "Mistral"),
    "gemma": _gemma_like("gemma", "Gemma"),
    "gemma2": _gemma_like("gemma2", "Gemma2"),
    "gemma3_text": _gemma_like("gemma3", "Gemma3"),
}
