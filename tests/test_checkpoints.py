"""Checkpoints on disk: every format read, adapters against peft, weights written shard by shard and resumed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers
import world_text
from safetensors.torch import load_file, save_file

from taskvec.checkpoints import beside, files, names, reading, writing
from taskvec.errors import UserError
from taskvec.models.sources import Source
from taskvec.vectors import TaskVector

IDS = torch.tensor([[1, 5, 9, 3, 77, 20]])
SMALL = world_text.SIZES | {"vocab_size": 96, "num_key_value_heads": 2}
FAMILIES = {
    "llama": ("LlamaForCausalLM", SMALL | {"tie_word_embeddings": False}),
    "qwen2": ("Qwen2ForCausalLM", SMALL | {"tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", world_text.GPT2 | {"vocab_size": 96}),
}


def model(family: str, seed: int = 0) -> torch.nn.Module:
    """Return a tiny random model."""
    torch.manual_seed(seed)
    name, sizes = FAMILIES[family]
    config = transformers.AutoConfig.for_model(family, **sizes)
    network = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A model of each family, saved."""
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        model(family).save_pretrained(root / family)
    return root


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(IDS).logits


# Reading


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_in_one_file_or_in_shards_is_the_same_tensors(family, folders, tmp_path):
    network = model(family)
    network.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole = reading.open_checkpoint(str(folders / family))
    cut = reading.open_checkpoint(str(tmp_path / "shards"))
    assert whole.kind == cut.kind == "transformers"
    assert set(whole.tensors) == set(cut.tensors)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, cut.tensors[name])


def test_tensors_stay_in_the_file(folders):
    found = reading.open_checkpoint(str(folders / "llama"))
    again = reading.open_checkpoint(str(folders / "llama"))
    name = "model.embed_tokens.weight"
    assert torch.equal(found.tensors[name], again.tensors[name])
    with Path("/proc/self/maps").open() as maps:
        assert any("llama/model.safetensors" in line for line in maps)


def test_pickles_are_read_as_tensors_and_run_nothing(tmp_path):
    network = model("llama")
    folder = tmp_path / "pickled"
    folder.mkdir()
    network.config.save_pretrained(folder)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    found = reading.open_checkpoint(str(folder))
    assert torch.equal(found.tensors["lm_head.weight"], network.lm_head.weight)

    torch.save({"state_dict": {"module.a": torch.ones(2)}}, tmp_path / "trained.pt")
    assert list(reading.open_checkpoint(str(tmp_path / "trained.pt")).tensors) == ["a"]

    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": Runs()}, file)
    with pytest.raises(UserError, match="more than tensors"):
        reading.open_checkpoint(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd"])
def test_an_index_that_leads_out_of_its_folder_is_refused(place, folders, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": place}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside"):
        reading.open_any(str(tmp_path))


def test_what_is_no_checkpoint_is_refused_in_one_line(folders, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for index, said in [({}, "malformed"), ({"weight_map": {"a": "b.safetensors"}}, "has no b")]:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=said):
            reading.open_any(str(tmp_path))
    for name, said in [
        ("nowhere/at/all", "no folder"),
        ("README", "neither"),
        (str(tmp_path / "x"), "no folder"),
    ]:
        with pytest.raises(UserError, match=said):
            reading.open_any(name)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError):
        reading.open_any(str(tmp_path))


def test_a_vector_under_the_names_of_the_checkpoint(folders):
    for family in FAMILIES:
        checkpoint = reading.open_checkpoint(str(folders / family))
        ours = names.canonical(checkpoint)
        keep = [name for name in ours if "c_attn.k" not in name]
        vector = TaskVector({name: torch.randn(ours.like[name].shape) for name in keep})
        stored = names.stored_vector(vector, checkpoint, "it")
        for name in stored:
            assert stored[name].shape == checkpoint.tensors[name].shape
        if family == "gpt2":
            packed = stored["transformer.h.0.attn.c_attn.weight"]
            assert torch.equal(packed[:, :32].T, vector["transformer.h.0.attn.c_attn.q.weight"])
            assert not packed[:, 32:64].any()
        else:
            assert stored is vector
    with pytest.raises(UserError, match="no weight"):
        names.stored_vector(TaskVector({"other": torch.ones(2)}), checkpoint, "it")
    with pytest.raises(UserError, match="shape"):
        wrong = TaskVector({"transformer.ln_f.weight": torch.ones(2)})
        names.stored_vector(wrong, checkpoint, "it")


