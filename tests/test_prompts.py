"""The seam between prompt and label against an oracle that tokenises the concatenation, on prompts made at random."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from taskvec.data.prompt import Prompt
from taskvec.data.tasks import ASSETS, TextTask
from taskvec.errors import UserError
from taskvec.models.causal import Causal
from taskvec.models.encoder import Encoder
from taskvec.models.text_to_text import TextToText

WORDS = "good bad fine awful happy sad yes no true false one two film river quiet brothers every day question answer"
CHINESE = "文本情感正面负面好坏电影河流安静每天问题答案是否"
SENTENCES = [" ".join(random.Random(seed).sample(WORDS.split(), 8)) + "." for seed in range(300)]
SENTENCES += ["".join(random.Random(seed).sample(CHINESE, 9)) + "。" for seed in range(200)]
SENTENCES += [
    f"Mood: {word}\n\"{word}\" ({word}) [{word}] '{word}' {index}"
    for index, word in enumerate(WORDS.split())
]
# Ends of frames, and whether a space follows before a word of a script with spaces.
ENDS = {
    "\nMood:": True,
    "\nMood: ": False,
    "\nMood:\n": False,
    "\nMood:\n\n": False,
    '\nMood: "': False,
    "\nMood: '": False,
    "\nMood: (": False,
    "\nMood: [": False,
    "\nMood: “": False,
    '\n"Mood"': True,
    "\n(Mood)": True,
    "\nMood =": True,
    "\nThe mood is": True,
    "": True,
    "\t": False,
}
UNSPACED_ENDS = ["情感：", "\n情感:", "。情感「", "情感。", "情感： ", ""]


def byte_level(digits: str) -> Tokenizer:
    """GPT-2's and, with digits apart from their space, Llama 3's and Qwen's."""
    words = Tokenizer(models.BPE())
    pattern = rf" ?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet)
    )
    return words


def sentencepiece(model, trainer) -> Tokenizer:
    """Llama 2's and T5's: spaces are letters of the words, and one stands before the text."""
    words = Tokenizer(model)
    words.normalizer = normalizers.Replace("\n", "\u240a")
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    words.decoder = decoders.Metaspace()
    words.train_from_iterator(SENTENCES, trainer)
    return words


def unsplit() -> Tokenizer:
    """Gemma's: no word boundary, only merges."""
    words = Tokenizer(models.BPE())
    words.normalizer = normalizers.Replace(" ", "\u2581")
    words.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    words.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=700))
    return words


SPECIAL = ["<unk>", "<s>", "</s>"]
KINDS = {
    "gpt2": lambda: byte_level(r" ?\p{N}+"),
    "llama3": lambda: byte_level(r"\p{N}{1,3}"),
    "llama2": lambda: sentencepiece(models.BPE(), trainers.BpeTrainer(vocab_size=700)),
    "unigram": lambda: sentencepiece(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=700, unk_token="<unk>", special_tokens=SPECIAL),
    ),
    "gemma": unsplit,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    known: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in known:
            known[kind] = tmp_path_factory.mktemp(kind)
            PreTrainedTokenizerFast(
                tokenizer_object=KINDS[kind](), bos_token="<s>", eos_token="</s>"
            ).save_pretrained(known[kind])
        return known[kind]

    return folder


def agrees(backbone: Causal, tokens, text: str, end: str, words: list[str], space: str) -> None:
    """Compare prompt and label tokens with those of the whole text."""
    prompt = Prompt(words, (), end)
    labels = backbone.heads({"toy": prompt})["toy"].tolist()
    row = backbone.tokenize([("Text: ", text, end)], prompt)[0].tolist()
    for word, label in zip(words, labels, strict=True):
        whole = tokens(f"Text: {text}{end}{space}{word}", add_special_tokens=False)["input_ids"]
        assert whole[: len(row)] == row, (end, word)
        assert whole[len(row)] == label, (end, word)


@pytest.mark.parametrize("kind", [*KINDS, "mini"])
@pytest.mark.parametrize("end", ENDS)
def test_label_words_are_tokenised_where_they_stand(folders, kind, end):
    place = ASSETS / "mini_lm_tokenizer" if kind == "mini" else folders(kind)
    backbone, tokens = Causal(model=str(place)), AutoTokenizer.from_pretrained(place)
    draw = random.Random(end)
    for _ in range(4):
        text = " ".join(draw.sample(WORDS.split(), 5))
        words = draw.sample(["good", "bad", "yes", "no", "happy", "true"], 3)
        agrees(backbone, tokens, text, end, words, " " if ENDS[end] else "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", UNSPACED_ENDS)
