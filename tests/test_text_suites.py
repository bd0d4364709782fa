"""Text suites end to end on tiny models of four families: metrics, controls, analogies, padding, malformed input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import world
import world_text
import yaml
from asked import Given
from world_text import FAST, HUB, MODELS

from taskvec.cli import main
from taskvec.data.cards import load_tasks
from taskvec.data.prompt import Prompt
from taskvec.data.tasks import TextSuite, TextTask
from taskvec.data.texts import tokenise_split
from taskvec.errors import NoFeasibleCoefficientError
from taskvec.needs import Examples
from taskvec.protocols.base import Answer
from taskvec.protocols.questions.scores import perplexity
from taskvec.protocols.selection import Keeps, Rule, choose
from taskvec.registry import lookup
from taskvec.report.intervals import paired_difference
from taskvec.report.outcomes import Judged, Means, outcomes
from taskvec.report.runs import Run
from taskvec.report.table import run_table
from taskvec.runner import compose
from taskvec.runner.configs import conf_dir
from taskvec.runner.execute import Outcome, execute
from taskvec.training import walk
from taskvec.training.batches import Batch
from taskvec.training.evaluator import Evaluator
from taskvec.training.objectives.cross_entropy import CrossEntropy
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Scaled

TWO = ["suite.tasks=[products,concepts]"]  # short texts


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tiny language models, which the command includes."""
    torch.set_num_threads(1)
    root = world_text.build(tmp_path_factory.mktemp("lms"))
    known = os.environ.get("TASKVEC_INCLUDE")
    os.environ["TASKVEC_INCLUDE"] = str(root)
    compose.register_all()
    yield root
    os.environ.pop("TASKVEC_INCLUDE")
    if known:
        os.environ["TASKVEC_INCLUDE"] = known


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all runs of this file, so that texts are tokenised once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def run(lms: Path, outputs: Path):
    """Run overrides in this process."""

    def go(*overrides: str) -> Outcome:
        words = [*overrides, f"outputs={outputs}"]
        outcome = execute(compose.resolve(compose.compose(words)), tuple(words))
        assert outcome.state != "failed", outcome.reason
        return outcome

    return go


def rows(outcome: Outcome) -> dict:
    return {row.row: row for row in outcome.result.rows}


# --- every family ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_every_family_runs_shows_its_table_and_resumes(run, outputs, capsys, model):
    words = ["method=task_arithmetic", f"backbone={model}", "suite=minitext6", *TWO, *FAST]
    first = run(*words)
    assert first.state == "done" and set(rows(first)) == {
        "zero_shot",
        "individual",
        "merged",
        "merged_alpha_1",
    }
    assert all(
        0 <= value <= 1 for row in first.result.rows for value in row.values("accuracy").values()
    )
    assert run(*words).state == "skipped"
    folder = outputs / "runs" / first.run_id
    (folder / "result.json").unlink()
    again = run(*words)
    assert again.state == "done" and again.result.same_as(first.result)
    assert not any(stage["computed"] for stage in again.result.timing["artefacts"].values())
    assert main(["table", str(folder), "--rows", "row", "--metrics", "accuracy"]) == 0
    assert "merged" in capsys.readouterr().out


# --- every shipped suite --------------------------------------------------------------------------------------------

MIRROR = f"suite.data_dir={HUB}"
ANALOGY = ["protocol=analogy", *(f"protocol.{role}={task}" for role, task in zip(
    ("a", "b", "c", "target"),
    ("movies_negative", "movies_positive", "products_negative", "products_positive"), strict=True,
))]  # fmt: skip
HELD_OUT = ["protocol=out_of_distribution", "protocol.targets=[movies]", "protocol.shots=1"]
SHIPPED = {
    "glue8": ["backbone=tiny_roberta", MIRROR, "protocol.grid=[0,0.5,1]"],
    "glue8_flan": ["backbone=tiny_t5", MIRROR, *FAST],
    "nli6": ["backbone=tiny_t5", MIRROR, "protocol.grid=[0,0.5,1]"],
    "nli6_authors": ["backbone=tiny_roberta", MIRROR, "suite.check_counts=false", *FAST],
    "minitext6": ["backbone=tiny_gpt2", *FAST],
    "mini_sentiment": ["backbone=tiny_llama", *ANALOGY, *FAST],
}


def text_suites() -> list[str]:
    files = sorted((conf_dir() / "suite").glob("*.yaml"))
    return [path.stem for path in files if "/schema/suite/texts@_here_" in path.read_text()]


