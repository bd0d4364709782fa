"""lm-evaluation-harness on merged weights in memory: offline, on local tasks, against our own scoring."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from safetensors.torch import load_file

from taskvec.errors import UserError
from taskvec.models.causal import Causal
from taskvec.protocols.harness import files as harness_files
from taskvec.protocols.harness import protocol as harness
from taskvec.protocols.harness import tasks as harness_tasks
from taskvec.protocols.harness.units import is_accuracy, measure
from taskvec.registry import lookup
from taskvec.report.table import run_table
from taskvec.runner import compose
from taskvec.runner.execute import execute

TEXTS = [
    f"the {thing} was {quality}"
    for thing in ("film", "song", "book")
    for quality in ("good", "bad", "dull", "fine")
]
WORDS = ("negative", "positive")
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
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
    backbone = Causal(
        model="pkg://mini_lm_s", tokenizer="pkg://mini_lm_tokenizer", start_token="<|end|>"
    )
    tokens = backbone.text_tokenizer
    torch.manual_seed(3)
    config = AutoConfig.for_model("llama", vocab_size=len(tokens), initializer_range=0.3, **LLAMA)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "model")
    for kind in ("backbone", "suite", "task", "lm", "data"):
        (root / kind).mkdir()
    settings = f"model: {root}/model\ntokenizer: pkg://mini_lm_tokenizer\nstart_token: '<|end|>'\nmax_length: 40\n"
    (root / "backbone" / "tiny_lm.yaml").write_text(SCHEMA.format("backbone/causal") + settings)
    (root / "suite" / "tiny_texts.yaml").write_text(
        SCHEMA.format("suite/texts") + "tasks: [good, bad]\n"
    )
    labels = [i % 2 for i in range(len(TEXTS))]
    for task in ("good", "bad"):
        frame = f"path: {root}/data\nclasses: [negative, positive]\nframe: 'Is it {task}? {{text}}\\nSentiment:'\n"
        (root / "task" / f"{task}.yaml").write_text(frame)
    for split in ("train", "val", "test"):
        parquet.write_table(
            pa.table({"text": TEXTS, "label": labels}), root / "data" / f"{split}.parquet"
        )
    model = Causal(
        model=str(root / "model"), tokenizer="pkg://mini_lm_tokenizer", start_token="<|end|>"
    ).load("cpu")
    written = [greedy(model, tokens, text) for text in TEXTS]
    assert len(set(written)) > 1
    parquet.write_table(
        pa.table({"text": TEXTS, "label": labels, "written": written}), root / "lm" / "test.parquet"
    )
    source = {
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": f"{root}/lm/test.parquet"}},
    }
    for task in (CHOICE, WRITE, UNSAFE):
        (root / "lm" / f"{task['task']}.yaml").write_text(
            yaml.safe_dump(task | source | {"test_split": "test"})
        )
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
        fixed = [
            "backbone=tiny_lm",
            "suite=tiny_texts",
            "protocol=harness",
            f"protocol.include_path={world}/lm",
        ]
        fixed += [
            "finetune.steps=4",
            "finetune.warmup=1",
            "finetune.lr=0.02",
            "finetune.batch_size=12",
        ]
        words = [*fixed, f"outputs={tmp_path}/outputs", *overrides]
        return execute(compose.resolve(compose.compose(words)), tuple(words))

    return go


def ids(tokens, text: str) -> list[int]:
    return [
        tokens.convert_tokens_to_ids("<|end|>"),
        *tokens(text, add_special_tokens=False)["input_ids"],
    ]


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
            found = model.token_log_probs(
                model.token_states(parameters, inputs), inputs, parameters
            )[0]
            totals.append(float(found[len(context) - 1 :].sum()))
        right.append(totals[1] > totals[0] if i % 2 else totals[0] >= totals[1])
    return right


def test_a_merged_model_scores_as_our_own_forward_does_and_runs_once(run, world, tmp_path):
    words = ["protocol.tasks=[tiny_choice,tiny_write]", "protocol.alphas=[0.5,1]"]
    first = run(*words)
    assert first.state == "done", first.reason
    rows = {row.row: row for row in first.result.rows}
    assert set(rows) == {"zero_shot", "merged_0.5", "merged_1.0"}
    backbone = Causal(
        model=str(world / "model"), tokenizer="pkg://mini_lm_tokenizer", start_token="<|end|>"
    )
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
    records = [
        json.loads(path.read_text())
        for path in (tmp_path / "outputs/store/answer").glob("*/artefact.json")
    ]
    name = next(
        r["label"] for r in records if r["label"].startswith("answer merged/1.0/tiny_choice")
    )
    folder = next(
        p
        for p in (tmp_path / "outputs/store/answer").iterdir()
        if name in (p / "artefact.json").read_text()
    )
    stored = load_file(folder / "tensors.safetensors")["example/tiny_choice/acc,none"]
    assert stored.bool().tolist() == score(model, tokens, merged)
    assert run(*words).state == "skipped"
    # Other cells of the same run
    again = run("protocol.tasks=[tiny_choice]", "protocol.alphas=[1]")
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


def test_what_cannot_run_is_refused_with_its_remedy_before_any_work(
    run, world, tmp_path, monkeypatch
):
    for overrides, message in (
        (["protocol.tasks=[tiny_code]"], "tiny_code executes code.*protocol.allow_code=true"),
        (["protocol.tasks=[humaneval]"], "humaneval executes code"),
        (["protocol.tasks=[mbpp]"], "mbpp executes code"),
        (["protocol.tasks=[humaneval]", "protocol.allow_code=true"], "HF_ALLOW_CODE_EVAL=1"),
        (["protocol.tasks=[tiny_chioce]"], "no task or group 'tiny_chioce'"),
        (["protocol.tasks=[tiny_choice]", "protocol.grid=[0,1]"], "protocol.grid.*protocol.alphas"),
        (
            ["protocol.tasks=[tiny_choice]", "protocol.metrics={tiny_write: x}"],
            "tiny_write not in protocol.tasks",
        ),
        (["protocol.tasks=[tiny_choice]", "finetune=tangent"], "takes standard vectors"),
        (
            ["protocol.tasks=[tiny_choice]", "backbone=mini_encoder"],
            "does not give; take a causal language model",
        ),
        (["protocol.tasks=[tiny_choice]", "protocol.include_path=/nowhere"], "no folder /nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            run(*overrides)
    monkeypatch.setattr(harness_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'taskvec\[llm\]'"):
        run("protocol.tasks=[tiny_choice]")
    assert not list(tmp_path.glob("outputs/store/*/*/SHA256SUMS"))


def test_every_preset_names_tasks_that_the_harness_has():
    pytest.importorskip("lm_eval")
    compose.register_all()
    for preset, allowed in (
        ("gsm8k", True),
        ("math", True),
        ("ifeval", True),
        ("humaneval", False),
        ("mbpp", False),
    ):
        config = yaml.safe_load((compose.conf_dir() / "protocol" / f"{preset}.yaml").read_text())
        schema = lookup("protocol", "harness").schema
        protocol = schema(tasks=config["tasks"])
        assert all((task.code is None) == allowed for task in protocol.found.values()), preset
        if allowed:
            protocol.check(None)


# Foreign code, and metrics that are no accuracies.

ESCAPES = (
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ text.__class__.__base__.__subclasses__() }}",
)
OWN_CODE = {
    "module": ({"process_docs": "!function own.work"}, "runs Python of its own"),
    "standard": ({"process_docs": "!function os.system"}, "runs Python of its own"),
    "script": ({"metric_list": [{"metric": "FOLDER/score.py"}]}, "is a script"),
    "hub": ({"metric_list": [{"metric": "exact_match", "hf_evaluate": True}]}, "is a script"),
    "library": ({"use_prompt": "promptsource:x"}, "prompt library"),
}
SCRIPT = "open('CANARY', 'w').close()\ndef work(docs):\n    return docs\n"


def own_task(world: Path, folder: Path, name: str, **changes) -> Path:
    """Write a task of the user's with changes, a module and a script beside it that leave a trace when they run."""
    folder.mkdir()
    text = SCRIPT.replace("CANARY", str(folder / "canary"))
    for file in ("own.py", "score.py"):
        (folder / file).write_text(text)
    data = {
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": f"{world}/lm/test.parquet"}},
    }
    content = yaml.safe_dump(CHOICE | data | {"test_split": "test", "task": name} | changes)
    content = content.replace("FOLDER", str(folder)).replace("CANARY", str(folder / "canary"))
    (folder / f"{name}.yaml").write_text(re.sub(r"'(!function [^']*)'", r"\1", content))
    return folder


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_leaves_its_sandbox_ends_the_run_and_runs_nothing(
    template, run, world, tmp_path
):
    folder = own_task(world, tmp_path / "tasks", "sly", doc_to_text=template)
    ended = run(
        f"protocol.include_path={folder}", "protocol.tasks=[sly]", "protocol.allow_code=true"
    )
    assert ended.state == "failed" and "a template reaches for" in ended.reason
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("kind", OWN_CODE)
def test_code_of_a_task_wants_consent_and_runs_nowhere_without_it(
    kind, run, world, tmp_path, monkeypatch
):
    changes, message = OWN_CODE[kind]
    folder = own_task(world, tmp_path / "tasks", "sly", **changes)
    words = [f"protocol.include_path={folder}", "protocol.tasks=[sly]"]
    with pytest.raises(UserError, match=f"sly .*{message}.*protocol.allow_code=true"):
        run(*words)
    # where the search through the files is fooled, the harness itself is guarded
    found = harness_tasks.find("sly", str(folder))
    monkeypatch.setattr(harness, "find", lambda *_: replace(found, code=None))
    ended = run(*words)
    assert ended.state == "failed" and "protocol.allow_code=true" in ended.reason, ended
    assert not (folder / "canary").exists()


