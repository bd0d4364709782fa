"""Language-model backbones from the outside: files, errors, tokens, label words, presets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

from taskvec.data.tasks import ASSETS
from taskvec.errors import UserError
from taskvec.models.causal import Causal
from taskvec.models.encoder import Encoder
from taskvec.models.text_to_text import TextToText
from taskvec.registry import lookup

ROOT = Path(__file__).resolve().parent.parent
PRESETS = [
    path for path in sorted((ROOT / "conf/backbone").glob("*.yaml")) if "clip" not in path.stem
]
MINI = "pkg://mini_lm_tokenizer"
WORDS = [
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "good",
    "bad",
    "film",
    "a",
    "b",
    "Review",
    ":",
    "very",
    "Sentiment",
    "yes",
    "</s>",
]
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
    """A tokenizer of whole words, without special tokens."""
    return str(tokenizer(tmp_path_factory.mktemp("words")))


def tokenizer(folder: Path, template: tuple[str, str] | None = None, **special: str) -> Path:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        names = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]", "</s>")]
        words.post_processor = processors.TemplateProcessing(
            single=template[0], pair=template[1], special_tokens=names
        )
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = AutoConfig.for_model(
        "llama", **SIZES, tie_word_embeddings=True, max_position_embeddings=40
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    """A folder that may be damaged."""
    for path in llama.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


class TestTokens:
    def test_a_frame_survives_truncation(self, words):
        backbone = Causal(model=words, max_length=8)
        frame = [
            ("Review : ", text, " Sentiment :") for text in ("good film", "very good film a b a b")
        ]
        got = backbone.tokenize(frame)
        assert got.dtype == torch.int32
        expected = ["Review : good film Sentiment :", "Review : very good film a Sentiment :"]
        assert got.tolist() == [[*ids(expected[0]), -1, -1], ids(expected[1])]

    def test_the_longer_of_two_texts_is_cut_first(self, words):
        backbone = Causal(model=words, max_length=6)
        got = backbone.tokenize(
            [("", "a b a b a b", " : ", "good bad", " :"), ("", "a b a b", " : ", "b a b a", " :")]
        )
        assert got.tolist() == [ids("a b : good bad :"), ids("a b : b a :")]

    def test_a_frame_without_room_is_an_error(self, words):
        with pytest.raises(UserError, match="leaves no room"):
            Causal(model=words, max_length=3).tokenize([("Review : ", "good", " Sentiment :")])

    def test_start_token(self, words):
        backbone = Encoder(model=words, max_length=3, start_token="[CLS]")
        assert backbone.tokenize([("", "a b a", ""), ("", "", "")]).tolist() == [
            ids("[CLS] a b"),
            [1, -1, -1],
        ]
        with pytest.raises(UserError, match=r"no token '<s>'"):
            Encoder(model=words, start_token="<s>").tokenize([("", "a", "")])

    def test_the_mini_tokenizer_starts_with_end(self):
        got = Encoder(model=MINI, start_token="<|end|>").tokenize([("", "a short text", "")])
        tokens = AutoTokenizer.from_pretrained(ASSETS / "mini_lm_tokenizer")
        assert tokens.decode(got[0].tolist()) == "<|end|>a short text"

    def test_special_tokens_are_the_tokenizers_own(self, tmp_path):
        pair = tokenizer(
            tmp_path, ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"), sep_token="[SEP]"
        )
        backbone = Encoder(model=str(pair), max_length=6)
        got = backbone.tokenize([("", "a b a b a b", "", "good", "")])
        assert got.tolist() == [ids("[CLS] a b [SEP] good [SEP]")]
        assert backbone.tokenize([("", "a", "")]).tolist() == [ids("[CLS] a [SEP]")]

    @pytest.mark.parametrize("template", [None, ("$A </s>", "$A </s> $B </s>")])
    def test_text_to_text_ends_its_inputs_and_causal_does_not(self, tmp_path, template):
        place = str(tokenizer(tmp_path, template, eos_token="</s>"))
        frame = [("Review : ", "good film a b", "")]
        assert TextToText(model=place, max_length=5).tokenize(frame).tolist() == [
            ids("Review : good film </s>")
        ]
        assert Causal(model=place, max_length=4).tokenize(frame).tolist() == [
            ids("Review : good film")
        ]

    def test_segments_end_with_their_separator(self, tmp_path):
        place = tokenizer(
            tmp_path, ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"), sep_token="[SEP]"
        )
        config = AutoConfig.for_model("bert", **SIZES, type_vocab_size=2)
        theirs = AutoModelForMaskedLM.from_config(config).eval()
        theirs.save_pretrained(place)
        backbone = Encoder(model=str(place), max_length=12)
        inputs = backbone.tokenize([("", "a b", "", "good", ""), ("", "a", "")])
        model = backbone.load("cpu")
        batch = AutoTokenizer.from_pretrained(place)(
            "a b", "good", return_tensors="pt", return_token_type_ids=True
        )
        assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
        with torch.no_grad():
            expected = theirs.bert(**batch).last_hidden_state[0, 0]
        torch.testing.assert_close(model.features({}, inputs)[0], expected, rtol=1e-5, atol=1e-6)


class TestHeads:
    def test_label_words_are_their_first_tokens(self):
        tokens = AutoTokenizer.from_pretrained(ASSETS / "mini_lm_tokenizer")
        task = {"movies": (["positive", "negative"], ["Review: {}\nSentiment:"])}
        after = Causal(model=MINI).heads(task)["movies"]
        assert after.dtype == torch.int64
        assert [tokens.decode([token]) for token in after.tolist()] == [" positive", " negative"]
        alone = TextToText(model=MINI).heads(task)["movies"]
        assert alone.tolist() == [tokens(word)["input_ids"][0] for word in ("positive", "negative")]

    def test_words_that_share_their_first_token_are_named(self, words):
        for kind in (Causal, TextToText):
            with pytest.raises(
                UserError, match=r"'a b' and 'a' share .* 'words' in task/toy\.yaml"
            ):
                kind(model=words).heads({"toy": (["good", "a b", "a"], [])})

    def test_an_encoder_starts_from_a_seeded_linear_head(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "bert"}))
        backbone = Encoder(model=str(tmp_path))
        heads = backbone.heads({"a": (["x"] * 500, []), "b": (["x"] * 500, [])})
        assert backbone.gives == {"learned_heads"}
        assert heads["a"].shape == (500, 17)
        assert (heads["a"][:, -1] == 0).all()
        assert abs(heads["a"][:, :-1].std().item() - 0.02) < 1e-3
        assert torch.equal(heads["a"], backbone.heads({"a": (["x"] * 500, [])})["a"])
        assert not torch.equal(heads["a"], heads["b"])


class TestFiles:
    def test_identity_follows_the_content(self, llama, copy):
        first, second = (Causal(model=str(folder), tokenizer=MINI) for folder in (llama, copy))
        assert first.identity() == second.identity()
        assert str(llama) not in json.dumps(first.identity())
        assert first.preprocessing() == second.preprocessing()
        state = load_file(copy / "model.safetensors")
        state["model.norm.weight"] += 1
        save_file(state, copy / "model.safetensors", {"format": "pt"})
        assert Causal(model=str(copy), tokenizer=MINI).identity() != first.identity()
        assert Causal(model="gpt2", revision="x").identity()["model"] == ["gpt2", "x"]

    def test_shards(self, llama, tmp_path):
        theirs = AutoModelForCausalLM.from_pretrained(llama)
        theirs.save_pretrained(tmp_path, max_shard_size="4KB")
        backbone = Causal(model=str(tmp_path), tokenizer=MINI, max_length=32)
        backbone.check()
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert backbone.weight_bytes() == Causal(model=str(llama)).weight_bytes()
        assert torch.equal(
            backbone.load("cpu").parameters["model.norm.weight"], theirs.model.norm.weight
        )
        next(tmp_path.glob("*-00002-*.safetensors")).unlink()
        with pytest.raises(UserError, match="has no model-00002"):
            backbone.check()

    def test_an_output_embedding_of_t5_v1_1_is_its_own(self, tmp_path):
        sizes = {
            "vocab_size": 32,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 1,
            "num_heads": 2,
        }
        config = AutoConfig.for_model(
            "t5", **sizes, tie_word_embeddings=False, decoder_start_token_id=0
        )
        T5ForConditionalGeneration(config).save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        save_file(
            state | {"lm_head.weight": torch.randn(32, 16)},
            tmp_path / "model.safetensors",
            {"format": "pt"},
        )
        backbone = TextToText(model=str(tmp_path), tokenizer=MINI)
        parameters = backbone.load("cpu").parameters
        assert "lm_head.weight" in parameters
        assert backbone.weight_bytes() == 4 * sum(tensor.numel() for tensor in parameters.values())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"vocab_size": 33}, r"embed_tokens\.weight has shape \(32, 16\)"),
            ({"num_hidden_layers": 1}, "holds model.layers.1.* describes 1 blocks"),
            (
                {"num_hidden_layers": 3},
                r"lacks model\.layers\.2\.self_attn\.q_proj\.weight \(16, 16\)",
            ),
            (
                {"intermediate_size": "many"},
                "intermediate_size must be a positive integer, got 'many'",
            ),
            ({"hidden_size": None}, "hidden_size must be a positive integer"),
            ({"model_type": "mamba"}, "'mamba' is not covered"),
            ({"model_type": "bert"}, "a bert model is of kind encoder, not causal"),
            ({"max_position_embeddings": 16}, "max_length: 32 exceeds the model's 16 positions"),
        ],
    )
    def test_a_config_that_does_not_fit_is_named(self, copy, changes, message):
        config = json.loads((copy / "config.json").read_text()) | changes
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message) as caught:
            Causal(model=str(copy), tokenizer=MINI, max_length=32).check()
        assert "\n" not in str(caught.value)

    def test_missing_and_damaged_files_are_named(self, copy, tmp_path):
        backbone = Causal(model=str(copy), tokenizer=MINI, max_length=32)
        backbone.check()
        state = load_file(copy / "model.safetensors")
        broken = state | {"model.norm.weight": torch.full((16,), torch.nan)}
        save_file(broken, copy / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=r"model\.norm\.weight is not finite"):
            backbone.load("cpu")
        save_file(
            {n: t for n, t in state.items() if n != "model.norm.weight"}, copy / "model.safetensors"
        )
        with pytest.raises(UserError, match=r"model\.norm\.weight|metadata"):
            backbone.load("cpu")
        (copy / "model.safetensors").write_bytes(b"no header")
        for step in (backbone.check, lambda: backbone.load("cpu")):
            with pytest.raises(UserError, match="backbone.model: "):
                step()
        (copy / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"has no model\.safetensors; save the model"):
            backbone.check()
        (copy / "config.json").unlink()
        with pytest.raises(UserError, match=r"has no config\.json"):
            backbone.check()
        with pytest.raises(UserError, match="no folder"):
            Causal(model=str(tmp_path / "nowhere")).check()
        with pytest.raises(UserError, match="holds no tokenizer"):
            Causal(model=str(copy)).check()

    def test_the_hub_out_of_reach_is_one_line(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        backbone = Causal(model="nobody/no-such-model")
        assert backbone.weight_bytes() == 0
        for step in (
            backbone.check,
            lambda: backbone.load("cpu"),
            lambda: backbone.text_tokenizer,
            backbone.linear_layers,
        ):
            with pytest.raises(UserError, match="nobody/no-such-model") as caught:
                step()
            assert "\n" not in str(caught.value)

    def test_describing_a_model_needs_no_torch(self, llama):
        code = (
            "import sys; from taskvec.models.causal import Causal; "
            f"b = Causal(model={str(llama)!r}, tokenizer={MINI!r}, max_length=32); "
            "b.check(), b.identity(), b.preprocessing(), b.weight_bytes(), b.linear_layers(); "
            "assert not {'torch', 'transformers'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_and_say_only_what_differs(path):
    stated = OmegaConf.to_container(OmegaConf.load(path))
    schema = lookup(
        "backbone", re.fullmatch(r"/schema/backbone/(\w+)@_here_", stated.pop("defaults")[0])[1]
    ).schema
    backbone = schema(**stated)
    assert "\n" not in backbone.model
    assert not {key for key, value in stated.items() if value == schema.model_fields[key].default}
    assert len(path.read_text().splitlines()[0]) > 10
