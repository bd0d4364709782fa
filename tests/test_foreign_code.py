"""Code that comes with a model never runs unasked, whatever is answered on standard input, and what is read counts."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from taskvec.data.tasks import ASSETS
from taskvec.errors import UserError
from taskvec.models.causal import Causal
from taskvec.models.clip.backbone import Clip
from taskvec.models.sources import TOKENIZER

TOKENS = ASSETS / "mini_lm_tokenizer"
SIZES = {"vocab_size": 6144, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = SIZES | {"intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 140}
VISION = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {
    "context_length": 16,
    "vocab_size": 6144,
    "width": 16,
    "heads": 2,
    "layers": 1,
    "hf_tokenizer_name": "own",
}
PAYLOAD = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast, LlamaConfig, LlamaForCausalLM, LlamaModel
Path({marker!r}).write_text("ran")
class Tokenizer(PreTrainedTokenizerFast): pass
class Config(LlamaConfig): model_type = "llama"
class Model(LlamaForCausalLM): config_class = Config
"""
PROMPT = (["good", "bad"], ["a {}"])


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A file that the payloads write; whoever asks is answered with yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    return tmp_path / "marker"


def copy_tokenizer(folder: Path) -> None:
    for name in TOKENIZER:
        if (TOKENS / name).is_file():
            shutil.copy(TOKENS / name, folder)


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


@pytest.fixture
def llama(tmp_path) -> Path:
    folder = tmp_path / "llama"
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA)).save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


@pytest.fixture
def clip(tmp_path) -> Path:
    """A CLIP folder in open_clip's format with a tokenizer of its own."""
    folder = tmp_path / "clip"
    folder.mkdir()
    model_cfg = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    model = open_clip.CLIP(**model_cfg)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS
    )
    preprocess_cfg = {"mean": [0.5] * 3, "std": [0.5] * 3}
    edit(folder / DESCRIPTION, model_cfg=model_cfg, preprocess_cfg=preprocess_cfg)
    copy_tokenizer(folder)
    # Transformers reads the tokenizer's class here
    edit(folder / "config.json", model_type="llama")
    return folder


WEIGHTS, DESCRIPTION = "open_clip_model.safetensors", "open_clip_config.json"


def text_cfg(folder: Path, **changes) -> None:
    content = json.loads((folder / DESCRIPTION).read_text())
    content["model_cfg"]["text_cfg"] |= changes
    (folder / DESCRIPTION).write_text(json.dumps(content))


def payload(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(PAYLOAD.format(marker=str(marker)))


def tokenizer_code(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    )


def old_tokenizer_code(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        auto_map=["evil.Tokenizer", "evil.Tokenizer"],
        tokenizer_class="Tokenizer",
    )


def model_code(folder: Path) -> None:
    edit(
        folder / "config.json",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )


def unknown_model_code(folder: Path) -> None:
    model_code(folder)
    edit(folder / "config.json", model_type="evil")


def code_elsewhere(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoConfig": "nobody/evil--evil.Config"})


def trusting_settings(folder: Path) -> None:
    tokenizer_code(folder)
    text_cfg(folder, tokenizer_kwargs={"trust_remote_code": True})


def local_text_tower(folder: Path) -> None:
    tower = folder / "tower"
    tower.mkdir()
    shutil.copy(folder / "evil.py", tower)
    unknown_model_code(tower)
    text_cfg(folder, hf_model_name=str(tower))


LANGUAGE = [tokenizer_code, old_tokenizer_code, model_code, unknown_model_code, code_elsewhere]
PICTURES = [tokenizer_code, old_tokenizer_code, model_code, trusting_settings, local_text_tower]


def refused(step: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        step()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("hostile", LANGUAGE)
def test_language_models_run_no_code(llama, marker, hostile):
    payload(llama, marker)
    hostile(llama)
    backbone = Causal(model=str(llama))
    for step in (backbone.check, lambda: backbone.text_tokenizer, lambda: backbone.load("cpu")):
        assert "evil" in refused(step)
    assert not marker.exists()


def test_a_tokenizer_elsewhere_runs_no_code(llama, marker, tmp_path):
    place = tmp_path / "tokenizer"
    place.mkdir()
    copy_tokenizer(place)
    payload(place, marker)
    tokenizer_code(place)
    backbone = Causal(model=str(llama), tokenizer=str(place))
    said = refused(backbone.check)
    assert said.startswith("backbone.tokenizer: ")
    assert "backbone.trust_remote_code=true" in said
    refused(lambda: backbone.tokenize([("", "a", "")]))
    assert not marker.exists()


@pytest.mark.parametrize("hostile", PICTURES)
def test_clip_folders_run_no_code(clip, marker, hostile):
    payload(clip, marker)
    hostile(clip)
    backbone = Clip(architecture=str(clip), mean=(0.5,) * 3, std=(0.5,) * 3)
    refused(backbone.check)
    refused(lambda: backbone.heads({"task": PROMPT}))
    assert not marker.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"trust_remote_code": True},
        {"bpe_path": "/etc/passwd"},
        {"reduction_mask": "random"},
        {"clean": "other"},
    ],
)
def test_settings_of_a_clip_tokenizer_are_an_allow_list(clip, settings):
    text_cfg(clip, tokenizer_kwargs=settings)
    assert f"tokenizer_kwargs: {next(iter(settings))}" in refused(
        Clip(architecture=str(clip)).check
    )


