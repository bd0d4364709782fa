"""Models of others become vectors, and merged models become theirs: checked with open_clip, transformers, peft."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
import world
import world_text
from PIL import Image
from safetensors.torch import load_file, save_file

import taskvec
from taskvec.cli import main
from taskvec.exchange.bases import backbone_of
from taskvec.graph.plan import Plan
from taskvec.graph.store import Store
from taskvec.graph.workspace import silent_workspace
from taskvec.runner.folder import RunFolder
from taskvec.runner.survey import config_of
from taskvec.vectors import TaskVector

FAST = [*world.FAST, "finetune.lr=1e-2", "protocol.grid=[0.3,0.6]"]


@pytest.fixture(scope="module")
def outputs(tiny, tmp_path_factory):
    """An outputs folder with the tiny world's addition run, on images."""
    folder = tmp_path_factory.mktemp("export") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKVEC_INCLUDE", str(tiny))
        assert main([*FAST, f"outputs={folder}"]) == 0
        yield folder


@pytest.fixture(scope="module")
def exported(outputs) -> Path:
    """The merged model of that run as a folder."""
    (run,) = (outputs / "runs").iterdir()
    out = outputs.parent / "merged"
    assert main(["export", str(run), "--out", str(out)]) == 0
    return out


def stored_outcomes(outputs: Path, task: str) -> tuple[list[bool], float]:
    """Return what a run says of each test example of a task at the merged model, and its coefficient."""
    (run,) = (outputs / "runs").iterdir()
    result = RunFolder(run).result()
    (row,) = [row for row in result.rows if row.row == "merged"]
    plan = Plan(config_of(RunFolder(run)).model_copy(update={"outputs": str(outputs)}))
    (cell,) = [n for n in plan.cells.values() if n.fingerprint in row.cells.values()]
    tensors = Store(outputs / "store").read(Store(outputs / "store").folder(cell)).content.tensors
    return tensors[f"correct/{row.alpha}/{task}"].tolist(), row.alpha


def test_open_clip_alone_predicts_what_the_run_did(outputs, exported, tiny):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{exported}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{exported}")
    model.eval()
    for task in world.TASKS:
        rows = datasets_rows(tiny / "data" / task / "test.parquet")
        images = torch.stack([preprocess(image) for image, _ in rows])
        texts = tokenizer([f"a photo of {task} {number}" for number in range(4)])
        with torch.no_grad():
            image = model.encode_image(images, normalize=True)
            text = model.encode_text(texts, normalize=True)
        predicted = (image @ text.T).argmax(dim=1).tolist()
        correct = [guess == label for guess, (_, label) in zip(predicted, rows, strict=True)]
        assert correct == stored_outcomes(outputs, task)[0], task
    text = (exported / "README.md").read_text()
    assert "library_name: open_clip" in text and "outputs=" in text and "| stripes" in text


def datasets_rows(path: Path) -> list[tuple[Image.Image, int]]:
    import datasets

    data = datasets.Dataset.from_parquet(str(path), cache_dir=str(path.parent / "cache"))
    return [(row["image"].convert("RGB"), row["label"]) for row in data]


def test_the_exported_model_comes_back_as_the_same_vector(outputs, exported):
    (run,) = (outputs / "runs").iterdir()
    words = ["--base", "tiny", "--outputs", str(outputs)]
    assert main(["import", "vector", str(exported), "--as", "merged", *words]) == 0
    imported = taskvec.load_vector(outputs / "vectors/merged.safetensors")
    _, alpha = stored_outcomes(outputs, "stripes")
    merged = taskvec.merge([taskvec.load_vector(run, task) for task in world.TASKS])
    assert set(imported) == set(merged)
    for name in merged:
        assert (imported[name] - alpha * merged[name]).abs().max() <= 1e-7, name
    again = taskvec.evaluate(
        imported, backbone="tiny", suite="tiny", overrides=[f"outputs={outputs}"]
    )
    assert again == {task: mean(stored_outcomes(outputs, task)[0]) for task in world.TASKS}


