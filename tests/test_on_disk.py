"""``taskvec merge``: streamed against in memory, adapters, embeddings, what is refused, what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from merge_world import given_for, signed
from safetensors.torch import load_file, save_file
from test_checkpoints import IDS, LINEAR, adapted, logits, model

from taskvec import registry
from taskvec.checkpoints import reading
from taskvec.cli import main
from taskvec.errors import UserError
from taskvec.merge import pieces
from taskvec.merge.in_memory import merge as merge_in_memory
from taskvec.on_disk import plan as planning
from taskvec.on_disk.request import Everywhere, Request, tensor_wise
from taskvec.on_disk.run import carry_out
from taskvec.vectors import TaskVector, weights_hash

COUNT = 3
# Every merge that streams, and options that take other ways through it
STREAMED = {
    "average": {},
    "average weights": {"weights": [1, 2, 0.5]},
    "task_arithmetic": {"weights": [0.3, 0.2, 0.4]},
    "ties": {},
    "ties mergekit": {
        "scope": "tensor",
        "kept": "exact",
        "undecided": "plus",
        "densities": [0.2, 0.5, 0.9],
    },
    "dare": {},
    "dare l1": {"rescale": "l1", "consensus": "elect"},
    "della": {},
    "breadcrumbs": {},
    "magmax": {},
    "sce": {},
    "pcb": {},
    "consensus_ta": {},
    "consensus_ta ties": {"shared": "ties"},
    "model_stock": {},
    "karcher": {},
    "multislerp": {},
    "tsv": {"exclude": ["*embed*"]},
    "iso_c": {},
    "iso_cts": {},
    "cart": {},
    "wudi": {"solver": "closed"},
}


def near(base: torch.nn.Module, seed: int, scale: float = 0.1) -> torch.nn.Module:
    """Return a model near another."""
    torch.manual_seed(seed)
    found = type(base)(base.config).eval()
    found.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale * float(parameter.std()))
    return found


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A base and three models near it: in shards, in one file, and in bfloat16."""
    root = tmp_path_factory.mktemp("places")
    base = model("llama")
    base.save_pretrained(root / "base", max_shard_size="30KB")
    for number in range(COUNT):
        tuned = near(base, number)
        tuned.save_pretrained(root / f"shards{number}", max_shard_size="20KB")
        tuned.save_pretrained(root / f"whole{number}")
        tuned.to(torch.bfloat16).save_pretrained(root / f"half{number}", max_shard_size="20KB")
    base.to(torch.bfloat16).save_pretrained(root / "halfbase")
    return root


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Tensors of thousands of entries are several pieces."""
    monkeypatch.setattr(pieces, "ENTRIES", 512)


def asked(*words: str, **settings) -> Request:
    """Return a request as the command makes it of its words, without Hydra, which takes its time."""
    given = yaml.safe_load("\n".join(word.replace("=", ": ", 1) for word in words))
    kind = given.pop("merge", "task_arithmetic")
    options = {key.removeprefix("merge."): given.pop(key) for key in list(given) if "merge." in key}
    options = {"kind": kind, "seed": given.pop("seed", 0)} | options
    component = registry.lookup("merge", kind).schema.model_validate(options)
    rules = Everywhere(tensor_wise(component), kind)
    given |= {"models": tuple(given["models"]), "out": Path(given["out"])}
    return Request(rules=rules, recipe=str(options), **given, **settings)


def merge(*words: str, **settings) -> dict[str, torch.Tensor]:
    """Run a merge and return what it wrote."""
    request = asked(*words, **settings)
    carry_out(planning.plan_of(request))
    if request.out.is_file():
        return load_file(request.out)
    return written(request.out)


def written(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def listed(root: Path, name: str, count: int = COUNT) -> str:
    return f"models=[{','.join(str(root / f'{name}{number}') for number in range(count))}]"


def overrides(case: str) -> list[str]:
    """Return a case's merge as words of a command."""
    found = [f"merge={case.split()[0]}", "seed=7", "alpha=0.7"]
    for key, value in STREAMED[case].items():
        found.append(f"merge.{key}={json.dumps(value)}")
    return found