def test_consent_runs_the_code_and_counts_it(llama, marker):
    payload(llama, marker)
    tokenizer_code(llama)
    (llama / "unread.txt").write_text("beside")
    backbone = Causal(model=str(llama), trust_remote_code=True)
    backbone.check()
    before = backbone.identity()
    assert before["trust_remote_code"] is True
    plain = Causal(model=str(llama), tokenizer="pkg://mini_lm_tokenizer")
    text = [("", "a text", "")]
    assert torch.equal(backbone.tokenize(text), plain.tokenize(text))
    assert marker.exists()
    with (llama / "evil.py").open("a") as file:
        file.write("# changed")
    assert backbone.identity() != before


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "training_args.bin"])
def test_pickles_are_not_read(llama, clip, marker, name):
    for folder in (llama, clip):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    Causal(model=str(llama)).load("cpu")
    Clip(architecture=str(clip), mean=(0.5,) * 3, std=(0.5,) * 3).heads({"task": PROMPT})
    torch.save({"state_dict": {"bomb": Bomb(marker)}}, clip / "weights.pt")
    for weights in (clip / "weights.pt", clip / name):
        backbone = Clip(architecture="ViT-B-32", checkpoint=str(weights))
        refused(lambda backbone=backbone: backbone.heads({"task": PROMPT}))
        refused(lambda backbone=backbone: backbone.load("cpu"))
    (llama / "model.safetensors").unlink()
    refused(Causal(model=str(llama)).check)
    refused(lambda: Causal(model=str(llama)).load("cpu"))
    assert not marker.exists()


