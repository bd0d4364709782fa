"""lm-evaluation-harness on merged weights in memory: offline, on local tasks, against our own scoring."""

from __future__ import annotations

import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from safetensors.torch import load_file

from taskvec.errors import UserError
from taskvec.models.causal import Causal
from taskvec.protocols.harness import tasks as harness_tasks
from taskvec.registry import lookup
from taskvec.runner import compose
from taskvec.runner.configs import conf_dir
from taskvec.runner.execute import execute

TEXTS = [
    f"the {thing} was {quality}" for thing in ("film", "song", "book") for quality in ("good", "bad", "dull", "fine")
]
WORDS = ("negative", "positive")
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA |= {"intermediate_size": 48, "max_position_embeddings": 128, "tie_word_embeddings": True}
SCHEMA = "defaults:\n  - /schema/{}@_here_\n  - _self_\n"
CHOICE = {
    "task": "tiny_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "Review: {{text}}\nSentiment:",
    "doc_to_choice": list(WORDS),
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}
WRITE = {
    "task": "tiny_write",
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{written}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
UNSAFE = WRITE | {"task": "tiny_code", "unsafe_code": True}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of the shipped tokenizer's size, one task to fine-tune on, and a folder of harness tasks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    pytest.importorskip("lm_eval")
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("harness")
    backbone = Causal(model="pkg://mini_lm_s", tokenizer="pkg://mini_lm_tokenizer", start_token="<|end|>")
    tokens = backbone.text_tokenizer
    torch.manual_seed(3)
    config = AutoConfig.for_model("llama", vocab_size=len(tokens), initializer_range=0.3, **LLAMA)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "model")
    for kind in ("backbone", "suite", "task", "lm", "data"):
        (root / kind).mkdir()
    settings = f"model: {root}/model\ntokenizer: pkg://mini_lm_tokenizer\nstart_token: '<|end|>'\nmax_length: 40\n"
    (root / "backbone" / "tiny_lm.yaml").write_text(SCHEMA.format("backbone/causal") + settings)
    (root / "suite" / "tiny_texts.yaml").write_text(SCHEMA.format("suite/texts") + "tasks: [good, bad]\n")
    labels = [i % 2 for i in range(len(TEXTS))]
    for task in ("good", "bad"):
        frame = f"path: {root}/data\nclasses: [negative, positive]\nframe: 'Is it {task}? {{text}}\\nSentiment:'\n"
        (root / "task" / f"{task}.yaml").write_text(frame)
    for split in ("train", "val", "test"):
        parquet.write_table(pa.table({"text": TEXTS, "label": labels}), root / "data" / f"{split}.parquet")
    model = Causal(model=str(root / "model"), tokenizer="pkg://mini_lm_tokenizer", start_token="<|end|>").load("cpu")
    written = [greedy(model, tokens, text) for text in TEXTS]
    assert len(set(written)) > 1
    parquet.write_table(pa.table({"text": TEXTS, "label": labels, "written": written}), root / "lm" / "test.parquet")
    source = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"test": f"{root}/lm/test.parquet"}}}
    for task in (CHOICE, WRITE, UNSAFE):
        (root / "lm" / f"{task['task']}.yaml").write_text(yaml.safe_dump(task | source | {"test_split": "test"}))
    return root