def test_no_space_in_scripts_without_spaces(folders, kind, end):
    backbone, tokens = (
        Causal(model=str(folders(kind))),
        AutoTokenizer.from_pretrained(folders(kind)),
    )
    agrees(backbone, tokens, "".join(random.Random(end).sample(CHINESE, 6)), end, ["好", "是"], "")


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
def test_digits(folders, kind):
    """Where a digit does not take its space along, the space belongs to the prompt."""
    backbone, tokens = (
        Causal(model=str(folders(kind))),
        AutoTokenizer.from_pretrained(folders(kind)),
    )
    for end in ("\nScore:", "\nScore: ", "\nScore: ("):
        agrees(backbone, tokens, "fine film", end, ["1", "2"], " " if end[-1] == ":" else "")


def test_a_frame_says_what_stands_before_the_word():
    settings = {"path": "x", "words": ("good", "bad"), "frame": "Is {text} a review?\nMood: "}
    assert TextTask(**settings).prompts(["0", "1"]) == Prompt(
        ["good", "bad"], (), " a review?\nMood: "
    )
    pair = TextTask(**settings | {"pair": "other", "frame": "{pair} after {text}?"})
    assert pair.prompts(["0", "1"]).before == "?"


def test_words_that_cannot_be_told_apart_are_named(folders):
    backbone = Causal(model=str(folders("gpt2")))
    with pytest.raises(
        UserError, match=r"task toy: the label words 'good' and 'good' share .* task/toy\.yaml"
    ):
        backbone.heads({"toy": Prompt(["good", "good"], (), ":")})
    with pytest.raises(UserError, match="the label word '' has no token"):
        backbone.heads({"toy": Prompt(["good", ""], (), ": ")})


class TestTokenizerFiles:
    """Padding and truncation that a tokenizer's file asks for do not act, and no token stands twice."""

    @pytest.fixture
    def plain(self, folders) -> Path:
        return folders("gpt2")

    @pytest.fixture
    def meddling(self, plain, tmp_path) -> Path:
        """The same tokenizer with padding, truncation and left sides in its files."""
        for path in plain.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        content = json.loads((tmp_path / "tokenizer.json").read_text())
        content["truncation"] = {
            "direction": "Left",
            "max_length": 5,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        content["padding"] = {
            "strategy": {"Fixed": 16},
            "direction": "Left",
            "pad_to_multiple_of": 8,
        }
        content["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        settings |= {"truncation_side": "left", "padding_side": "left", "model_max_length": 6}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return tmp_path

    @pytest.mark.parametrize("kind", [Causal, TextToText, Encoder])
    def test_the_cut_is_ours(self, plain, meddling, kind):
        examples = [
            ("Review: ", SENTENCES[seed], " and ", SENTENCES[seed + 1], "\nMood:")
            for seed in range(3)
        ]
        examples += [("", "bad", "")]
        rows = [
            kind(model=str(place), max_length=19).tokenize(examples).tolist()
            for place in (plain, meddling)
        ]
        assert rows[0] == rows[1]
        if kind is not Encoder:
            prompt = {"toy": Prompt(["good", "bad"], (), ":")}
            heads = [
                kind(model=str(place)).heads(prompt)["toy"].tolist() for place in (plain, meddling)
            ]
            assert heads[0] == heads[1]

    @pytest.mark.parametrize("kind", [Causal, Encoder])
    @pytest.mark.parametrize("frame", ["", "<s>", "<s><s>"])
    def test_no_start_token_twice(self, plain, tmp_path, kind, frame):
        for path in plain.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        words = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        start = words.token_to_id("<s>")
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
        )
        words.save(str(tmp_path / "tokenizer.json"))
        bare = kind(model=str(plain)).tokenize([("", "good film", "")])[0].tolist()
        for place in (plain, tmp_path):
            backbone = kind(model=str(place), start_token="<s>", max_length=9)
            assert backbone.tokenize([(frame, "good film", "")])[0].tolist() == [start, *bare]
            long = backbone.tokenize([(frame, SENTENCES[0], "")])[0].tolist()
            assert long.count(start) == 1
            assert len(long) <= 9

    def test_a_closing_token_is_left_out_of_a_prompt(self, plain, tmp_path):
        for path in plain.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        words = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        ids = [(token, words.token_to_id(token)) for token in ("<s>", "</s>")]
        words.post_processor = processors.TemplateProcessing(
            single="$A <s> </s>", special_tokens=ids
        )
        words.save(str(tmp_path / "tokenizer.json"))
        rows = [
            Causal(model=str(place)).tokenize([("", "good film", "")]).tolist()
            for place in (plain, tmp_path)
        ]
        assert rows[0] == rows[1]