class TestIdentity:
    """What is read is what is hashed."""

    @pytest.mark.parametrize("inside", ["model-{}.safetensors", "parts/model-{}.safetensors"])
    def test_shards_count_wherever_they_are(self, llama, inside):
        state = load_file(llama / "model.safetensors")
        (llama / "model.safetensors").unlink()
        (llama / "parts").mkdir()
        halves = [dict(list(state.items())[half::2]) for half in (0, 1)]
        for half, tensors in enumerate(halves):
            save_file(tensors, llama / inside.format(half), {"format": "pt"})
        places = {
            name: inside.format(half) for half, tensors in enumerate(halves) for name in tensors
        }
        edit(llama / "model.safetensors.index.json", metadata={}, weight_map=places)
        backbone = Causal(model=str(llama))
        backbone.check()
        before = backbone.identity()
        assert torch.equal(
            backbone.load("cpu").parameters["model.norm.weight"], state["model.norm.weight"]
        )
        name = next(iter(halves[1]))
        save_file(
            halves[1] | {name: halves[1][name] + 1}, llama / inside.format(1), {"format": "pt"}
        )
        assert Causal(model=str(llama)).identity() != before

    @pytest.mark.parametrize(
        "outside", ["../other/model.safetensors", "{root}/other/model.safetensors"]
    )
    def test_shards_outside_are_refused(self, llama, tmp_path, outside):
        (tmp_path / "other").mkdir()
        shutil.move(llama / "model.safetensors", tmp_path / "other")
        state = load_file(tmp_path / "other" / "model.safetensors")
        index = dict.fromkeys(state, outside.format(root=tmp_path))
        edit(llama / "model.safetensors.index.json", metadata={}, weight_map=index)
        for step in (Causal(model=str(llama)).check, Causal(model=str(llama)).identity):
            assert "lies outside" in refused(step)

    def test_a_clip_folders_own_tokenizer_counts(self, clip):
        backbone = Clip(architecture=str(clip), mean=(0.5,) * 3, std=(0.5,) * 3)
        before, head = backbone.identity(), backbone.heads({"task": PROMPT})["task"]
        content = json.loads((clip / "tokenizer.json").read_text())
        ids = content["model"]["vocab"]
        words = [word for word in ids if word.isalpha()]
        content["model"]["vocab"] = ids | dict(
            zip(words, [ids[word] for word in reversed(words)], strict=True)
        )
        (clip / "tokenizer.json").write_text(json.dumps(content))
        again = Clip(architecture=str(clip), mean=(0.5,) * 3, std=(0.5,) * 3)
        assert not torch.equal(again.heads({"task": PROMPT})["task"], head)
        assert again.identity() != before

    def test_an_adapter_beside_a_full_model_has_no_effect(self, llama, tmp_path):
        edit(
            llama / "adapter_config.json",
            peft_type="LORA",
            base_model_name_or_path=str(tmp_path),
            r=2,
        )
        save_file(
            {"base_model.model.model.norm.weight": torch.zeros(16)},
            llama / "adapter_model.safetensors",
        )
        backbone = Causal(model=str(llama))
        backbone.check()
        state = load_file(llama / "model.safetensors")
        parameters = backbone.load("cpu").parameters
        assert all(
            torch.equal(parameters[name], tensor)
            for name, tensor in state.items()
            if name in parameters
        )

    def test_another_version_of_the_tokenizer_is_not_read(self, llama):
        backbone = Causal(model=str(llama))
        ids = backbone.tokenize([("", "a short text", "")]).tolist()
        content = json.loads((llama / "tokenizer.json").read_text())
        content["model"] |= {"merges": []}
        (llama / "tokenizer.4.0.0.json").write_text(json.dumps(content))
        edit(llama / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])
        try:
            again = Causal(model=str(llama)).tokenize([("", "a short text", "")]).tolist()
        except UserError:
            return
        assert again == ids

    def test_a_branch_that_moved_is_another_model(self, llama, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        repository = tmp_path / "hub" / "models--me--tiny"
        (repository / "refs").mkdir(parents=True)
        for letter in "ab":
            shutil.copytree(llama, repository / "snapshots" / (40 * letter))
            state = load_file(llama / "model.safetensors")
            state["model.norm.weight"] += ord(letter)
            save_file(
                state,
                repository / "snapshots" / (40 * letter) / "model.safetensors",
                {"format": "pt"},
            )
        seen = []
        for letter in "ab":
            (repository / "refs" / "main").write_text(40 * letter)
            backbone = Causal(model="me/tiny", tokenizer="me/tiny")
            backbone.check()
            seen.append((backbone.identity(), backbone.preprocessing()))
        assert seen[0][0] != seen[1][0]
        assert seen[0][1] != seen[1][1]
        # Moved on again after the plan was made
        (repository / "refs" / "main").write_text(40 * "a")
        loaded = backbone.load("cpu").parameters["model.norm.weight"]
        assert loaded[0] == 1 + ord("b")


class TestFinite:
    """Weights that are not finite are refused by name, whoever loads them."""

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize(
        "name", ["visual.class_embedding", "token_embedding.weight", "logit_scale"]
    )
    def test_clip(self, clip, name, value):
        state = load_file(clip / WEIGHTS)
        state[name].view(-1)[-1] = value
        save_file(state, clip / WEIGHTS)
        backbone = Clip(architecture=str(clip), mean=(0.5,) * 3, std=(0.5,) * 3)
        seen = name.startswith("visual.")
        said = refused(lambda: backbone.load("cpu") if seen else backbone.heads({"task": PROMPT}))
        assert f"{name.removeprefix('visual.')} is not finite" in said

    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_language_models(self, llama, value):
        state = load_file(llama / "model.safetensors")
        name = random.choice(sorted(state))
        state[name].view(-1)[0] = value
        save_file(state, llama / "model.safetensors", {"format": "pt"})
        assert f"{name} is not finite" in refused(lambda: Causal(model=str(llama)).load("cpu"))
