"""Metrics against their definitions, through stored predictions to selection, tables and intervals."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import world
from asked import Given

from taskvec.data.tasks import ImageTask, TextSuite, TextTask
from taskvec.errors import NoFeasibleCoefficientError, UserError
from taskvec.protocols.analysis import Analysis
from taskvec.protocols.disentanglement import Disentanglement
from taskvec.protocols.metrics import score
from taskvec.protocols.questions.scores import Scores
from taskvec.protocols.rows import Metric, Row
from taskvec.protocols.selection import Rule, highest_normalised
from taskvec.report.intervals import paired_difference
from taskvec.report.outcomes import Judged, Means
from taskvec.report.table import run_table
from taskvec.training.objectives.cross_entropy import CrossEntropy
from taskvec.training.walk import decide
from taskvec.vectors.composition import Composition

LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0, 1])
# 3 true positives, 1 false, 2 missed, 4 true negatives
FOUND = np.array([1, 1, 0, 0, 0, 1, 0, 1, 0, 0])


def test_classification_metrics_follow_their_definitions():
    tp, fp, fn, tn = 3, 1, 2, 4
    f1, f0 = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
    matthews = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    expected = {
        "accuracy": 0.7,
        "f1": f1,
        "f1_macro": (f1 + f0) / 2,
        "matthews": matthews,
        "accuracy_f1": (0.7 + f1) / 2,
    }
    for metric, value in expected.items():
        assert score(metric, LABELS, FOUND) == pytest.approx(value), metric
        assert score(metric, LABELS.astype(float), FOUND.astype(float)) == pytest.approx(value), (
            metric
        )
    assert score("f1", np.array([0, 1, 2, 1]), np.array([2, 1, 0, 2])) == pytest.approx(2 / 3), (
        "class 1 against the rest"
    )


def test_correlations_follow_their_definitions():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(size=50)
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    pearson, spearman = np.corrcoef(x, y)[0, 1], np.corrcoef(*ranks)[0, 1]
    assert score("pearson", x, y) == pytest.approx(pearson)
    assert score("spearman", x, y) == pytest.approx(spearman)
    assert score("pearson_spearman", x, y) == pytest.approx((pearson + spearman) / 2)
    assert score("pearson_spearman", x, 3 * x + 1) == pytest.approx(1)


@pytest.mark.parametrize("metric", ["matthews", "f1", "pearson", "spearman", "pearson_spearman"])
def test_a_model_that_always_says_the_same_scores_zero(metric):
    labels = np.array([0.0, 1.0, 1.0, 0.0])
    assert score(metric, labels, np.zeros(4)) == 0
    assert score("pearson", labels, np.array([1.0, np.nan, 0.0, 2.0])) == 0


def test_an_unknown_metric_is_an_error():
    with pytest.raises(ValueError, match="unknown metric 'auc'"):
        score("auc", LABELS, FOUND)


def test_a_score_is_the_one_output_or_the_mean_under_the_words_softmax():
    one = torch.tensor([[0.3], [4.1]])
    assert decide(one, scores=True).tolist() == pytest.approx([0.3, 4.1])
    words = torch.log(torch.tensor([[0.1, 0.2, 0.7], [1.0, 1e-9, 1e-9]]))
    assert decide(words, scores=True).tolist() == pytest.approx([1.6, 0.0], abs=1e-6)
    assert decide(words, scores=False).tolist() == [2, 0]


def test_a_regression_is_learned_by_squared_error_or_as_the_nearest_word():
    scores, targets = torch.tensor([[0.5], [2.0]]), torch.tensor([1.0, 3.5])
    batch = SimpleNamespace(
        rows={"t": slice(0, 2)}, inputs=torch.zeros(2), labels={"t": targets}, size=2
    )
    assert CrossEntropy().loss(lambda *_: scores, batch, {}).item() == pytest.approx(
        (0.25 + 2.25) / 2
    )
    logits = torch.randn(2, 6)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 4]))
    assert CrossEntropy().loss(lambda *_: logits, batch, {}).item() == pytest.approx(
        expected.item()
    )


class Echo:
    """A model whose logits are its inputs scaled by one weight, plus the first class's bias."""

    module = None
    parameters = {"w": torch.zeros(1)}

    def features(self, parameters, inputs, head):
        return inputs * parameters["w"]

    def logits(self, features, head, parameters=None):
        return features


