"""Published checkpoints take the place of fine-tuning: a cache of the hub with tiny models, in all forms of names."""

from __future__ import annotations

import json
import runpy
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub.constants
import open_clip
import peft
import pytest
import torch
import transformers
import world
import world_text
from safetensors.torch import load_file, save_file
from test_checkpoints_guide import CODE
from torch import Tensor, nn

import taskvec
from taskvec.cli import main
from taskvec.data import remote
from taskvec.graph.plan import Plan
from taskvec.graph.run import RunConfig
from taskvec.graph.workspace import silent_workspace
from taskvec.papers import tables
from taskvec.runner import compose

A, B = "a" * 40, "b" * 40
CALLED = {"stripes": "stripes-v1", "corners": "corners", "colours": "colours"}
FORMS = ("prefixed", "bare", "whole", "pickle")
RUN = ["backbone=tiny", "suite=tiny", "finetune=tiny_hub", "protocol.grid=[0.3,0.6]"]


class Hub:
    """A cache of the hub's, as it lies after a download."""

    def __init__(self, root: Path):
        self.root = root

    def put(self, name: str, commit: str = A) -> Path:
        """Let a repository's branch point to a commit, and return that commit's folder."""
        repository = self.root / f"models--{name.replace('/', '--')}"
        folder = repository / "snapshots" / commit
        folder.mkdir(parents=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    remote.reachable.cache_clear()
    return Hub(tmp_path / "hub")


@pytest.fixture
def preset(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of the tiny world's checkpoints, as a user would write one."""
    folder = tmp_path / "include" / "finetune"
    folder.mkdir(parents=True)
    write_preset(folder / "tiny_hub.yaml", f"{tiny}/clip", "somebody/tiny-clip_TASK", CALLED)
    monkeypatch.setenv("TASKVEC_INCLUDE", f"{tiny}:{folder.parent}")


def write_preset(path: Path, base: str, model: str, called: Mapping[str, str]) -> None:
    lines = ["defaults: [/schema/finetune/stored@_here_, _self_]"]
    lines += [f"published: [{{base: {base}, model: {model}, megabytes: 3}}]"]
    lines += [f"published_tasks: {json.dumps(dict(called))}"]
    path.write_text("\n".join(lines))


# CLIP: towers of transformers, filled from open_clip's weights by hand


def described(**changes) -> transformers.CLIPVisionConfig:
    sizes = world.MODEL["vision_cfg"]
    settings = {
        "hidden_size": sizes["width"],
        "intermediate_size": 4 * sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["width"] // sizes["head_width"],
        "image_size": sizes["image_size"],
        "patch_size": sizes["patch_size"],
        "projection_dim": world.MODEL["embed_dim"],
        "hidden_act": "gelu",
    }
    return transformers.CLIPVisionConfig(**settings | changes)


def tower(tiny: Path) -> transformers.CLIPVisionModelWithProjection:
    """The tiny CLIP's image tower as transformers has it."""
    stored = load_file(tiny / "clip/open_clip_model.safetensors")
    model = transformers.CLIPVisionModelWithProjection(described())
    body = model.vision_model
    fill(body.embeddings.class_embedding, stored["visual.class_embedding"])
    fill(body.embeddings.position_embedding.weight, stored["visual.positional_embedding"])
    fill(body.embeddings.patch_embedding.weight, stored["visual.conv1.weight"])
    fill(model.visual_projection.weight, stored["visual.proj"].T)
    for ours, theirs in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        fill_layer(body.get_submodule(ours), stored, f"visual.{theirs}")
    for number, layer in enumerate(body.encoder.layers):
        path = f"visual.transformer.resblocks.{number}"
        attention = layer.self_attn
        for kind in ("weight", "bias"):
            thirds = stored[f"{path}.attn.in_proj_{kind}"].chunk(3)
            for name, third in zip("qkv", thirds, strict=True):
                fill(getattr(attention.get_submodule(f"{name}_proj"), kind), third)
        fill_layer(attention.out_proj, stored, f"{path}.attn.out_proj")
        fill_layer(layer.layer_norm1, stored, f"{path}.ln_1")
        fill_layer(layer.layer_norm2, stored, f"{path}.ln_2")
        fill_layer(layer.mlp.fc1, stored, f"{path}.mlp.c_fc")
        fill_layer(layer.mlp.fc2, stored, f"{path}.mlp.c_proj")
    return model.eval()


def fill(parameter: nn.Parameter, tensor: Tensor) -> None:
    parameter.data.copy_(tensor)


def fill_layer(layer: nn.Module, stored: Mapping[str, Tensor], path: str) -> None:
    fill(layer.weight, stored[f"{path}.weight"])
    fill(layer.bias, stored[f"{path}.bias"])


def tune(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Add noise to all of a tower but its projection, and return it by the tower's names without prefix."""
    generator = torch.Generator().manual_seed(seed)
    noise = {}
    for name, parameter in model.named_parameters():
        if name.startswith("visual_projection"):
            continue
        delta = 0.02 * torch.randn(parameter.shape, generator=generator)
        before = parameter.data.clone()
        parameter.data.add_(delta)
        noise[name.removeprefix("vision_model.")] = parameter.data - before
    return noise


def save_tower(model: nn.Module, folder: Path, form: str, **changes) -> None:
    """Write a tower as old and new versions of transformers, or as a whole model, would."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    bare = {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
    projection = bare.pop("visual_projection.weight")
    prefixed = {f"vision_model.{name}": tensor for name, tensor in bare.items()}
    prefixed["vision_model.embeddings.position_ids"] = torch.arange(5)
    config = described(**changes).to_dict()
    if form == "bare":
        save_file(bare, folder / "model.safetensors")
    elif form == "prefixed":
        save_file(prefixed, folder / "model.safetensors")
    elif form == "whole":
        texts = {
            "text_model.final_layer_norm.weight": torch.ones(16),
            "logit_scale": torch.ones(()),
        }
        whole = prefixed | texts | {"visual_projection.weight": projection}
        save_file(whole, folder / "model.safetensors")
        config = {"model_type": "clip", "vision_config": config}
    else:
        torch.save(prefixed, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))


def resolved(*words: str) -> RunConfig:
    compose.register_all()
    return compose.resolve(compose.compose(list(words)))


def vector_of(config: RunConfig, task: str) -> taskvec.TaskVector:
    plan = Plan(config)
    node = plan.vector(plan.chain.tuned((task,), "target"))
    return node.value(silent_workspace(config.root, config.compute))


def ours(name: str) -> str:
    """The canonical name of a tower's parameter, written down by hand."""
    words = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.patch_embedding": "patch_embed",
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
        "encoder.layers": "blocks",
        "self_attn.out_proj": "attn.out",
        "self_attn": "attn",
        "_proj": "",
        "layer_norm": "ln_",
        "mlp.fc1": "mlp.fc",
        "mlp.fc2": "mlp.proj",
    }
    for theirs, own in words.items():
        name = name.replace(theirs, own)
    return name


@pytest.mark.parametrize("form", FORMS)
def test_the_vector_is_what_was_added(form, hub, preset, tiny, tmp_path):
    model = tower(tiny)
    noise = tune(model, seed=FORMS.index(form))
    save_tower(model, hub.put("somebody/tiny-clip_stripes-v1"), form)
    config = resolved(*RUN, "suite.tasks=[stripes]", f"outputs={tmp_path}/out")
    vector = vector_of(config, "stripes")
    changed = {ours(name): delta for name, delta in noise.items()}
    assert set(vector) - {"projection.weight"} == set(changed)
    assert ("projection.weight" in vector) == (form == "whole")
    for name, delta in changed.items():
        assert (vector[name] - delta).abs().max() <= 1e-7, name
    if form == "whole":
        assert vector["projection.weight"].abs().max() == 0
    base = config.backbone.load("cpu")
    pictures = torch.randint(256, (3, 3, world.SIZE, world.SIZE), dtype=torch.uint8)
    normalised = (pictures / 255 - 0.5) / 0.25
    with torch.no_grad():
        features = base.features(vector.apply_to(base.parameters), pictures)
        theirs = model(normalised).image_embeds
    theirs = theirs / theirs.norm(dim=-1, keepdim=True)
    assert torch.allclose(features / features.norm(dim=-1, keepdim=True), theirs, atol=1e-5)


def test_one_command_merges_published_models_and_counts_their_commits(
    hub, preset, tiny, tmp_path, capsys
):
    for number, called in enumerate(CALLED.values()):
        model = tower(tiny)
        tune(model, number)
        save_tower(model, hub.put(f"somebody/tiny-clip_{called}"), FORMS[number])
    words = [*RUN, "merge=ties", f"outputs={tmp_path}/out"]
    assert main(words) == 0, capsys.readouterr().err
    rows = {record["row"]: record for record in taskvec.runs(tmp_path / "out")}
    assert {"zero_shot", "individual", "merged"} <= set(rows)
    before = Plan(resolved(*words))
    assert before.fingerprint == Plan(resolved(*words)).fingerprint
    tune(model, 9)
    save_tower(model, hub.put("somebody/tiny-clip_colours", B), "bare")
    after = Plan(resolved(*words))
    assert after.fingerprint != before.fingerprint
    same = {node.fingerprint for node in before.nodes} & {node.fingerprint for node in after.nodes}
    kept = [node.label for node in after.nodes if node.fingerprint in same]
    assert "vector stripes" in kept and "vector colours" not in kept
    assert main(["prefetch", *words, "--list"]) == 0
    listed = capsys.readouterr().out
    assert "here        checkpoint somebody/tiny-clip_stripes-v1 (about 3 MB)" in listed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("nothing", "not in the hub's cache"),
        ("activation", "has activation 'quick_gelu', the base has 'gelu'"),
        ("width", "has mlp_width 64, the base has 128"),
        ("lacks", "lacks blocks.0.mlp.fc.bias, which the base has"),
        ("module", "docs/checkpoints.md, Pickled modules"),
        ("base", "were tuned from google/flan-t5-base, and the backbone is"),
        ("task", "no checkpoint of stripes is published here (of corners)"),
    ],
)
def test_what_is_no_checkpoint_of_the_base_is_one_line(
    change, said, hub, preset, tiny, tmp_path, capsys
):
    written = tmp_path / "include/finetune/tiny_hub.yaml"
    if change == "base":
        write_preset(written, "google/flan-t5-base", "somebody/TASK", CALLED)
    elif change == "task":
        write_preset(written, f"{tiny}/clip", "somebody/TASK", {"corners": "corners"})
    elif change != "nothing":
        folder = hub.put("somebody/tiny-clip_stripes-v1")
        changes = {"activation": {"hidden_act": "quick_gelu"}, "width": {"intermediate_size": 64}}
        save_tower(tower(tiny), folder, "prefixed", **changes.get(change, {}))
        damage(folder / "model.safetensors", change)
    words = [*RUN, "suite.tasks=[stripes]", f"outputs={tmp_path}/out"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    if change == "nothing":
        assert "checkpoint somebody/tiny-clip_stripes-v1 (about 3 MB)" in error
        assert "`taskvec prefetch backbone=tiny suite=tiny finetune=tiny_hub`" in error


def damage(path: Path, change: str) -> None:
    if change == "lacks":
        state = load_file(path)
        del state["vision_model.encoder.layers.0.mlp.fc1.bias"]
        save_file(state, path)
    elif change == "module":
        path.unlink()
        torch.save(nn.Linear(2, 2), path.with_name("pytorch_model.bin"))


def test_the_shipped_presets_name_what_is_published(hub, tmp_path, capsys):
    """Names as the fact sheet has them (spec suites 4); everything missing is one line before work starts."""
    words = ["finetune=fusionbench", "backbone=clip_vit_b32", f"outputs={tmp_path}"]
    assert main([*words, "suite=vision8"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "checkpoint tanganke/clip-vit-base-patch32_stanford-cars (about 350 MB)" in error
    command = "`taskvec prefetch backbone=clip_vit_b32 suite=vision8 finetune=fusionbench`"
    assert command in error
    for suite, count in {"vision14": 14, "vision20": 20}.items():
        config = resolved(*words, f"suite={suite}")
        assert len(config.finetune.remotes(config.suite.tasks, config.backbone)) == count
    large = resolved("finetune=fusionbench", "backbone=clip_vit_l14", "suite=vision20")
    named = [one.source.name for one in large.finetune.remotes(large.suite.tasks, large.backbone)]
    assert "tanganke/clip-vit-large-patch14_oxford-iiit-pet" in named
    assert main([*words, "suite=vision20_tall"]) == 2
    assert "no checkpoint of emnist_digits is published here" in capsys.readouterr().err
    other = [*words, "suite=vision8", "backbone.pretrained=laion2b_s34b_b79k"]
    assert main(other) == 2
    assert "its checkpoints were tuned from timm/vit_base" in capsys.readouterr().err
    for name, options in {
        "merging": {"fusionbench"},
        "glue": {"fusionbench", "fusionbench_lora"},
    }.items():
        jobs = [
            dict(word.split("=", 1) for word in job)
            for job in tables.jobs_of(f"fusionbench/{name}")
        ]
        assert {job["finetune"] for job in jobs} == options


# Language models


@pytest.mark.parametrize("adapter", [False, True])
def test_a_published_t5_is_the_vector_that_was_added(adapter, hub, tmp_path, monkeypatch):
    texts = world_text.build(tmp_path / "texts")
    (texts / "finetune").mkdir()
    place = texts / "models" / "tiny_t5"
    called = {"sst2": "sst2"}
    write_preset(texts / "finetune" / "tiny_hub.yaml", str(place), "somebody/t5_glue-TASK", called)
    monkeypatch.setenv("TASKVEC_INCLUDE", str(texts))
    torch.manual_seed(1)
    network = transformers.T5ForConditionalGeneration.from_pretrained(place)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    folder = hub.put("somebody/t5_glue-sst2")
    if adapter:
        settings = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q", "v"])
        network = peft.get_peft_model(network, settings)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    if adapter:
        network = network.merge_and_unload()
    words = ["backbone=tiny_t5", "suite=glue8", "suite.tasks=[sst2]", "finetune=tiny_hub"]
    vector = vector_of(resolved(*words, f"outputs={tmp_path}/out"), "sst2")
    assert bool(vector.factors) == adapter
    for name, parameter in network.named_parameters():
        delta = parameter.detach() - before[name]
        found = vector[name] if name in vector else torch.zeros(())
        assert (found - delta).abs().max() <= 1e-6, name


# Pickled modules


def test_a_pickled_module_is_converted_by_the_page(tiny, tmp_path, monkeypatch, capsys):
    """The authors' class is gone when the page's script reads what it left; without it the file is refused."""
    monkeypatch.setenv("TASKVEC_INCLUDE", str(tiny))
    monkeypatch.chdir(tmp_path)
    pickle_as_authors(tiny / "clip", Path("finetuned.pt"))
    (script,) = [text for text in CODE if text.startswith("# convert.py")]
    Path("convert.py").write_text(script)
    words = ["--base", "tiny", "--as", "mine", "--outputs", "out"]
    assert main(["import", "vector", "finetuned.pt", *words]) == 2
    assert "Pickled modules, converts it in isolation" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["convert.py", "finetuned.pt", "mine.safetensors"])
    runpy.run_path("convert.py")
    assert main(["import", "vector", "mine.safetensors", *words]) == 0
    vector = taskvec.load_vector(Path("out/vectors/mine.safetensors"))
    assert "projection.weight" in vector
    for name, delta in vector.items():
        assert (delta - 0.01).abs().max() <= 1e-6, name


def pickle_as_authors(folder: Path, place: Path) -> None:
    """Pickle a whole encoder whose class lives in a module that is there for this moment only."""
    module = types.ModuleType("src")
    module.ImageEncoder = type("ImageEncoder", (nn.Module,), {"__module__": module.__name__})
    encoder = module.ImageEncoder()
    encoder.model = open_clip.create_model(f"local-dir:{folder}")
    for parameter in encoder.parameters():
        parameter.data.add_(0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(encoder, place)