@pytest.mark.parametrize("suite", text_suites())
def test_every_shipped_suite_runs_end_to_end(run, suite):
    outcome = run(f"suite={suite}", *SHIPPED[suite])
    definitions = outcome.result.config["suite"]["definitions"]
    named = yaml.safe_load((conf_dir() / "suite" / f"{suite}.yaml").read_text())
    assert set(named["tasks"]) <= set(definitions)
    row = rows(outcome)["individual"]
    expected = ["products_positive"] if suite == "mini_sentiment" else named["tasks"]
    accuracy = row.values("accuracy")
    assert list(accuracy) == expected
    if suite in ("glue8", "nli6"):  # the fixtures are made to be learned
        assert all(value > 0.5 for value in accuracy.values()), accuracy
        assert rows(outcome)["merged"].mean("normalised") < 1


def test_glue_is_judged_by_the_metric_of_each_task(run, outputs):
    outcome = run("suite=glue8", *SHIPPED["glue8"])
    result, found = outcome.result, rows(outcome)
    metrics = {task: node["metric"] for task, node in result.config["suite"]["definitions"].items()}
    assert {task: metric for task, metric in metrics.items() if metric != "accuracy"} == {
        "cola": "matthews",
        "stsb": "pearson_spearman",
    }
    head = run_table(result).splitlines()[0]
    assert "cola (matthews)" in head and "stsb (pearson_spearman)" in head
    kept = Run(result, folder=outputs / "runs" / outcome.run_id)
    own, base = (outcomes(kept, found[name], "accuracy") for name in ("individual", "zero_shot"))
    assert isinstance(own["cola"], Judged) and isinstance(own["rte"], Means)
    gap = paired_difference([own], [base], resamples=50)
    means = [found[name].mean("accuracy") for name in ("individual", "zero_shot")]
    assert gap.mean == pytest.approx(means[0] - means[1]) and gap.low > 0


@pytest.mark.parametrize("model", ["tiny_t5", "tiny_gpt2"])
def test_models_that_answer_in_words_learn_scores(run, model):
    words = [
        f"backbone={model}",
        "suite=glue8",
        MIRROR,
        "suite.tasks=[stsb]",
        "protocol.grid=[0,1]",
    ]
    found = []
    # A few dozen examples are tested on: one seed's correlation spreads by 0.3
    for seed in range(3):
        outcome = run(*words, "finetune.steps=300", f"seed={seed}")
        found.append(rows(outcome)["individual"].values("accuracy")["stsb"])
    assert sum(found) / len(found) > 0.5


def test_rows_without_a_label_are_left_out_and_words_are_labels():
    tasks = load_tasks(
        {"tasks": ["snli", "scitail", "mnli"], "data_dir": str(HUB)}, TextSuite, [conf_dir()]
    )

    def read(task: str, split: str, framed: bool):
        pieces: list = []
        found = tokenise_split(
            task,
            tasks[task],
            split,
            lambda rows: pieces.extend(rows) or torch.zeros(len(rows), 1),
            framed=framed,
        )
        return found["labels"].tolist(), pieces

    labels, _ = read("snli", "test", framed=False)
    assert len(labels) == 27 and set(labels) == {0, 1, 2}
    labels, _ = read("scitail", "test", framed=False)
    assert labels == [0, 1] * 15
    _, plain = read("mnli", "test", framed=False)
    _, framed = read("mnli", "test", framed=True)
    (_, premise, _, hypothesis, _), (before, first, between, second, after) = plain[0], framed[0]
    assert (first, second) == (hypothesis, premise), "T5 reads the hypothesis first"
    assert (before, between, after) == ("mnli hypothesis: ", " premise: ", "")


# --- negation and analogy -------------------------------------------------------------------------------------------