def mean(correct: list[bool]) -> float:
    return sum(correct) / len(correct)


def test_stored_vectors_take_the_place_of_fine_tuning(outputs, tiny):
    """A run on imported vectors is the run that tuned them, from a pickle, a folder and a vector's file."""
    (run,) = (outputs / "runs").iterdir()
    backbone = backbone_of("tiny")
    weights = backbone.load("cpu").parameters
    folder = outputs.parent / "tuned"
    for task in world.TASKS:
        vector = taskvec.load_vector(run, task)
        state = load_file(tiny / "clip/open_clip_model.safetensors")
        state |= to_open_clip(vector.apply_to(weights))
        (folder / task).mkdir(parents=True)
        place = folder / task
        if task == "stripes":
            place = folder / "stripes.pt"
            torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, place)
        elif task == "corners":
            save_file(state, place / "open_clip_model.safetensors")
            config = (tiny / "clip/open_clip_config.json").read_text()
            (place / "open_clip_config.json").write_text(config)
        else:
            place = folder / "vector.safetensors"
            vector.save(place)
        base = str(tiny / "clip") if task == "corners" else "tiny"
        words = ["--base", base, "--as", f"tiny-{task}", "--outputs", str(outputs)]
        assert main(["import", "vector", str(place), *words]) == 0
    words = ["backbone=tiny", "suite=tiny", "protocol.grid=[0.3,0.6]", f"outputs={outputs}"]
    stored = ["finetune=stored", "finetune.name=BACKBONE-TASK"]
    assert main([*words, *stored]) == 0
    rows = taskvec.runs(outputs)
    by_method = {}
    for record in rows:
        key = (record["finetune"], record["row"])
        by_method[key] = {k: v for k, v in record.items() if k.startswith("accuracy")}
    for row in ("zero_shot", "individual", "merged"):
        assert by_method["stored", row] == pytest.approx(by_method["full", row], abs=0.05)


