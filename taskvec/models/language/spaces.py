"""The activation spaces of language models, family by family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskvec.models.lm_layouts import Layout
from taskvec.models.spaces import Axes, Spaces

NEXT = "next"  # the input of the next block's attention, or of what follows the last block


@dataclass(frozen=True)
class Outline:
    """What a family has beside its linear layers.

    ``norms`` maps a norm's path within a block to the space of its output, a name within the block or ``NEXT``; ``top``
    maps the norms outside the blocks to theirs; ``axes`` holds the other parameters; ``residual`` is the norm whose
    input is the sum of the embeddings.
    """

    norms: Mapping[str, str]
    top: Mapping[str, str]
    axes: Mapping[str, Axes]
    residual: str
    decoder_norms: Mapping[str, str] = field(default_factory=dict)


_LLAMA_NORMS = {"input_layernorm": "attn.in", "post_attention_layernorm": "mlp.in"}
# One head's channels
_HEAD_NORMS = {"self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm"}
_GEMMA2_NORMS = {
    "input_layernorm": "attn.in",
    "post_attention_layernorm": "attn.out_norm",
    "pre_feedforward_layernorm": "mlp.in",
    "post_feedforward_layernorm": "mlp.proj_norm",
}


def _llama_like(norms: Mapping[str, str]) -> Outline:
    axes: dict[str, Axes] = {
        "model.embed_tokens.weight": (None, "residual"),
        "lm_head.weight": (None, "final"),
    }
    return Outline(norms, {"model.norm": "final"}, axes, "model.layers.0.input_layernorm")


def _bert_like(prefix: str) -> Outline:
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    axes: dict[str, Axes] = {
        f"{prefix}.embeddings.{table}.weight": (None, "residual") for table in tables
    }
    first = {f"{prefix}.embeddings.LayerNorm": f"{prefix}.encoder.layer.0.attn.in"}
    norms = {"attention.output.LayerNorm": "mlp.in", "output.LayerNorm": NEXT}
    return Outline(norms, first, axes, f"{prefix}.embeddings.LayerNorm")


# transformers' package -> what it has beside its linear layers
OUTLINES = {
    "roberta": _bert_like("roberta"),
    "bert": _bert_like("bert"),
    "deberta_v2": _bert_like("deberta"),
    "t5": Outline(
        norms={"layer.0.layer_norm": "attn.in", "layer.1.layer_norm": "mlp.in"},
        decoder_norms={
            "layer.0.layer_norm": "attn.in",
            "layer.1.layer_norm": "cross.in",
            "layer.2.layer_norm": "mlp.in",
        },
        top={"encoder.final_layer_norm": "encoder.final", "decoder.final_layer_norm": "final"},
        axes={
            "shared.weight": (None, "residual"),
            "lm_head.weight": (None, "final"),
            # offsets of the scores by distance and head, no features
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (None, None),
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (None, None),
        },
        residual="encoder.block.0.layer.0.layer_norm",
    ),
    "gpt2": Outline(
        norms={"ln_1": "attn.in", "ln_2": "mlp.in"},
        top={"transformer.ln_f": "final"},
        axes={
            "transformer.wte.weight": (None, "residual"),
            "transformer.wpe.weight": (None, "residual"),
            "lm_head.weight": (None, "final"),
        },
        residual="transformer.h.0.ln_1",
    ),
    "llama": _llama_like(_LLAMA_NORMS),
    "qwen2": _llama_like(_LLAMA_NORMS),
    "qwen3": _llama_like(_LLAMA_NORMS | _HEAD_NORMS),
    "mistral": _llama_like(_LLAMA_NORMS),
    "gemma": _llama_like(_LLAMA_NORMS),
    "gemma2": _llama_like(_GEMMA2_NORMS),
    "gemma3": _llama_like(_GEMMA2_NORMS | _HEAD_NORMS),
}


def language_spaces(layout: Layout, config: Mapping[str, Any]) -> Spaces:
    """Return the spaces of every parameter that a model of the family can have.

    ``residual`` is the sum of the embeddings, ``final`` the output of the last norm, which heads and the output
    embedding read; a tied embedding lives in ``residual``. ``relative`` holds DeBERTa's embeddings of distances. No
    module shows it where the blocks' own q and k project them without a norm before, nor the output of its convolution.

    Raises:
        ValueError: for a size that is missing or malformed.
    """
    outline, spaces = OUTLINES[layout.package], Spaces()
    spaces.axes |= outline.axes
    spaces.observed["residual"] = (outline.residual, "input")
    for path, depth, roles in layout.blocks(config):
        norms = outline.decoder_norms if path.startswith("decoder.") else outline.norms
        for index in range(depth):
            block = f"{path}.{index}"
            for name, (role, _) in roles.items():
                spaces.add_block_layer(block, f"{block}.{name}", role)
            following = f"{path}.{index + 1}.attn.in" if index + 1 < depth else "final"
            for name, space in norms.items():
                read_by = following if space == NEXT else f"{block}.{space}"
                spaces.add_norm(f"{block}.{name}", read_by)
    for name, space in outline.top.items():
        spaces.add_norm(name, space)
    if layout.package == "deberta_v2":
        _add_deberta(spaces, config)
    return spaces


def _add_deberta(spaces: Spaces, config: Mapping[str, Any]) -> None:
    """Enter what only DeBERTa has: embeddings of distances, and a convolution beside block 0."""
    encoder = "deberta.encoder"
    if "layer_norm" in str(config.get("norm_rel_ebd")):
        spaces.axes[f"{encoder}.rel_embeddings.weight"] = (None, "relative.residual")
        spaces.observed["relative.residual"] = (f"{encoder}.LayerNorm", "input")
        spaces.add_norm(f"{encoder}.LayerNorm", "relative")
    else:
        spaces.axes[f"{encoder}.rel_embeddings.weight"] = (None, "relative")
    if not config.get("conv_kernel_size"):
        return
    # The convolution reads the input of block 0; its norm, not that of block 0, gives block 1 its input.
    inputs = None if config.get("conv_groups", 1) > 1 else f"{encoder}.layer.0.attn.in"
    spaces.axes[f"{encoder}.conv.conv.weight"] = ("conv", inputs, None)
    spaces.axes[f"{encoder}.conv.conv.bias"] = ("conv",)
    (following,) = spaces.axes[f"{encoder}.layer.0.output.LayerNorm.weight"]
    spaces.add_norm(f"{encoder}.conv.LayerNorm", following)
    spaces.add_norm(f"{encoder}.layer.0.output.LayerNorm", f"{encoder}.layer.0.out")