def test_negation_keeps_the_perplexity_of_the_control(run, lms):
    (lms / "task").mkdir(exist_ok=True)
    (lms / "task/short.yaml").write_text(f"path: {lms}\nfile: short\n")
    parquet.write_table(
        pa.table({"text": [f"{i}. Call me Ishmael." for i in range(9)]}), lms / "short.parquet"
    )
    words = [
        "backbone=tiny_gpt2",
        "suite=minitext6",
        "suite.tasks=[products]",
        *FAST,
        "protocol=negation",
    ]
    words.append("suite.control=short")
    outcome = run(*words, "protocol.perplexity_tolerance=5")
    found, result = rows(outcome), outcome.result
    assert set(found) == {"zero_shot", "individual", "negated", "random"}
    assert all(row.mean("control") is None and row.mean("perplexity") > 1 for row in found.values())
    curve = {point["alpha"]: point for point in result.curves["negated/products"]}
    kept = {alpha: p for alpha, p in curve.items() if p["control"] <= curve[0.0]["control"] + 5}
    assert found["negated"].alphas["products"] == min(
        sorted(kept), key=lambda alpha: kept[alpha]["mean"]
    )
    assert set(result.data_seen["selection"]) == {"products/val", "short/val"}
    linear = rows(run(*words, "finetune=tangent", "finetune.lr=1e-3"))
    start = found["zero_shot"].mean("perplexity")
    assert linear["zero_shot"].mean("perplexity") == pytest.approx(start, rel=1e-5)


@pytest.mark.parametrize(
    ("perplexities", "lowest", "largest"),
    [
        ({0.0: 20.0, 0.5: 20.5, 1.0: 20.5001}, 0.5, 0.5),  # the bound itself is within
        ({0.0: 20.0, 0.5: 20.5001, 1.0: 30.0}, 0.0, 0.0),
        # The lowest target is a tie, or the largest coefficient
        ({0.0: 20.0, 0.5: 20.4, 1.0: 19.0}, 0.5, 1.0),
        ({0.0: 20.0, 0.5: float("inf"), 1.0: 20.1}, 1.0, 1.0),
    ],
)
def test_the_rule_admits_perplexity_up_to_half_a_point_above_the_start(
    perplexities, lowest, largest
):
    targets = {0.0: 0.9, 0.5: 0.2, 1.0: 0.2}
    curve = {alpha: {"t": targets[alpha], "c": value} for alpha, value in perplexities.items()}
    answers = {"zero_shot": Answer(selection={0.0: {"c": 20.0}})}
    for kind, expected in (("lowest_target", lowest), ("largest_feasible", largest)):
        rule = Rule(kind=kind, perplexity_tolerance=0.5)
        assert choose(rule, curve, ["t"], "c", answers) == expected, kind
    assert Keeps("c", 20.5, below=True).admits(20.5) and not Keeps("c", 20.5, below=True).admits(
        float("nan")
    )
    with pytest.raises(
        NoFeasibleCoefficientError, match=r"perplexity on c at 20\.5000 or less .*add 0 to"
    ):
        choose(rule, {1.0: {"t": 0.1, "c": 21.0}}, ["t"], "c", answers)


def test_an_analogy_learns_nothing_of_its_target(run):
    outcome = run("suite=mini_sentiment", *SHIPPED["mini_sentiment"])
    stages = {stage.label for stage in outcome.result.stages}
    assert set(rows(outcome)) == {
        "zero_shot", "individual", "auxiliary", "auxiliary_alpha_1", "analogy", "analogy_alpha_1",
    }  # fmt: skip
    assert {f"vector {task}" for task in outcome.result.config["suite"]["tasks"]} <= stages
    assert rows(outcome)["analogy"].selected_on == "val"


# --- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_predictions_do_not_depend_on_batch_size_or_padding(lms, name, monkeypatch):
    backbone = lookup("backbone", MODELS[name][0]).schema(
        kind=MODELS[name][0],
        model=f"{lms}/models/{name}",
        tokenizer="pkg://mini_lm_tokenizer",
        start_token="<|end|>",
    )
    prompt = Prompt(["negative", "positive"], (), "Sentiment:")
    model, texts = (
        backbone.load("cpu"),
        ["fine", "a long and rather dull film about a boat", "so bad", "well made"],
    )
    inputs = backbone.tokenize([("Review: ", text, "\nSentiment:") for text in texts])
    labels, head = torch.tensor([1, 0, 0, 1]), backbone.heads({"t": prompt})["t"]
    given = Given(model, {("t", "test"): world.view(inputs, labels, head)})
    objective = CrossEntropy()

    def loss(rows: torch.Tensor, labels: torch.Tensor) -> float:
        batch = Batch(rows, {"t": slice(0, len(rows))}, {"t": labels})
        return objective.loss(
            lambda _, x: given.evaluator.scores(x, head, model.parameters), batch, {}
        ).item()

    alone = [loss(inputs[i : i + 1], labels[i : i + 1]) for i in range(4)]
    wider = torch.nn.functional.pad(inputs, (0, 7), value=-1)
    left = torch.stack([row.roll(int((row < 0).sum())) for row in inputs])
    for changed in (inputs, wider, left):
        assert loss(changed, labels) == pytest.approx(sum(alone) / 4, abs=1e-5)

    def predicted() -> torch.Tensor:
        need = Examples("t", "test", "report", labels=True)
        found, _ = given.evaluator.predictions(
            Scaled(model.parameters, TaskVector({})), [need], [0.0]
        )
        return found[0.0][need]

    whole = predicted()
    monkeypatch.setattr(walk, "TEXTS", 1)
    assert predicted().equal(whole)