def test_an_open_clip_folder(tmp_path):
    from taskvec.models.clip.vit import from_open_clip

    checkpoint = reading.open_checkpoint("pkg://mini_clip_s")
    assert checkpoint.kind == "open_clip"
    ours = names.canonical(checkpoint)
    expected = from_open_clip(checkpoint.tensors)
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    vector = TaskVector(
        {"blocks.0.attn.q.weight": torch.ones(ours["blocks.0.attn.q.weight"].shape)}
    )
    vector.save(tmp_path / "a.safetensors")
    opened = reading.open_any(str(tmp_path / "a.safetensors"))
    assert isinstance(opened, reading.VectorFile)
    (name,) = names.stored_vector(opened.vector, checkpoint, "it")
    assert name == "visual.transformer.resblocks.0.attn.in_proj_weight"


# Adapters

LINEAR = ["q_proj", "down_proj"]
ADAPTERS = {
    "plain": ("llama", {"target_modules": LINEAR}),
    "rslora": ("llama", {"target_modules": LINEAR, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": LINEAR,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 5},
            "alpha_pattern": {"model.layers.0.self_attn.q_proj": 3},
        },
    ),
    "saved": ("llama", {"target_modules": LINEAR, "modules_to_save": ["lm_head", "norm"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "v_proj"]}),
    "dora": ("llama", {"target_modules": LINEAR, "use_dora": True}),
    "bias": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
    "biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "conv1d dora": (
        "gpt2",
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    ),
}


def adapted(family: str, folder: Path, seed: int = 0, **settings):
    """Return a model with a random adapter on it, which is saved."""
    import peft

    base = model(family)
    base.name_or_path = str(folder)
    found = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, **settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    found.save_pretrained(folder)
    return found.eval()


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_what_peft_computes(kind, folders, tmp_path):
    family, settings = ADAPTERS[kind]
    theirs = logits(adapted(family, tmp_path / "adapter", **settings))
    adapter = reading.open_any(str(tmp_path / "adapter"))
    base = reading.open_checkpoint(str(folders / family))
    vector = adapter.vector(base.tensors)
    ours = model(family)
    before = logits(ours)
    ours.load_state_dict(vector.apply_to(base.tensors), strict=False)
    assert (logits(ours) - theirs).abs().max() < 1e-6
    assert (before - theirs).abs().max() > 1e-3


def test_adapters_that_are_no_delta_are_refused_by_name(folders, tmp_path):
    adapted("llama", tmp_path, target_modules=LINEAR)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    for changes, said in [
        ({"peft_type": "IA3"}, "covered is LORA"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model"),
        ({"lora_alpha": "a"}, "lora_alpha"),
        ({"alpha_pattern": {"(": 3}}, "pattern"),
    ]:
        (tmp_path / "adapter_config.json").write_text(json.dumps(written | changes))
        with pytest.raises(UserError, match=said):
            reading.open_any(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps(written))
    adapter = reading.open_any(str(tmp_path))
    other = reading.open_checkpoint(str(folders / "gpt2"))
    with pytest.raises(UserError, match="does not have"):
        adapter.vector(other.tensors)


# Writing


def test_what_is_written_loads_and_resumes(folders, tmp_path):
    source = reading.open_checkpoint(str(folders / "llama"))
    weights = writing.Weights.of(source.tensors)
    out = tmp_path / "deep" / "out"
    seen: list[str] = []

    def until(count: int):
        def pieces(name):
            if len(seen) == count:
                raise KeyboardInterrupt
            seen.append(name)
            return weights.pieces(name)

        return writing.Weights(weights.shapes, pieces)

    how = {"limit": 20_000, "identity": "a"}
    more = beside.beside_of(source)
    with pytest.raises(KeyboardInterrupt):
        writing.write_folder(out, until(12), more, **how)
    assert not out.exists()
    begun = len(seen)
    kept: list[int] = []
    writing.write_folder(out, until(10**6), more, finished=kept.append, **how)
    assert kept
    assert len(seen) - begun < len(weights.shapes)
    ours = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(ours), logits(model("llama")))
    left = {path.name for path in out.iterdir()}
    assert not left & {"lock", "identity.json"}
    assert not (tmp_path / "deep" / "out.partial").exists()
    with pytest.raises(UserError, match="exists already"):
        writing.write_folder(out, weights, more, **how)


def test_unfinished_work_of_another_kind_is_not_continued(folders, tmp_path):
    source = reading.open_checkpoint(str(folders / "llama"))
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "identity.json").write_text("other")
    (partial / "model.safetensors").write_bytes(b"wrong")
    writing.write_folder(tmp_path / "out", writing.Weights.of(source.tensors), {}, identity="a")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], source.tensors["lm_head.weight"])


def test_a_tokenizer_is_copied_byte_for_byte(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    contents = {
        "tokenizer.json": b'{"a": 1}\r\n',
        "chat_template.jinja": b"{{ x }}\n",
        "additional_chat_templates/tool.jinja": b"{{ y }}",
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "run.py").write_text("")
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    found = beside.tokenizer_files(Source(str(folder)))
    assert {name: path.read_bytes() for name, path in found.items()} == contents
    assert files.metadata_of(folder / "model.safetensors") == {}
