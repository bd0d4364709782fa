"""Zero-shot accuracy and held-out perplexity of exported language models of the mini world.

    python experiments/mini/check_lm.py mini_lm_s mini_lm_m mini_encoder

Accuracies are those of the validation splits: the class whose label word has the likeliest first token after the frame.
"""

import argparse
import json

import numpy as np
import pyarrow.parquet as pq
import torch
from paths import ASSETS
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

SUITE, TOKENIZER = ASSETS / "minitext6", ASSETS / "mini_lm_tokenizer"
CONTEXT, PAD, END, MASK = 128, 0, 1, 2
FRAMES = {
    "movies": "Review: {}\nSentiment:",
    "mail": "Message: {}\nKind:",
    "concepts": "Definition: {}\nCategory:",
    "languages": "Text: {}\nLanguage:",
    "scripture": "Passage: {}\nPart:",
    "speeches": "Speech: {}\nTime:",
    "products": "Review: {}\nSentiment:",
}
LABEL_WORDS = {  # where the class name would share its first token with another class of the task
    "Croatian": "Serbo-Croatian",
    "Czech": "Bohemian",
    "Dutch": "Netherlandish",
    "Swahili": "Kiswahili",
    "early nineteenth century": "frontier",
    "late nineteenth century": "railroad",
    "early twentieth century": "radio",
    "late twentieth century": "space",
}


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token numbers of each text."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def labels_of(tokenizer, names: list[str]) -> list[list[int]]:
    """Token numbers of the label words of classes, which follow a space."""
    return encode(tokenizer, [" " + LABEL_WORDS.get(name, name) for name in names])


def framed(tokenizer, task: str, texts: list[str]) -> list[list[int]]:
    """Token numbers of each text in the frame of its task; texts are cut at their end to leave room for a label."""
    tail = encode(tokenizer, [FRAMES[task].split("{}")[1]])[0]
    whole = encode(tokenizer, [FRAMES[task].format(text) for text in texts])
    room = CONTEXT - 8
    return [ids if len(ids) <= room else ids[: room - len(tail)] + tail for ids in whole]


def masked(
    tokens: torch.Tensor, share: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that start with the end mark, with a share of tokens hidden (a tenth of those left as they are)."""
    tokens = tokens.clone()
    tokens[:, 0] = END
    draw = torch.from_numpy(rng.random(tokens.shape))
    chosen = (draw < share) & (tokens > MASK)
    return torch.where(chosen & (draw < 0.9 * share), MASK, tokens), torch.where(chosen, tokens, -1)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, tokenizer, task: str, start: list[int]) -> float:
    """Zero-shot accuracy on the validation split, with `start` before each frame.

    Raises:
        ValueError: two label words of the task begin with the same token.
    """
    table = pq.read_table(SUITE / task / "val.parquet")
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    first = [ids[0] for ids in labels_of(tokenizer, names)]
    if len(set(first)) < len(names):
        raise ValueError(f"label words of {task} share a first token")
    rows = [start + ids for ids in framed(tokenizer, task, table["text"].to_pylist())]
    right, truth = 0, table["label"].to_pylist()
    for i in range(0, len(rows), 50):
        part = rows[i : i + 50]
        tokens = torch.full((len(part), max(map(len, part))), PAD)
        for target, row in zip(tokens, part, strict=True):
            target[: len(row)] = torch.tensor(row)
        states = model.model(input_ids=tokens, use_cache=False)[0]
        last = states[torch.arange(len(part)), torch.tensor([len(row) - 1 for row in part])]
        scores = last @ model.get_input_embeddings().weight[first].T
        right += int((scores.argmax(1) == torch.tensor(truth[i : i + 50])).sum())
    return round(right / len(rows), 4)


@torch.inference_mode()
def perplexity(model: torch.nn.Module, tokenizer, corpus: str) -> float:
    """Perplexity per token of packed rows of a held-out corpus (for an encoder: of a masked fifth of the tokens)."""
    texts = pq.read_table(SUITE / "corpus" / f"{corpus}.parquet")["text"].to_pylist()
    flat = torch.tensor([token for ids in encode(tokenizer, texts) for token in (END, *ids)])
    rows, rng = flat.unfold(0, CONTEXT + 1, CONTEXT), np.random.default_rng(0)
    total, count = 0.0, 0
    for part in rows.split(32):
        inputs, target = part[:, :-1], part[:, 1:]
        if not hasattr(model, "lm_head"):
            inputs, target = masked(inputs, 0.2, rng)
        logits = model(input_ids=inputs.contiguous()).logits.float()
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=-1, reduction="sum"
        ).item()
        count += int((target >= 0).sum())
    return round(float(np.exp(total / count)), 2)


def checks(model: torch.nn.Module, tokenizer) -> dict[str, dict[str, float]]:
    """All numbers of one model: zero-shot (causal models, with and without the first mark) and perplexities."""
    model.eval()
    found = {}
    if hasattr(model, "lm_head"):
        for name, start in (("zero_shot", [END]), ("zero_shot_bare", [])):
            found[name] = {task: accuracy(model, tokenizer, task, start) for task in FRAMES}
    found["perplexity"] = {
        corpus: perplexity(model, tokenizer, corpus) for corpus in ("novel", "glosses")
    }
    model.train()
    return found


def main() -> None:
    """Check the named models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", help="asset folders")
    for name in parser.parse_args().names:
        causal = (json.loads((ASSETS / name / "config.json").read_text()))["model_type"] == "llama"
        loader = AutoModelForCausalLM if causal else AutoModelForMaskedLM
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, model_max_length=10**9)
        print(
            name,
            json.dumps(checks(loader.from_pretrained(ASSETS / name).float(), tokenizer), indent=1),
        )


if __name__ == "__main__":
    main()