def in_memory(case: str, root: Path, names: str, base: str, alpha: float = 0.7) -> dict:
    """Return the same merge of whole state dicts in float32."""
    kind = case.split()[0]
    component = registry.lookup("merge", kind).schema.model_validate(
        {"kind": kind, "seed": 7, **STREAMED[case]}
    )
    theta = {n: t.float() for n, t in reading.open_checkpoint(str(root / base)).tensors.items()}
    deltas = []
    for number in range(COUNT):
        tuned = reading.open_checkpoint(str(root / f"{names}{number}")).tensors
        deltas.append(TaskVector.between(theta, {name: tuned[name].float() for name in theta}))
    vectors = signed(deltas)
    return component.compose(theta, vectors, given_for(vectors)).parameters(alpha)


@pytest.mark.parametrize("case", STREAMED)
def test_streamed_in_memory_and_another_layout_are_the_same_bits(case, places, tmp_path):
    words = [*overrides(case), f"base={places / 'base'}"]
    first = merge(*words, listed(places, "shards"), f"out={tmp_path}/a", shard_bytes=30_000)
    second = merge(*words, listed(places, "whole"), f"out={tmp_path}/b")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    assert len(list((tmp_path / "b").glob("*.safetensors"))) == 1
    expected = in_memory(case, places, "whole", "base")
    assert set(first) == set(second) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], tensor), name


@pytest.mark.parametrize("case", ["task_arithmetic", "ties", "dare l1"])
def test_half_precision_is_merged_in_float32_and_rounded_once(case, places, tmp_path):
    words = [*overrides(case), f"base={places / 'halfbase'}", listed(places, "half")]
    found = merge(*words, f"out={tmp_path}/a")
    for name, tensor in in_memory(case, places, "half", "halfbase").items():
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], tensor.to(torch.bfloat16)), name
    wide = merge(*words, f"out={tmp_path}/b", "dtype=float32")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert config["dtype"] == "float32"


ALONE = {
    "average": {},
    "task_arithmetic": {},
    "ties": {"density": 1.0},
    "dare": {"density": 1.0},
    "breadcrumbs": {"density": 1.0, "outliers": 0.0},
    "magmax": {},
    "model_stock": {},
}


@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize("names", [("base", "shards"), ("halfbase", "half"), ("base", "half")])
def test_one_model_comes_back_bit_for_bit(kind, names, places, tmp_path):
    options = [f"merge.{key}={value}" for key, value in ALONE[kind].items()]
    base, tuned = names
    found = merge(
        f"merge={kind}",
        *options,
        f"base={places / base}",
        listed(places, tuned, 1),
        f"out={tmp_path}/a",
    )
    for name, tensor in reading.open_checkpoint(str(places / f"{tuned}0")).tensors.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


@pytest.mark.parametrize("kind", ["average", "karcher", "multislerp"])
def test_a_mean_of_weights_needs_no_base(kind, places, tmp_path):
    on_base = merge(
        f"merge={kind}", f"base={places / 'base'}", listed(places, "whole"), f"out={tmp_path}/a"
    )
    alone = merge(f"merge={kind}", listed(places, "whole"), f"out={tmp_path}/b")
    for name, tensor in on_base.items():
        torch.testing.assert_close(alone[name], tensor, rtol=1e-5, atol=1e-6)
    single = merge("merge=average", listed(places, "whole", 1), f"out={tmp_path}/c")
    for name, tensor in reading.open_checkpoint(str(places / "whole0")).tensors.items():
        assert torch.equal(single[name], tensor)


def test_an_interrupted_merge_goes_on(places, tmp_path):
    words = ("merge=dare", f"base={places / 'base'}", listed(places, "shards"))
    request = asked(*words, f"out={tmp_path}/a", shard_bytes=20_000)
    plan = planning.plan_of(request)
    whole = plan.bytes_read

    def stop(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(plan, stop)
    assert not request.out.exists()
    again = planning.plan_of(request)
    carry_out(again)
    assert again.read < 0.7 * whole
    expected = merge(*words, f"out={tmp_path}/b")
    found = written(request.out)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    # Another seed is other work
    other = asked(*words, f"out={tmp_path}/c", shard_bytes=20_000)
    other_plan = planning.plan_of(other)
    with pytest.raises(KeyboardInterrupt):
        carry_out(other_plan, stop)
    changed = asked(*words, "seed=4", f"out={tmp_path}/c", shard_bytes=20_000)
    from_start = planning.plan_of(changed)
    carry_out(from_start)
    assert from_start.read == whole


def test_the_command_plans_merges_and_reports(places, tmp_path, capsys):
    words = [
        "merge",
        "merge=ties",
        f"base={places / 'base'}",
        listed(places, "shards"),
        f"out={tmp_path}/a",
    ]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "up to 3 times" in said
    assert "in 1 file(s)" in said
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--shard-size", "30KB"]) == 0
    assert "peak of anonymous memory" in capsys.readouterr().out
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert found.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 9)
    card = (tmp_path / "a" / "README.md").read_text()
    assert "merge:" in card
    assert "shards0" in card
    assert str(places) not in card
    assert (tmp_path / "a" / "config.json").read_bytes() == (
        places / "base" / "config.json"
    ).read_bytes()