def to_open_clip(weights):
    from taskvec.models.clip.vit import to_open_clip as convert

    return {name: tensor.contiguous() for name, tensor in convert(weights).items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("shape", "has shape"),
        ("lacks", "lacks"),
        ("nan", "is not finite"),
        ("same", "does not differ from its base"),
        ("activation", "has activation 'quick_gelu', the base has 'gelu'"),
        ("base", "other base weights"),
        ("name", "without slashes"),
    ],
)
def test_what_is_no_fine_tuned_version_of_the_base_is_refused(
    change, said, tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("TASKVEC_INCLUDE", str(tiny))
    state = load_file(tiny / "clip/open_clip_model.safetensors")
    config = json.loads((tiny / "clip/open_clip_config.json").read_text())
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    if change == "shape":
        state[name] = state[name][:-1].contiguous()
    elif change == "lacks":
        del state[name]
    elif change == "nan":
        state[name][0, 0] = float("nan")
    elif change != "same":
        state[name] = state[name] + 1
    if change == "activation":
        config["model_cfg"]["quick_gelu"] = True
    place = tmp_path / "tuned"
    place.mkdir()
    save_file(state, place / "open_clip_model.safetensors")
    (place / "open_clip_config.json").write_text(json.dumps(config))
    if change == "base":
        weights = backbone_of("tiny").load("cpu").parameters
        first = next(iter(weights))
        vector = TaskVector({first: torch.ones_like(weights[first])}, {"base_hash": "f" * 64})
        place = tmp_path / "vector.safetensors"
        vector.save(place)
    called = "a/b" if change == "name" else "x"
    words = ["--base", "tiny", "--as", called, "--outputs", str(tmp_path / "out")]
    assert main(["import", "vector", str(place), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out/vectors").exists()


def test_what_no_import_has_is_refused_when_planning(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TASKVEC_INCLUDE", str(tiny))
    words = ["backbone=tiny", "suite=tiny", "finetune=stored", f"outputs={tmp_path}/out"]
    assert main(words) == 2
    assert "no vector 'stripes'" in capsys.readouterr().err
    assert main([*words, "finetune.name=mine"]) == 2
    assert "must hold TASK" in capsys.readouterr().err


# Language models


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return world_text.build(tmp_path_factory.mktemp("texts"))


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_an_adapter_of_peft_evaluates_as_peft_does(name, texts, tmp_path, monkeypatch):
    import peft

    monkeypatch.setenv("TASKVEC_INCLUDE", str(texts))
    torch.manual_seed(4)
    network = transformers.AutoModelForCausalLM.from_pretrained(texts / "models" / name)
    targets = ["q_proj", "down_proj"] if name == "tiny_llama" else ["c_attn", "c_fc"]
    settings = peft.LoraConfig(
        r=3, lora_alpha=12, target_modules=targets, fan_in_fan_out=name == "tiny_gpt2"
    )
    tuned = peft.get_peft_model(network, settings)
    trained(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    words = ["--base", name, "--as", "mine", "--outputs", str(tmp_path / "out")]
    assert main(["import", "vector", str(tmp_path / "adapter"), *words]) == 0
    vector = taskvec.load_vector(tmp_path / "out/vectors/mine.safetensors")
    assert bool(vector.factors) == (name == "tiny_llama")
    backbone = backbone_of(name)
    model = backbone.load("cpu")
    tokens = torch.randint(
        2, world_text.VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(1)
    )
    weights = vector.apply_to(model.parameters)
    words = torch.arange(100, 120)
    with torch.no_grad():
        ours = model.logits(model.features(weights, tokens.int(), words), words, weights)
        theirs = tuned.eval()(tokens).logits[:, -1, words]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert (ours.argmax(1) == theirs.argmax(1)).all()


def trained(network, steps: int = 8) -> None:
    """Train a network with peft and torch alone."""
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=5e-2)
    tokens = torch.randint(
        2, world_text.VOCABULARY, (4, 10), generator=torch.Generator().manual_seed(2)
    )
    for _ in range(steps):
        loss = network(tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_transformers_alone_loads_an_exported_language_model(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("TASKVEC_INCLUDE", str(texts))
    outputs = tmp_path / "out"
    words = ["backbone=tiny_gpt2", "suite=mini_sentiment", *world_text.FAST, f"outputs={outputs}"]
    words += ["suite.tasks=[movies,products]", "compute.precision=fp32"]
    assert main(words) == 0
    (run,) = (outputs / "runs").iterdir()
    assert main(["export", str(run), "--out", str(tmp_path / "merged")]) == 0
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert network.dtype == torch.float32 and len(tokenizer) <= world_text.VOCABULARY
    config = config_of(RunFolder(run)).model_copy(update={"outputs": str(outputs)})
    plan = Plan(config)
    work = silent_workspace(outputs, config.compute)
    (row,) = [row for row in RunFolder(run).result().rows if row.row == "merged"]
    merged = taskvec.merge([taskvec.load_vector(run, task) for task in ("movies", "products")])
    model = plan.base("target").value(work)
    weights = merged.apply_to(model.parameters, row.alpha)
    view = plan.rows("movies", "test", None, "target").value(work)
    inputs = view.take(slice(0, 16))
    with torch.no_grad():
        ours = model.logits(model.features(weights, inputs, view.head), view.head, weights)
        theirs = []
        for ids in inputs:
            own = ids[ids >= 0].long()
            theirs.append(network(own[None]).logits[0, -1, view.head])
    assert torch.allclose(ours, torch.stack(theirs), atol=1e-4)
    words = ["--base", "tiny_gpt2", "--as", "m", "--outputs", str(outputs)]
    assert main(["import", "vector", str(tmp_path / "merged"), *words]) == 0
    again = taskvec.load_vector(outputs / "vectors/m.safetensors")
    for name in merged:
        assert (again[name] - row.alpha * merged[name]).abs().max() <= 1e-7, name
