"""Tiny random language models of four families on the shipped tokenizer, in a folder a user could ``--include``."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 6144
HUB = Path(__file__).resolve().parent / "fixtures" / "hub"
SHARED = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
SIZES = SHARED | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SIZES |= {"max_position_embeddings": 140}
GROUPED = {"num_key_value_heads": 2, "tie_word_embeddings": True}
T5 = SHARED | {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
}
T5 |= {
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
GPT2 = SHARED | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 140}
MODELS = {  # backbone: (kind, model type, published class, sizes)
    "tiny_roberta": ("encoder", "roberta", "RobertaForMaskedLM", SIZES | {"type_vocab_size": 1}),
    "tiny_t5": ("text_to_text", "t5", "T5ForConditionalGeneration", T5),
    "tiny_gpt2": ("causal", "gpt2", "GPT2LMHeadModel", GPT2),
    "tiny_llama": (
        "causal",
        "llama",
        "LlamaForCausalLM",
        SIZES | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
}
FAST = [
    "finetune.steps=4",
    "finetune.warmup=1",
    "finetune.batch_size=16",
    "protocol.grid=[0,0.5,1]",
]


def build(root: Path) -> Path:
    """Write each model and its backbone file below ``root`` and return the folder to ``--include``."""
    import torch
    import transformers

    (root / "backbone").mkdir(parents=True, exist_ok=True)
    for name, (kind, model_type, published, sizes) in MODELS.items():
        torch.manual_seed(3)
        config = transformers.AutoConfig.for_model(model_type, **sizes)
        getattr(transformers, published)(config).save_pretrained(root / "models" / name)
        (root / "backbone" / f"{name}.yaml").write_text(
            f"defaults:\n  - /schema/backbone/{kind}@_here_\n  - _self_\n"
            f'model: {root}/models/{name}\ntokenizer: pkg://mini_lm_tokenizer\nstart_token: "<|end|>"\n'
            "recipe: {lr: 1.0e-2, steps: 60, warmup: 5, batch_size: 32}\n"
        )
    return root