class Line(Composition):
    """theta(alpha) = alpha."""

    def parameters(self, alpha, task=None):
        return {"w": torch.tensor([alpha])}


def test_an_answer_holds_each_tasks_metric_and_what_it_was_computed_from():
    logits = torch.stack([torch.zeros(10), torch.tensor(FOUND * 2.0 - 1)], dim=1)
    views = {
        "plain": world.view(logits, torch.tensor(LABELS), None),
        "judged": world.view(logits, torch.tensor(LABELS), None),
        "scored": world.view(torch.arange(10.0)[:, None], torch.arange(10.0) * 2 + 1, None),
    }
    metrics = (("judged", "matthews"), ("scored", "pearson_spearman"))
    rule = Rule(kind="highest_accuracy")
    question = Scores(
        targets=tuple(views), grid=(-1.0, 1.0), rule=rule, fixed=(1.0,), metrics=metrics
    )
    given = Given(
        Echo(), {(task, split): view for task, view in views.items() for split in ("val", "test")}
    )
    found, tensors = question.answer(given, Line(), ())
    expected = {"plain": 0.7, "judged": score("matthews", LABELS, FOUND), "scored": 1.0}
    assert found.report[1.0] == pytest.approx(expected)
    assert found.selection[-1.0]["judged"] == pytest.approx(-expected["judged"])
    assert found.selection[-1.0]["scored"] == pytest.approx(-1.0)
    assert tensors["correct/1.0/plain"].dtype == torch.bool
    assert tensors["predicted/1.0/judged"].tolist() == np.stack([LABELS, FOUND], 1).tolist()
    assert set(tensors) == {"correct/1.0/plain", "predicted/1.0/judged", "predicted/1.0/scored"}


@pytest.mark.parametrize("value", [0.0, -0.2])
def test_normalising_by_a_metric_that_is_not_positive_is_refused(value):
    with pytest.raises(
        NoFeasibleCoefficientError,
        match=f"cola has individual accuracy {value:.3g}; fine-tune it better",
    ):
        highest_normalised({1.0: {"cola": 0.1}}, {"cola": value})


def test_intervals_resample_the_metric():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    models = [np.where(rng.random(300) < rate, labels, 1 - labels) for rate in (0.9, 0.7)]
    first, second = ({"t": Judged("data", "matthews", labels, found)} for found in models)
    found = paired_difference([first], [second], resamples=60)
    exact = score("matthews", labels, models[0]) - score("matthews", labels, models[1])
    assert found.mean == pytest.approx(exact)
    assert found.low < exact < found.high and found.high - found.low < 0.5
    assert paired_difference([first], [first], resamples=5) == (0, 0, 0)
    masks = [
        {"t": Judged("data", "accuracy", labels, model), "u": Means("data", model == labels)}
        for model in models
    ]
    both = paired_difference(masks[:1], masks[1:], resamples=60)
    assert both.mean == pytest.approx((models[0] == labels).mean() - (models[1] == labels).mean())


def test_a_table_names_the_metrics_that_are_not_accuracy():
    accuracy = Metric(values={"cola": 0.4, "rte": 0.6}, mean=0.5, by_task={"cola": "matthews"})
    result = SimpleNamespace(
        rows=[Row(row="merged", alpha=0.5, metrics={"accuracy": accuracy})], config={}
    )
    head = run_table(result).splitlines()[0]
    assert "cola (matthews)" in head and "rte" in head and "rte (" not in head


def test_questions_about_predicted_classes_refuse_scores():
    scored = TextTask(path="p", metric="pearson", words=("low", "high"))
    suite = TextSuite(tasks=("a", "b"), definitions={"a": scored, "b": TextTask(path="p")})
    for protocol in (Disentanglement(), Analysis(questions=("kernel_regime",))):
        with pytest.raises(
            UserError, match="compares predicted classes; leave a out of suite.tasks"
        ):
            protocol.check(suite)
    Analysis().check(suite)


def test_definitions_of_scores_are_checked():
    with pytest.raises(ValueError, match="a regression needs a word for each score"):
        TextTask(path="p", metric="pearson")
    with pytest.raises(ValueError, match="leave 'classes' and 'keep' out"):
        TextTask(path="p", metric="pearson", words=("low", "high"), keep=("low",))
    with pytest.raises(ValueError, match="pearson is for texts; images are classified"):
        ImageTask(path="p", metric="pearson", templates=("a {}",))
