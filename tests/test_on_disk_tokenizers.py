"""Merges of models whose tokenizers differ: rows are paired by token, never by number."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import transformers
from test_on_disk import merge, written
from tokenizers import Tokenizer, models, pre_tokenizers

from taskvec.cli import main

WORDS = [f"t{number}" for number in range(20)]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


def tokenizer(
    words: list[str], seed: int, added: tuple[str, ...] = ()
) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of words in shuffled order, with added tokens."""
    order = list(words)
    random.Random(seed).shuffle(order)
    whole = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(order)}, unk_token=words[0])
    )
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=whole, unk_token=words[0])
    found.add_special_tokens({"additional_special_tokens": list(added)})
    found.chat_template = f"{{{{ messages }}}} {seed}"
    return found


def save(folder: Path, tokens: transformers.PreTrainedTokenizerFast, rows: int, seed: int) -> dict:
    """Save a tiny random model with its tokenizer and return its tensors."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(vocab_size=rows, tie_word_embeddings=False, **SIZES)
    network = transformers.LlamaForCausalLM(config)
    network.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base with padded rows, a model with two more tokens, one that lacks a word and has a token without a row."""
    root = tmp_path_factory.mktemp("tokenizers")
    base = tokenizer(WORDS, 1)
    first = tokenizer(WORDS, 2, ("<a>", "<b>"))
    second = tokenizer([word for word in WORDS if word != "t5"], 3, ("<a>", "<c>"))
    rows = {"base": 24, "first": 22, "second": 20}
    tokenizers = {"base": base, "first": first, "second": second}
    states = {
        name: save(root / name, tokens, rows[name], seed)
        for seed, (name, tokens) in enumerate(tokenizers.items())
    }
    return root, tokenizers, states


def row(world, name: str, token: str, tensor: str) -> torch.Tensor | None:
    """Return a model's own row of a token."""
    _, tokenizers, states = world
    number = tokenizers[name].get_vocab().get(token)
    table = states[name][tensor]
    return None if number is None or number >= len(table) else table[number]


def expected_row(world, token: str, tensor: str, weights: dict[str, float]) -> torch.Tensor:
    """Return theta_0 + sum of w (theta_t - theta_0) over those that have the token; of a new one the mean."""
    own = {name: row(world, name, token, tensor) for name in weights}
    known = {name: found for name, found in own.items() if found is not None}
    start = row(world, "base", token, tensor)
    if start is None:
        return torch.stack(list(known.values())).mean(0)
    return start + sum(weights[name] * (found - start) for name, found in known.items())


def words(world, *more: str) -> list[str]:
    root = world[0]
    return [f"base={root}/base", f"models=[{root}/first,{root}/second]", *more]


@pytest.mark.parametrize("choice", ["base", "union", "folder"])
def test_every_token_is_merged_with_its_own_rows(choice, world, tmp_path):
    weights = {"first": 0.3, "second": 0.5}
    chosen = tokenizer([*WORDS, "<a>"], 9)
    chosen.save_pretrained(tmp_path / "folder")
    place = str(tmp_path / "folder") if choice == "folder" else choice
    found = merge(*words(world, "merge.weights=[0.3,0.5]", f"out={tmp_path}/out"), tokenizer=place)
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    wanted = {"base": WORDS, "union": [*WORDS, "<a>", "<b>", "<c>"], "folder": [*WORDS, "<a>"]}[
        choice
    ]
    assert set(tokens) == set(wanted)
    for tensor in (EMBEDDING, HEAD):
        assert len(found[tensor]) == {"base": 24, "union": 24, "folder": 21}[choice]
        for token, number in tokens.items():
            if token == "<c>":  # nobody has a row of it
                expected = world[2]["base"][tensor].mean(0)
            else:
                expected = expected_row(world, token, tensor, weights)
            torch.testing.assert_close(found[tensor][number], expected, rtol=0, atol=1e-6)
    if choice == "base":
        for number in range(20, 24):
            assert torch.equal(found[EMBEDDING][number], world[2]["base"][EMBEDDING][number])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == len(found[EMBEDDING])


def test_a_method_with_thresholds_pairs_rows_too(world, tmp_path):
    found = merge(
        *words(world, "merge=ties", "merge.density=1.0", f"out={tmp_path}/a"), tokenizer="union"
    )
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "a").get_vocab()
    # Of one holder TIES takes its own row, a new row is the mean whatever the method
    torch.testing.assert_close(found[EMBEDDING][tokens["t5"]], row(world, "first", "t5", EMBEDDING))
    mean = expected_row(world, "<a>", EMBEDDING, {"first": 1, "second": 1})
    torch.testing.assert_close(found[EMBEDDING][tokens["<a>"]], mean)


def test_the_chosen_tokenizer_is_written_byte_for_byte(world, tmp_path):
    root = world[0]
    (root / "base" / "notes.txt").write_text("not a tokenizer's")
    merge(*words(world, f"out={tmp_path}/base"), tokenizer="base")
    merge(*words(world, f"out={tmp_path}/folder"), tokenizer=str(root / "first"))
    for chosen, out in [("base", "base"), ("first", "folder")]:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (tmp_path / out / name).read_bytes() == (root / chosen / name).read_bytes()
    assert not (tmp_path / "base" / "notes.txt").exists()


def test_vocabularies_that_differ_are_one_line_that_names_the_options(world, tmp_path, capsys):
    assert main(["merge", *words(world, f"out={tmp_path}/a")]) == 2
    said = capsys.readouterr().err
    assert "--tokenizer base, --tokenizer union or --tokenizer FOLDER" in said
    assert said.strip().count("\n") == 0


def test_padding_alone_needs_no_choice(world, tmp_path):
    root, tokenizers, _ = world
    save(tmp_path / "padded", tokenizers["base"], 64, 7)
    save(tmp_path / "bare", tokenizers["base"], 20, 8)
    for name in ("padded", "bare"):
        found = merge(
            f"base={root}/base", f"models=[{tmp_path}/{name}]", f"out={tmp_path}/{name}_out"
        )
        own = written(tmp_path / name)
        assert len(found[EMBEDDING]) == 24
        torch.testing.assert_close(found[EMBEDDING][:20], own[EMBEDDING][:20], rtol=0, atol=0)


def test_without_a_base_rows_are_paired_with_the_first_model(world, tmp_path):
    root = world[0]
    models_ = f"models=[{root}/base,{root}/first]"
    found = merge("merge=average", models_, f"out={tmp_path}/a", tokenizer="union")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "a").get_vocab()
    for token, number in tokens.items():
        own = [row(world, name, token, EMBEDDING) for name in ("base", "first")]
        mean = torch.stack([found for found in own if found is not None]).mean(0)
        torch.testing.assert_close(found[EMBEDDING][number], mean, rtol=0, atol=1e-6)


def test_the_written_folder_generates(world, tmp_path):
    merge(*words(world, f"out={tmp_path}/a"), tokenizer="union")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    ids = tokens("t3 <a> t7 <c>", return_tensors="pt").input_ids
    assert ids.shape == (1, 4)
    assert network.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 6)
    assert tokens.apply_chat_template([{"role": "user", "content": "t1"}], tokenize=False).endswith(
        " 1"
    )
