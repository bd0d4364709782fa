"""The token rows that a language model of the mini world is pre-trained on: packed text and framed prompts."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from check_lm import (
    CONTEXT,
    END,
    FRAMES,
    PAD,
    TOKENIZER,
    encode,
    framed,
    labels_of,
    masked,
)
from paths import WORK
from sources import sha256
from transformers import AutoTokenizer

CORPUS = WORK / "text_corpus"
LABEL = 1 << 14  # added to the number of a token that is part of a label word
WEIGHTS = {  # how often a document is read in one pass
    "gcide": 0.4,
    "wordnet": 1,
    "anarchism": 0.5,
    "speeches": 1,
    "foldoc": 0.7,
    "fortunes": 2,
    "scripture": 1,
    "jargon": 1,
    "opinions": 4,
    "devil": 1,
    "messages": 4,
    "languages": 8,
}


def tokens_of(path: Path, tokenizer, version: str) -> np.ndarray:
    """All documents of a source, each with an end mark before it; kept beside the source."""
    kept = path.with_suffix(f".{version[:8]}{sha256(path)[:8]}.npy")
    if not kept.exists():
        parts = [
            [END, *ids] for ids in encode(tokenizer, path.read_text(encoding="utf8").splitlines())
        ]
        temporary = kept.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.save(stream, np.concatenate([np.array(p, np.uint16) for p in parts]))
        os.replace(temporary, kept)
    return np.load(kept)


class Corpus:
    """All token numbers in memory; the rows of a pass follow from the seed and the number of the pass alone."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, model_max_length=10**9)
        version = sha256(TOKENIZER / "tokenizer.json")
        parts = [tokens_of(CORPUS / f"{name}.txt", tokenizer, version) for name in WEIGHTS]
        self.flat = np.concatenate(parts)
        self.bounds = np.append(np.flatnonzero(self.flat == END), len(self.flat))
        counts = [int((part == END).sum()) for part in parts]
        self.weights = np.repeat(np.array(list(WEIGHTS.values()), float), counts)
        self.prompts = self.read_prompts(tokenizer)
        files = [CORPUS / f"{name}.txt" for name in WEIGHTS] + [
            CORPUS / "prompts.jsonl",
            TOKENIZER / "tokenizer.json",
        ]
        self.checksums = {path.name: sha256(path) for path in files}
        self.seen = {"text": 0, "prompt": 0}
        self.passes: dict[str, tuple[int, int, np.ndarray]] = {}

    def read_prompts(self, tokenizer) -> list[list[int]]:
        """The labelled in-domain texts: framed with their label word, or (bert) as plain texts."""
        entries = [
            json.loads(line)
            for line in (CORPUS / "prompts.jsonl").read_text(encoding="utf8").splitlines()
        ]
        if self.args.kind == "bert":
            texts = [e["text"] for e in entries]
            return [[END, *ids[: CONTEXT - 1]] for ids in encode(tokenizer, texts)]
        found = []
        for task in FRAMES:
            own = [e for e in entries if e["task"] == task]
            labels = labels_of(tokenizer, [e["label"] for e in own])
            texts = framed(tokenizer, task, [e["text"] for e in own])
            for text, label in zip(texts, labels, strict=True):
                marked = [LABEL + token for token in label]
                found.append([END, *text, *marked])
        return found

    def text_rows(self, number: int) -> np.ndarray:
        """The rows of one pass over the corpus: shuffled documents, packed and cut every 128 tokens."""
        rng = np.random.default_rng((self.args.seed, 1, number))
        whole = np.floor(self.weights).astype(int)
        times = whole + (rng.random(len(whole)) < self.weights - whole)
        order = rng.permutation(np.repeat(np.arange(len(whole)), times))
        stream = np.concatenate([self.flat[self.bounds[i] : self.bounds[i + 1]] for i in order])
        count = (len(stream) - 1) // CONTEXT
        return np.lib.stride_tricks.sliding_window_view(stream, CONTEXT + 1)[
            : count * CONTEXT : CONTEXT
        ]

    def prompt_rows(self, number: int) -> np.ndarray:
        """The rows of one pass over the prompts: as many whole prompts as fit; half of the rows lack the first mark."""
        rng = np.random.default_rng((self.args.seed, 2, number))
        rows, row = [], []
        for i in rng.permutation(len(self.prompts)):
            if len(row) + len(self.prompts[i]) > CONTEXT:
                rows.append([*row, END])
                row = []
            row = row + self.prompts[i]
        rows.append([*row, END])
        found = np.full((len(rows), CONTEXT + 1), PAD, np.uint16)
        for target, row in zip(found, rows, strict=True):
            row = row[int(rng.random() < 0.5) :] if self.args.kind == "llama" else row
            target[: len(row)] = row
        return found

    def take(self, kind: str, count: int) -> np.ndarray:
        """The next rows of one kind."""
        rows = []
        while count:
            _, first, found = self.passes.get(kind, (-1, 0, np.empty((0, 0))))
            if (
                self.seen[kind] < first
                or self.seen[kind] >= first + len(found)
                or kind not in self.passes
            ):
                self.advance(kind)
                continue
            some = found[self.seen[kind] - first :][:count]
            self.seen[kind] += len(some)
            count -= len(some)
            rows.append(some)
        return np.concatenate(rows) if rows else np.empty((0, CONTEXT + 1), np.uint16)

    def advance(self, kind: str) -> None:
        """Load the next pass of one kind (passes differ in length, so they are walked through in order)."""
        number, first, found = self.passes.get(kind, (-1, 0, np.empty((0, 0))))
        make = self.text_rows if kind == "text" else self.prompt_rows
        self.passes[kind] = (number + 1, first + len(found), make(number + 1))

    def batch(self, step: int, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs and targets of one step, and which targets are label words; targets that do not count are -1."""
        rng = np.random.default_rng((self.args.seed, 3, step))
        prompts = rng.binomial(self.args.batch, share)
        rows = [self.take("text", self.args.batch - prompts), self.take("prompt", prompts)]
        tokens = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        if self.args.kind == "bert":
            inputs, target = masked(tokens[:, :CONTEXT], self.args.mask_share, rng)
            return inputs, target, torch.zeros_like(target, dtype=torch.bool)
        label, tokens = tokens[:, 1:] >= LABEL, tokens % LABEL
        return (
            tokens[:, :-1].contiguous(),
            torch.where(tokens[:, 1:] == PAD, -1, tokens[:, 1:]),
            label,
        )