REFUSED = [
    (["merge=fisher"], "fisher.*files do not hold"),
    (["merge=emr"], "for each task"),
    (["merge=knots"], "does not stream"),
    (["merge=adamerging"], "learns"),
    (["merge=slerp"], "takes 2"),
    (["merge=tsi"], "unknown option"),
    (["merge.weights=[1]"], "holds 1 numbers"),
    (["merge=ties", "merge.densities=[0.1]"], "holds 1 numbers"),
    (["alpha=a"], "alpha"),
    (["base=null"], "give base=MODEL"),
    (["merge=average", "base=null", "alpha=2"], "alpha scales"),
    (["dtype=int8"], "dtype"),
    (["bace=x"], "base"),
    (["base=/nowhere"], "no folder"),
    (["merge=task_arithmetic", "merge.of=factors"], "merge.of=deltas"),
    (["--tokenizer", "union"], "no tokenizer"),
    (["--device", "tpu9"], "--device"),
    (["--shard-size", "big"], "--shard-size"),
    (["--adapter", "0"], "--adapter"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_cannot_be_merged_is_one_line(words, said, places, tmp_path, capsys):
    import re

    standard = [f"base={places / 'base'}", listed(places, "whole"), f"out={tmp_path}/a"]
    kept = [word for word in standard if word.split("=")[0] not in {w.split("=")[0] for w in words}]
    assert main(["merge", *kept, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert re.search(said, error), error
    assert not (tmp_path / "a").exists()


def test_models_that_do_not_fit_are_named(places, tmp_path, capsys):
    model("qwen2").save_pretrained(tmp_path / "qwen2")
    short = model("llama")
    short.config.num_hidden_layers = 1
    state = {n: t for n, t in short.state_dict().items() if "layers.1" not in n}
    short.save_pretrained(tmp_path / "short", state_dict=state)
    broken = near(model("llama"), 1)
    broken.model.norm.weight.data[3] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    wide = reading.open_checkpoint(str(places / "whole0")).tensors
    shutil.copytree(places / "whole0", tmp_path / "wide")
    changed = {n: t.clone() for n, t in wide.items()} | {"model.norm.weight": torch.ones(3)}
    save_file(changed, tmp_path / "wide" / "model.safetensors", {"format": "pt"})
    for name, said in [
        ("qwen2", "merge models of one family"),
        ("short", "lacks model.layers.1"),
        ("wide", "model.norm.weight has shape (3,)"),
        ("broken", "not finite in model.norm.weight"),
    ]:
        words = [f"base={places / 'base'}", f"models=[{tmp_path / name}]", f"out={tmp_path}/out"]
        assert main(["merge", *words]) == 2
        assert said in capsys.readouterr().err


# Embeddings that are tied here and not there, heads that are absent


def test_an_output_embedding_that_is_tied_in_one_model_only(tmp_path):
    base = model("qwen2")
    base.save_pretrained(tmp_path / "base")
    tied = near(base, 1)
    tied.save_pretrained(tmp_path / "tied")
    config = transformers.Qwen2Config.from_dict(
        base.config.to_dict() | {"tie_word_embeddings": False}
    )
    free = type(base)(config)
    free.load_state_dict(near(base, 2).state_dict())
    free.lm_head.weight = torch.nn.Parameter(torch.randn_like(free.lm_head.weight))
    free.save_pretrained(tmp_path / "free")
    merge(
        f"base={tmp_path}/base",
        f"models=[{tmp_path}/tied,{tmp_path}/free]",
        f"out={tmp_path}/out",
        "alpha=0.5",
    )
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    head = 0.5 * (tied.model.embed_tokens.weight + free.lm_head.weight)
    rows = 0.5 * (tied.model.embed_tokens.weight + free.model.embed_tokens.weight)
    torch.testing.assert_close(found.lm_head.weight, head, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.model.embed_tokens.weight, rows, rtol=0, atol=1e-6)
    only = merge(f"base={tmp_path}/base", f"models=[{tmp_path}/tied]", f"out={tmp_path}/two")
    assert "lm_head.weight" not in only
    assert torch.equal(only["model.embed_tokens.weight"], tied.model.embed_tokens.weight)


def test_heads_and_poolers_that_one_model_lacks(tmp_path, capsys):
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    config = transformers.BertConfig(vocab_size=50, **sizes)
    torch.manual_seed(0)
    body = transformers.BertModel(config)
    body.save_pretrained(tmp_path / "body")
    tuned = transformers.BertForSequenceClassification(config)
    tuned.save_pretrained(tmp_path / "tuned")
    words = ["merge", f"base={tmp_path}/body", f"models=[{tmp_path}/tuned]", f"out={tmp_path}/out"]
    assert main(words) == 0
    assert "which the base lacks: left out" in capsys.readouterr().out
    found = written(tmp_path / "out")
    assert torch.equal(found["pooler.dense.weight"], tuned.bert.pooler.dense.weight)
    assert (
        main(
            ["merge", f"base={tmp_path}/tuned", f"models=[{tmp_path}/body]", f"out={tmp_path}/two"]
        )
        == 0
    )
    assert "the base's stays" in capsys.readouterr().out
    back = written(tmp_path / "two")
    assert torch.equal(back["classifier.weight"], tuned.classifier.weight)
    assert torch.equal(back["bert.pooler.dense.weight"], body.pooler.dense.weight)


# Adapters


@pytest.mark.parametrize("kind", ["plain", "saved", "embedding", "dora", "conv1d", "tied"])
def test_one_adapter_comes_back_as_peft_computes_it(kind, tmp_path):
    from test_checkpoints import ADAPTERS

    family, settings = ADAPTERS.get(
        kind, ("qwen2", {"target_modules": LINEAR, "modules_to_save": ["lm_head"]})
    )
    model(family).save_pretrained(tmp_path / "base")
    theirs = logits(adapted(family, tmp_path / "adapter", **settings))
    merge(f"base={tmp_path}/base", f"models=[{tmp_path}/adapter]", f"out={tmp_path}/out")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (logits(found) - theirs).abs().max() < 1e-6


def test_adapters_of_different_ranks_add_up_without_cross_terms_and_become_one_again(
    tmp_path, capsys
):
    import peft

    base = model("llama")
    base.save_pretrained(tmp_path / "base")
    adapted("llama", tmp_path / "first", seed=1, target_modules=LINEAR)
    adapted(
        "llama", tmp_path / "second", seed=2, target_modules=["q_proj"], rank_pattern={"q_proj": 2}
    )
    models = f"models=[{tmp_path}/first,{tmp_path}/second]"
    words = ["merge", f"base={tmp_path}/base", models, "merge.weights=[0.5,2]"]
    whole = merge(*words[1:], f"out={tmp_path}/model")
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = base.state_dict()[name].clone()
    for folder, weight, rank in [("first", 0.5, 4), ("second", 2, 2)]:
        factors = load_file(tmp_path / folder / "adapter_model.safetensors")
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        product = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"]
        expected += weight * 6 / rank * product
    torch.testing.assert_close(whole[name], expected, rtol=0, atol=1e-6)

    assert main([*words, f"out={tmp_path}/adapter", "--adapter", "6"]) == 0
    assert "of the merged delta's norm is left out" in capsys.readouterr().out
    ours = peft.PeftModel.from_pretrained(model("llama"), tmp_path / "adapter").eval()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert (logits(ours) - logits(merged)).abs().max() < 1e-5

    request = asked(*words[1:], f"out={tmp_path}/small", adapter=1)
    report = carry_out(planning.plan_of(request))
    delta = (whole[name] - base.state_dict()[name]).double()
    values = torch.linalg.svdvals(delta)
    lost = float(values[1:].norm() / values.norm())
    assert report.adapter.errors[name.removesuffix(".weight")] == pytest.approx(lost, rel=1e-3)
    assert 0 < report.adapter.error < 1


# Vectors and open_clip


def test_vectors_on_a_checkpoint(places, tmp_path):
    theta = reading.open_checkpoint(str(places / "base")).tensors
    for number in range(COUNT):
        tuned = reading.open_checkpoint(str(places / f"whole{number}")).tensors
        TaskVector.between(theta, {name: tuned[name] for name in theta}).save(
            tmp_path / f"v{number}"
        )
        (tmp_path / f"v{number}").rename(tmp_path / f"v{number}.safetensors")
    vectors = ",".join(str(tmp_path / f"v{number}.safetensors") for number in range(COUNT))
    words = [*overrides("ties"), f"base={places / 'base'}"]
    found = merge(*words, f"models=[{vectors}]", f"out={tmp_path}/a")
    expected = merge(*words, listed(places, "whole"), f"out={tmp_path}/b")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_open_clip_folder_is_written_that_open_clip_loads(tmp_path):
    import open_clip

    from taskvec.data.tasks import ASSETS

    source = ASSETS / "mini_clip_s"
    theta = load_file(source / "open_clip_model.safetensors")
    shutil.copytree(source, tmp_path / "tuned")
    torch.manual_seed(0)
    tuned = {
        name: tensor + 0.01 * torch.randn_like(tensor)
        for name, tensor in theta.items()
        if tensor.ndim
    }
    save_file(theta | tuned, tmp_path / "tuned" / "open_clip_model.safetensors", {"format": "pt"})
    key = "blocks.0.attn.q.weight"
    width = theta["visual.transformer.resblocks.0.attn.in_proj_weight"].shape[1]
    TaskVector({key: torch.ones(width, width)}).save(tmp_path / "v.safetensors")
    models = f"models=[{tmp_path}/tuned,{tmp_path}/v.safetensors]"
    found = merge(
        "base=pkg://mini_clip_s", models, f"out={tmp_path}/out", "alpha=0.5", shard_bytes=10_000
    )
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    expected = theta[name].float() + 0.5 * (tuned[name].float() - theta[name].float())
    expected[:width] += 0.5
    torch.testing.assert_close(found[name], expected.to(found[name].dtype), rtol=0, atol=0)
    loaded = open_clip.create_model(f"local-dir:{tmp_path}/out")
    assert torch.equal(loaded.state_dict()[name], found[name].float())


def test_a_weight_file_alone(tmp_path):
    torch.manual_seed(0)
    theta = {"a.weight": torch.randn(5, 4), "step": torch.tensor(3)}
    save_file(theta, tmp_path / "base.safetensors")
    torch.save(
        {"state_dict": {"a.weight": theta["a.weight"] + 1, "step": torch.tensor(9)}},
        tmp_path / "m.pt",
    )
    words = [
        f"base={tmp_path}/base.safetensors",
        f"models=[{tmp_path}/m.pt]",
        f"out={tmp_path}/o.safetensors",
    ]
    found = merge(*words, "alpha=0.5")
    torch.testing.assert_close(found["a.weight"], theta["a.weight"] + 0.5)
    assert int(found["step"]) == 3


def test_a_vector_of_another_base_is_refused_in_one_line(places, tmp_path, capsys):
    """The hash that runs write: of the weights in float32, whatever the checkpoint's dtype and beside it."""
    theta = reading.open_checkpoint(str(places / "base")).tensors
    tuned = reading.open_checkpoint(str(places / "whole0")).tensors
    deltas = {name: tuned[name] - theta[name] for name in theta}
    head = next(name for name in theta if "lm_head" in name)
    tied = {name: tensor for name, tensor in theta.items() if name != head}
    for number, of in enumerate((theta, tied)):
        made_on = {"base_hash": weights_hash({name: t.float() for name, t in of.items()})}
        vector = tmp_path / f"v{number}.safetensors"
        TaskVector(deltas, made_on).save(vector)
        words = [f"models=[{vector}]", f"out={tmp_path}/o{number}"]
        found = merge(f"base={places / 'base'}", *words)
        assert all(torch.equal(found[name], theta[name] + deltas[name]) for name in theta)
        assert main(["merge", f"base={places / 'whole1'}", *words[:1], f"out={tmp_path}/x"]) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert "was made on other base weights" in said and made_on["base_hash"][:12] in said
        assert not (tmp_path / "x").exists()
        loaded = TaskVector.load(vector)
        total = merge_in_memory([loaded, loaded], base=theta)
        assert torch.equal(total[head], 2 * deltas[head])
        with pytest.raises(UserError, match="vector 0 was made on other base weights"):
            merge_in_memory([loaded, loaded], base=tuned)