def test_a_module_that_another_file_overrides_is_imported_and_wants_consent(world, tmp_path):
    folder = own_task(world, tmp_path / "tasks", "below", process_docs="!function own.work")
    (folder / "above.yaml").write_text("task: above\ninclude: below.yaml\nprocess_docs: null\n")
    assert "own.work" in harness_tasks.find("above", str(folder)).code


def test_with_consent_code_runs_and_what_lies_beside_it_is_part_of_the_identity(
    run, world, tmp_path
):
    folder = own_task(world, tmp_path / "tasks", "open", process_docs="!function own.work")
    words = [f"protocol.include_path={folder}", "protocol.tasks=[open]", "protocol.allow_code=true"]
    ended = run(*words)
    assert ended.state == "done" and (folder / "canary").exists()
    assert ended.result.config["protocol"]["allow_code"] is True
    before = harness_tasks.find("open", str(folder)).digest()
    (folder / "lib").mkdir()
    (folder / "lib" / "helper.py").write_text("x = 1\n")
    assert harness_tasks.find("open", str(folder)).digest() != before


def test_metrics_keep_unit_and_direction_and_no_accuracy_averages_them(run, world, tmp_path):
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    }
    folder = own_task(
        world, tmp_path / "tasks", "pages", **rolling, metric_list=[{"metric": "word_perplexity"}]
    )
    (folder / "quiz.yaml").write_text(
        (world / "lm" / "tiny_choice.yaml").read_text().replace("tiny_choice", "quiz")
    )
    result = run(f"protocol.include_path={folder}", "protocol.tasks=[pages,quiz]").result
    for row in result.rows:
        accuracy, perplexity = row.metrics["accuracy"], row.metrics["word_perplexity"]
        assert (accuracy.unit, accuracy.better, set(accuracy.values)) == (
            "fraction",
            "higher",
            {"quiz"},
        )
        assert (perplexity.unit, perplexity.better, set(perplexity.values)) == (
            "perplexity",
            "lower",
            {"pages"},
        )
        assert accuracy.mean == accuracy.values["quiz"] <= 1 < perplexity.mean
    assert result.criterion.name == "merged/accuracy"
    shown = run_table(result)
    assert f"{result.rows[0].mean('word_perplexity'):.2f}" in shown


@pytest.mark.parametrize(
    ("name", "higher", "expected"),
    [
        ("acc,none", True, ("fraction", "higher")),
        ("exact_match,flexible-extract", True, ("fraction", "higher")),
        ("pass@1,create_test", True, ("fraction", "higher")),
        ("prompt_level_strict_acc", True, ("fraction", "higher")),
        ("byte_perplexity", None, ("perplexity", "lower")),
        ("bits_per_byte,none", False, ("bits", "lower")),
        ("bleu", True, ("number", "higher")),
        ("ter", False, ("number", "lower")),
        ("judge", None, ("number", "neither")),
    ],
)
def test_units_of_the_harness(name, higher, expected):
    assert measure(name, higher) == expected
    assert is_accuracy(measure(name, higher)) == (expected == ("fraction", "higher"))