def read_aloud(lms):
    """A tiny causal model and three texts."""
    backbone = lookup("backbone", "causal").schema(
        kind="causal",
        model=f"{lms}/models/tiny_gpt2",
        tokenizer="pkg://mini_lm_tokenizer",
        start_token="<|end|>",
    )
    texts = ("Call me Ishmael.", "Some years ago", "never mind how")
    return backbone.load("cpu"), backbone.tokenize([("", text, "") for text in texts])


def surprises(model, inputs, tau, alphas, *, tangent: bool = False, bf16: bool = False) -> dict:
    """The likelihood of each text by coefficient."""
    need = Examples("corpus", "test", "report")
    composition = Scaled(model.parameters, tau)
    composition.forward = "tangent" if tangent else "standard"
    found, excluded = Evaluator(model, lambda _: world.view(inputs), bf16=bf16).surprise(
        composition, need, alphas
    )
    assert not excluded
    return found


def test_perplexity_is_that_of_the_text_token_by_token(lms):
    from transformers import AutoModelForCausalLM

    model, inputs = read_aloud(lms)
    found = surprises(model, inputs, TaskVector({}), [0.0])[0.0]
    theirs, nll, count = (
        AutoModelForCausalLM.from_pretrained(lms / "models/tiny_gpt2").eval(),
        0.0,
        0,
    )
    for row in inputs:
        ids = row[row >= 0].long()[None]
        with torch.no_grad():
            nll += theirs(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert found[:, 1].sum() == count
    assert perplexity(found) == pytest.approx(torch.tensor(nll / count).exp().item(), rel=1e-5)


def test_perplexity_of_the_linearised_model_takes_one_jvp_for_all_coefficients(lms, monkeypatch):
    """Against states along a finite difference in float64."""
    model, inputs = read_aloud(lms)
    tau, alphas = (
        TaskVector({n: 0.05 * torch.randn_like(p) for n, p in model.parameters.items()}),
        [0.0, 0.4, 1.0],
    )
    states_of, seen = type(model).token_states, []
    monkeypatch.setattr(
        type(model), "token_states", lambda *given: seen.append(1) or states_of(*given)
    )
    found = surprises(model, inputs, tau, alphas, tangent=True)
    assert len(seen) == 1

    def exact(step):
        return states_of(
            model, {n: p.double() + step * tau[n] for n, p in model.parameters.items()}, inputs
        )

    with torch.no_grad():
        derivative = (exact(1e-4) - exact(-1e-4)) / 2e-4
        for alpha, documents in found.items():
            states = (exact(0) + alpha * derivative).float()
            want = -model.token_log_probs(states, inputs).double().sum(1)
            torch.testing.assert_close(documents[:, 0], want, rtol=1e-4, atol=1e-4)
        still = surprises(model, inputs, TaskVector({}), [0.7], tangent=True)[0.7]
        torch.testing.assert_close(still, found[0.0], rtol=1e-5, atol=1e-5)
    half = surprises(model, inputs, tau, alphas, tangent=True, bf16=True)
    assert half[0.4].dtype == torch.float64 and not half[0.4].equal(found[0.4])
    assert perplexity(half[0.4]) == pytest.approx(perplexity(found[0.4]), rel=0.02)
    # weights that are not affine in the coefficient: a jvp each
    monkeypatch.setattr(Scaled, "direction", lambda self, task=None: None)
    for alpha, documents in surprises(model, inputs, tau, alphas, tangent=True).items():
        torch.testing.assert_close(documents, found[alpha], rtol=1e-4, atol=1e-4)


# --- malformed input ------------------------------------------------------------------------------------------------


@pytest.fixture
def own(lms: Path, tmp_path: Path):
    """Write a task of the user's and return the overrides that run it."""

    def write(
        columns: dict | None = None, names: tuple[str, ...] | None = ("no", "yes"), **settings
    ) -> list[str]:
        given = {
            "text": [f"a text {i}" for i in range(20)],
            "label": [i % 2 for i in range(20)],
        } | (columns or {})
        table = pa.table({name: cells for name, cells in given.items() if cells is not None})
        features = {"label": {"_type": "ClassLabel", "names": list(names or ())}}
        if names:
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        folder = tmp_path / "data"
        folder.mkdir()
        for split in ("train", "val", "test"):  # no two of which may be the same file
            own = table.append_column("split", pa.array([split] * len(table)))
            parquet.write_table(own, folder / f"{split}.parquet")
        (lms / "task").mkdir(exist_ok=True)
        (lms / "task" / "own.yaml").write_text(
            yaml.safe_dump({"path": str(folder), "frame": "{text}"} | settings)
        )
        return ["suite=minitext6", "suite.tasks=[own]", "backbone=tiny_gpt2"]

    return write


MALFORMED = [
    ({"columns": {"text": None}}, "has no column 'text' (it has label, split)"),
    ({"columns": {"text": [*["fine"] * 19, "  "]}}, "row 19 of"),
    ({"columns": {"text": [*["fine"] * 3, None, *["fine"] * 16]}}, "row 3 of"),
    ({"columns": {"text": list(range(20))}}, "column 'text' holds int64, not text"),
    ({"columns": {"label": [2] * 20}}, "has label 2, but the task has 2 classes"),
    (
        {"columns": {"label": ["maybe"] * 20}, "names": None, "classes": ["no", "yes"]},
        "has label 'maybe', but the task has 2",
    ),
    ({"columns": {"label": [0.5] * 20}}, "has label 0.5, but the task has 2 classes"),
    (
        {"columns": {"label": [7.0] * 20}, "metric": "pearson", "words": ["no", "half", "yes"]},
        "scores from 0 to 2",
    ),
    ({"metric": "pearson"}, "a regression needs a word for each score"),
    ({"metric": "acuracy"}, "task/own.yaml: metric: Input should be 'accuracy'"),
    ({"words": ["bad", "good", "best"]}, "3 words for 2 classes"),
    (
        {"words": ["yes", "yes please"]},
        "the label words 'yes' and 'yes please' share their first token",
    ),
    ({"frame": "Text:"}, "frame 'Text:' must contain {text} exactly once"),
]


@pytest.mark.parametrize(("change", "said"), MALFORMED, ids=[said[:40] for _, said in MALFORMED])
def test_a_malformed_task_is_one_line_and_exit_2(own, tmp_path, capsys, change, said):
    assert refused([*own(**change), f"outputs={tmp_path}/out"], capsys).count(said) == 1
    assert not (tmp_path / "out/runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backbone=mini_clip_s", "suite=minitext6"], "suite=minitext6 holds texts, backbone=mini_clip_s reads images"),
        (["backbone=tiny_gpt2", "suite=mini8"], "suite=mini8 holds images, backbone=tiny_gpt2 reads texts"),
        (["backbone=tiny_roberta", "suite=minitext6", "protocol=negation"], "gives no probability of a text; take a"),
        (["backbone=tiny_roberta", "suite=mini_sentiment", *ANALOGY], "would learn a head from them"),
        (["backbone=tiny_roberta", "suite=minitext6", *HELD_OUT], "would learn a head from them"),
        (["backbone=tiny_t5", "suite=glue8", "suite.data_dir=/nowhere"], "task cola needs the folder /nowhere/nyu-mll"),
        (["backbone=tiny_t5", "suite=minitext6", "suite.tasks=[glosses]"], "'glosses' is a corpus without labels"),
    ],
)  # fmt: skip
def test_components_that_do_not_go_together_are_one_line_and_exit_2(
    lms, tmp_path, capsys, words, said
):
    assert said in refused([*words, f"outputs={tmp_path}/out"], capsys)


def refused(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """Return the one line with which the command refuses its input."""
    capsys.readouterr()
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_one_of_two_texts_may_be_empty(own):
    pair = ["", *["fine"] * 19]
    words = own(columns={"text": ["why?"] * 20, "other": pair}, pair="other", frame="{text} {pair}")
    config = compose.resolve(compose.compose(words))
    found = tokenise_split(
        "own",
        config.suite.definitions["own"],
        "test",
        lambda rows: torch.zeros(len(rows), 1),
        framed=True,
    )
    assert len(found["labels"]) == 20
    assert TextTask(path="p", pair="b", frame="{pair} then {text}").columns == ("text", "b")