@pytest.fixture
def run(world, tmp_path, monkeypatch):
    """Run overrides in this process, without a network."""

    def refuse(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TASKVEC_INCLUDE", str(world))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    compose.register_all()

    def go(*overrides: str):
        fixed = ["backbone=tiny_lm", "suite=tiny_texts", "protocol=harness", f"protocol.include_path={world}/lm"]
        fixed += ["finetune.steps=4", "finetune.warmup=1", "finetune.lr=0.02", "finetune.batch_size=12"]
        words = [*fixed, f"outputs={tmp_path}/outputs", *overrides]
        return execute(compose.resolve(compose.compose(words)), tuple(words))

    return go


def ids(tokens, text: str) -> list[int]:
    return [tokens.convert_tokens_to_ids("<|end|>"), *tokens(text, add_special_tokens=False)["input_ids"]]


@torch.no_grad()
def greedy(model, tokens, text: str) -> str:
    """What the base model writes after a text, up to 5 tokens, the end of a line or its end token."""
    start = row = ids(tokens, text)
    for _ in range(5):
        state = model.features(model.parameters, torch.tensor([row], dtype=torch.int32))
        row = [*row, int(model.logits(state, torch.arange(len(tokens))).argmax())]
        if row[-1] == start[0]:
            row = row[:-1]
            break
    return tokens.decode(row[len(start) :], skip_special_tokens=True).split("\n")[0]


@torch.no_grad()
def score(model, tokens, parameters) -> list[bool]:
    """Whether our own sum of log probabilities prefers the right word, per text."""
    right = []
    for i, text in enumerate(TEXTS):
        context = ids(tokens, f"Review: {text}\nSentiment:")
        totals = []
        for word in WORDS:
            row = ids(tokens, f"Review: {text}\nSentiment: {word}")
            inputs = torch.tensor([row], dtype=torch.int32)
            found = model.token_log_probs(model.token_states(parameters, inputs), inputs, parameters)[0]
            totals.append(float(found[len(context) - 1 :].sum()))
        right.append(totals[1] > totals[0] if i % 2 else totals[0] >= totals[1])
    return right


def test_a_merged_model_scores_as_our_own_forward_does_and_runs_once(run, world, tmp_path):
    words = ["protocol.tasks=[tiny_choice,tiny_write]", "protocol.alphas=[0.5,1]"]
    first = run(*words)
    assert first.state == "done", first.reason
    rows = {row.row: row for row in first.result.rows}
    assert set(rows) == {"zero_shot", "merged_0.5", "merged_1.0"}
    backbone = Causal(model=str(world / "model"), tokenizer="pkg://mini_lm_tokenizer", start_token="<|end|>")
    model, tokens = backbone.load("cpu"), backbone.text_tokenizer
    files = list((tmp_path / "outputs" / "store" / "vector").glob("*/tensors.safetensors"))
    vectors = [load_file(path) for path in files]
    assert len(vectors) == 2 and rows["zero_shot"].values("accuracy")["tiny_write"] == 1.0
    merged = {n: w + sum(v[n] for v in vectors) for n, w in model.parameters.items()}
    for label, weights in (("zero_shot", model.parameters), ("merged_1.0", merged)):
        assert rows[label].values("accuracy")["tiny_choice"] == pytest.approx(
            sum(score(model, tokens, weights)) / len(TEXTS)
        )
        assert first.result.maps[label]["tiny_choice"]["main"] == "acc,none"
        assert first.result.maps[label]["tiny_choice"]["examples"] == {"tiny_choice": len(TEXTS)}
    answer = rows["merged_1.0"].cells["tiny_choice"]
    kept = load_file(tmp_path / f"outputs/store/answer/{answer}/tensors.safetensors")
    stored = kept["example/tiny_choice/acc,none"]
    assert stored.bool().tolist() == score(model, tokens, merged)
    assert run(*words).state == "skipped"
    again = run("protocol.tasks=[tiny_choice]", "protocol.alphas=[1]")  # other cells of the same run
    assert not any(stage["computed"] for stage in again.result.timing["artefacts"].values())
    path = world / "lm" / "tiny_choice.yaml"
    text = path.read_text()
    path.write_text(text.replace("Review", "Opinion"))
    try:
        changed = run("protocol.tasks=[tiny_choice]", "protocol.alphas=[1]")
    finally:
        path.write_text(text)
    costs = changed.result.timing["artefacts"].values()
    assert {stage["kind"] for stage in costs if stage["computed"]} == {"answer"}


def test_what_cannot_run_is_refused_with_its_remedy_before_any_work(run, world, tmp_path, monkeypatch):
    for overrides, message in (
        (["protocol.tasks=[tiny_code]"], "tiny_code executes code.*protocol.allow_code=true"),
        (["protocol.tasks=[humaneval]"], "humaneval executes code"),
        (["protocol.tasks=[mbpp]"], "mbpp executes code"),
        (["protocol.tasks=[humaneval]", "protocol.allow_code=true"], "HF_ALLOW_CODE_EVAL=1"),
        (["protocol.tasks=[tiny_chioce]"], "no task or group 'tiny_chioce'"),
        (["protocol.tasks=[tiny_choice]", "protocol.grid=[0,1]"], "protocol.grid.*protocol.alphas"),
        (["protocol.tasks=[tiny_choice]", "protocol.metrics={tiny_write: x}"], "tiny_write not in protocol.tasks"),
        (["protocol.tasks=[tiny_choice]", "finetune=tangent"], "takes standard vectors"),
        (["protocol.tasks=[tiny_choice]", "backbone=mini_encoder"], "take a causal language model"),
        (["protocol.tasks=[tiny_choice]", "protocol.include_path=/nowhere"], "no folder /nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            run(*overrides)
    monkeypatch.setattr(harness_tasks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'taskvec\[llm\]'"):
        run("protocol.tasks=[tiny_choice]")
    assert not list(tmp_path.glob("outputs/store/*/*/SHA256SUMS"))


def test_every_preset_names_tasks_that_the_harness_has():
    pytest.importorskip("lm_eval")
    compose.register_all()
    for preset, allowed in (("gsm8k", True), ("math", True), ("ifeval", True), ("humaneval", False), ("mbpp", False)):
        config = yaml.safe_load((conf_dir() / "protocol" / f"{preset}.yaml").read_text())
        schema = lookup("protocol", "harness").schema
        protocol = schema(tasks=config["tasks"])
        assert all((task.code is None) == allowed for task in protocol.found.values()), preset
        if allowed:
            protocol.check(None)
