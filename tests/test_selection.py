"""Choosing coefficients and summing up answers, against tables made by hand."""

from __future__ import annotations

import pytest
import torch
import world
from asked import Given, ask, changed, tuned
from pydantic import ValidationError

from taskvec.data.tasks import ImageSuite
from taskvec.errors import NoFeasibleCoefficientError, UserError
from taskvec.merge.base import UNIT_GRID as GRID
from taskvec.merge.task_arithmetic import TaskArithmetic
from taskvec.models.base import Model
from taskvec.needs import Drawn
from taskvec.protocols.addition import Addition
from taskvec.protocols.analogy import Analogy
from taskvec.protocols.base import Answer, Cell
from taskvec.protocols.negation import Negation
from taskvec.protocols.questions.scores import Scores
from taskvec.protocols.selection import (
    Keeps,
    Rule,
    choose,
    highest_accuracy,
    highest_normalised,
    largest_feasible,
    lowest_target,
)
from taskvec.protocols.summing import individual, zero_shot
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Scaled


def test_the_grid_is_the_papers_21_points():
    assert len(GRID) == 21
    assert [str(alpha) for alpha in GRID] == [str(round(i / 20, 2)) for i in range(21)]
    assert TaskArithmetic.grid == GRID


# --- rules ----------------------------------------------------------------------------------------------------------

OWN = {"a": 0.8, "b": 0.5}


@pytest.mark.parametrize(
    ("curve", "best"),
    [
        ({0.0: (0.4, 0.4), 0.5: (0.6, 0.5), 1.0: (0.8, 0.2)}, 0.5),
        ({0.0: (0.4, 0.5), 0.5: (0.8, 0.25), 1.0: (0.0, 0.25)}, 0.0),  # 1.5 / 2 twice: the smallest
        # Whatever the order of the table
        ({1.0: (0.8, 0.25), 0.5: (0.4, 0.5), 0.0: (0.0, 0.0)}, 0.5),
        ({0.0: (0.5, 0.35), 0.5: (0.6, 0.3), 1.0: (0.0, 0.0)}, 0.5),  # the mean of ratios ...
        # ... not the ratio of means, which ties
        ({0.0: (0.6, 0.3), 0.5: (0.55, 0.35), 1.0: (0.0, 0.0)}, 0.5),
        ({0.0: (0.0, 0.0), 0.5: (0.0, 0.0), 1.0: (0.0, 0.0)}, 0.0),
        # Better than the individual models
        ({0.0: (0.9, 0.6), 0.5: (0.95, 0.7), 1.0: (0.9, 0.7)}, 0.5),
    ],
)
def test_addition_takes_the_highest_mean_normalised_accuracy(curve, best):
    table = {alpha: dict(zip("ab", values, strict=True)) for alpha, values in curve.items()}
    expected = max(
        sorted(table), key=lambda x: round((table[x]["a"] / 0.8 + table[x]["b"] / 0.5) / 2, 12)
    )
    assert expected == best
    assert highest_normalised(table, OWN) == best


def test_an_individual_accuracy_of_zero_is_named():
    table = {0.0: {"a": 0.1, "b": 0.1}}
    with pytest.raises(NoFeasibleCoefficientError, match=r"undefined: b has individual accuracy 0"):
        highest_normalised(table, {"a": 0.5, "b": 0.0})


CONTROL = {  # alpha: (target, control)
    0.0: (0.9, 0.60),
    0.25: (0.5, 0.58),
    0.5: (0.3, 0.57),
    0.75: (0.3, 0.57),
    1.0: (0.1, 0.50),
}


@pytest.mark.parametrize(
    ("floor", "lowest", "largest"),
    [
        (0.57, 0.5, 0.75),  # equality keeps 0.5 and 0.75; the lowest target is a tie
        (0.5701, 0.25, 0.25),
        (0.60, 0.0, 0.0),
        (0.0, 1.0, 1.0),
        (0.50, 1.0, 1.0),
    ],
)
def test_negation_rules_keep_the_control(floor, lowest, largest):
    table = {
        alpha: {"t": target, "c": control} for alpha, (target, control) in reversed(CONTROL.items())
    }
    assert lowest_target(table, "t", Keeps("c", floor)) == lowest
    assert largest_feasible(table, "t", Keeps("c", floor)) == largest


def test_the_two_negation_rules_differ_where_the_target_recovers():
    table = {0.0: {"t": 0.9, "c": 1.0}, 0.5: {"t": 0.1, "c": 1.0}, 1.0: {"t": 0.4, "c": 1.0}}
    assert lowest_target(table, "t", Keeps("c", 0.95)) == 0.5
    assert largest_feasible(table, "t", Keeps("c", 0.95)) == 1.0


@pytest.mark.parametrize("rule", [lowest_target, largest_feasible])
def test_no_feasible_coefficient_is_an_error_with_the_numbers_and_the_remedy(rule):
    table = {0.5: {"t": 0.3, "c": 0.41}, 1.0: {"t": 0.1, "c": 0.2}}
    with pytest.raises(
        NoFeasibleCoefficientError,
        match=r"control accuracy on c at 0\.4200 .*best 0\.4100.*add 0 to",
    ):
        rule(table, "t", Keeps("c", 0.42))


@pytest.mark.parametrize(
    ("curve", "best"),
    [
        ({0.0: 0.1, 0.5: 0.4, 1.0: 0.4}, 0.5),
        ({1.0: 0.4, 0.5: 0.4, 0.0: 0.4}, 0.0),
        ({0.0: 0.1, 1.0: 0.2}, 1.0),
    ],
)
def test_analogies_take_the_highest_accuracy_and_the_smallest_of_equals(curve, best):
    assert highest_accuracy({alpha: {"t": value} for alpha, value in curve.items()}, ["t"]) == best


def reply(
    report: dict, selection: dict | None = None, alpha: float | None = None, rule: str | None = None
) -> Answer:
    return Answer(alpha=alpha, rule=rule, selection=selection or {}, report=report)


def test_choose_reads_the_rule_and_what_it_needs_from_validation():
    table = {alpha: {"t": target, "c": control} for alpha, (target, control) in CONTROL.items()}
    # 95 % of 0.6 is 0.57; test is not read
    zero = reply({0.0: {"t": 0.9, "c": 0.1}}, {0.0: {"t": 0.9, "c": 0.6}})
    for kind, expected in (("lowest_target", 0.5), ("largest_feasible", 0.75)):
        rule = Rule(kind=kind, control_threshold=0.95)
        assert choose(rule, table, ["t"], "c", {"zero_shot": zero}) == expected
    need = {
        "individual/a": reply({1.0: {"a": 0.1}}, {1.0: {"a": 0.8}}),
        "individual/b": reply({1.0: {"b": 0.9}}, {1.0: {"b": 0.5}}),
    }
    pair = {0.0: {"a": 0.4, "b": 0.4}, 0.5: {"a": 0.6, "b": 0.5}, 1.0: {"a": 0.8, "b": 0.2}}
    assert choose(Rule(kind="highest_normalised"), pair, ["a", "b"], None, need) == 0.5
    assert choose(Rule(kind="highest_accuracy"), table, ["t"], None, {}) == 0.0
    with pytest.raises(ValidationError, match="highest_normalised"):
        Rule(kind="best")


# --- addition -------------------------------------------------------------------------------------------------------


def suite(*tasks: str, control: str | None = None) -> ImageSuite:
    return ImageSuite(kind="images", tasks=tasks, control=control)


def by_name(protocol, tasks: ImageSuite) -> dict[str, Cell]:
    """The cells of a protocol in a run with a joint transform, by name."""
    cells = protocol.cells(ask(protocol, tasks, joint=True))
    named = {cell.name: cell for cell in cells}
    assert len(named) == len(cells)
    return named


def test_addition_asks_for_the_base_each_model_and_the_merge():
    protocol, tasks = Addition(kind="addition"), suite("a", "b")
    cells = by_name(protocol, tasks)
    assert list(cells) == ["zero_shot", "individual/a", "individual/b", "merged"]
    assert cells["zero_shot"] == zero_shot(protocol, tasks, ("a", "b"))
    assert cells["individual/b"] == individual(protocol, tasks, "b", tuned("b"))
    assert cells["individual/b"].composed.vectors == ((1.0, tuned("b")),)
    merged, question = cells["merged"], cells["merged"].question
    assert merged.composed.vectors == ((1.0, changed("a", "ab")), (1.0, changed("b", "ab")))
    assert question.targets == ("a", "b") and question.control is None
    assert (
        question.grid == GRID
        and question.fixed == (1.0,)
        and question.rule == Rule(kind="highest_normalised")
    )
    assert merged.composed.merge and not cells["individual/a"].composed.merge
    assert dict(merged.needs) == {name: cells[name] for name in ("individual/a", "individual/b")}


def test_addition_of_subsets_asks_for_every_combination():
    cells = by_name(Addition(kind="addition", subset_size=2, joint=True), suite("a", "b", "c"))
    merged = {name: cell for name, cell in cells.items() if name.startswith("merged")}
    assert list(merged) == ["merged/a+b", "merged/a+c", "merged/b+c"]
    assert [cell.question.targets for cell in merged.values()] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    pair = merged["merged/a+c"]
    # B is not looked at
    assert pair.composed.vectors == ((1.0, changed("a", "ac")), (1.0, changed("c", "ac")))
    assert set(dict(pair.needs)) == {"individual/a", "individual/c"}
    joint, question = cells["joint"], cells["joint"].question
    assert joint.composed.vectors == ((1.0, tuned("a", "b", "c")),) and not joint.composed.merge
    assert (
        question.targets == ("a", "b", "c") and question.fixed == (1.0,) and question.rule is None
    )


SINGLES = {
    "individual/a": reply({1.0: {"a": 0.8}}, {1.0: {"a": 0.9}}),
    "individual/b": reply({1.0: {"b": 0.5}}, {1.0: {"b": 0.6}}),
    "individual/c": reply({1.0: {"c": 0.25}}, {1.0: {"c": 0.2}}),
}


def rows_of(report) -> dict:
    rows = {row.row: row for row in report.rows}
    assert len(rows) == len(report.rows)
    return rows


def criterion(report) -> tuple[str, float, str, str]:
    """What a sweep ranks a run by, and in which direction."""
    found = report.criterion
    return found.name, found.value, found.better, found.split


def test_addition_sums_up_absolute_and_normalised_accuracy():
    answers = SINGLES | {
        "zero_shot": reply(
            {0.0: {"a": 0.4, "b": 0.1, "c": 0.05}}, {0.0: {"a": 0.3, "b": 0.3, "c": 0.3}}
        ),
        "joint": reply({1.0: {"a": 0.8, "b": 0.45, "c": 0.25}}),
        "merged": reply(
            {0.3: {"a": 0.6, "b": 0.5, "c": 0.1}, 1.0: {"a": 0.2, "b": 0.1, "c": 0.0}},
            {0.3: {"a": 0.5, "b": 0.4, "c": 0.3}, 0.0: {"a": 0.1, "b": 0.2, "c": 0.3}},
            alpha=0.3,
            rule="highest_normalised",
        ),
    }
    report = Addition(kind="addition", joint=True).summarise(suite("a", "b", "c"), answers)
    rows = rows_of(report)
    assert list(rows) == ["zero_shot", "individual", "joint", "merged", "merged_alpha_1"]
    assert rows["individual"].values("normalised") == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert rows["individual"].mean("normalised") == 1.0
    assert rows["individual"].mean("accuracy") == pytest.approx((0.8 + 0.5 + 0.25) / 3)
    assert rows["individual"].cells == {task: f"individual/{task}" for task in "abc"}
    merged = rows["merged"]
    assert (
        merged.alpha == 0.3 and merged.selected_on == "val" and merged.rule == "highest_normalised"
    )
    assert merged.mean("accuracy") == pytest.approx(0.4)
    assert merged.values("normalised") == pytest.approx({"a": 0.75, "b": 1.0, "c": 0.4})
    assert merged.mean("normalised") == pytest.approx((0.75 + 1 + 0.4) / 3)
    assert merged.denominators == {"a": 0.8, "b": 0.5, "c": 0.25}  # of the test split
    at_one = rows["merged_alpha_1"]
    assert at_one.alpha == 1.0 and at_one.selected_on is None and at_one.rule is None
    assert at_one.mean("normalised") == pytest.approx((0.25 + 0.2 + 0) / 3)
    assert at_one.cells == merged.cells == {"all": "merged"}
    assert rows["zero_shot"].alpha == 0.0 and rows["zero_shot"].values("normalised")[
        "b"
    ] == pytest.approx(0.2)
    assert rows["joint"].mean("normalised") == pytest.approx((1 + 0.9 + 1) / 3)
    assert criterion(report) == ("merged/validation", pytest.approx(0.4), "higher", "val")
    assert [point["alpha"] for point in report.curves["merged"]] == [0.0, 0.3]
    assert report.curves["merged"][1] == {
        "alpha": 0.3,
        "mean": pytest.approx(0.4),
        "accuracy": {"a": 0.5, "b": 0.4, "c": 0.3},
    }


def test_rows_carry_the_validation_accuracy_at_their_own_coefficient():
    answers = {
        "zero_shot": reply({0.0: {"a": 0.4}}),
        "individual/a": reply({1.0: {"a": 0.8}}, {1.0: {"a": 0.7}}),
        "merged": reply(
            {0.5: {"a": 0.6}, 1.0: {"a": 0.1}}, {0.5: {"a": 0.5}, 1.0: {"a": 0.2}}, 0.5, "best"
        ),
    }
    rows = rows_of(Addition(kind="addition").summarise(suite("a"), answers))
    assert {name: row.values("validation") for name, row in rows.items()} == {
        "zero_shot": {}, "individual": {"a": 0.7}, "merged": {"a": 0.5}, "merged_alpha_1": {"a": 0.2},
    }  # fmt: skip


def test_an_individual_test_accuracy_of_zero_leaves_a_named_reason():
    answers = {
        "zero_shot": reply({0.0: {"a": 0.4}}),
        "individual/a": reply({1.0: {"a": 0.0}}, {1.0: {"a": 0.1}}),
        "merged": reply(
            {0.5: {"a": 0.2}, 1.0: {"a": 0.0}}, {0.5: {"a": 0.2}}, 0.5, "highest_normalised"
        ),
    }
    with pytest.raises(NoFeasibleCoefficientError, match="undefined: a has individual accuracy 0"):
        Addition(kind="addition").summarise(suite("a"), answers)


def test_addition_of_subsets_sums_up_each_and_their_mean():
    def merged(first: str, second: str, x: float, y: float) -> Answer:
        at = {first: x, second: y}
        return reply(
            {0.5: at, 1.0: {first: 0.0, second: 0.0}},
            {0.5: at},
            alpha=0.5,
            rule="highest_normalised",
        )

    answers = SINGLES | {
        "zero_shot": reply({0.0: {"a": 0.4, "b": 0.1, "c": 0.05}}),
        "merged/a+b": merged("a", "b", 0.8, 0.25),
        "merged/a+c": merged("a", "c", 0.4, 0.25),
        "merged/b+c": merged("b", "c", 0.5, 0.25),
    }
    report = Addition(kind="addition", subset_size=2).summarise(suite("a", "b", "c"), answers)
    rows = rows_of(report)
    assert [name for name in rows if "/" in name] == [
        "merged/a+b", "merged_alpha_1/a+b", "merged/a+c", "merged_alpha_1/a+c", "merged/b+c", "merged_alpha_1/b+c",
    ]  # fmt: skip
    means = [rows[name].mean("normalised") for name in ("merged/a+b", "merged/a+c", "merged/b+c")]
    assert means == pytest.approx([0.75, 0.75, 1.0])
    assert set(rows["merged/a+c"].values("accuracy")) == {"a", "c"}
    assert report.criterion.value == pytest.approx((0.525 + 0.325 + 0.375) / 3)  # of validation
    assert set(report.curves) == {"merged/a+b", "merged/a+c", "merged/b+c"}


def test_addition_refuses_subsets_larger_than_the_suite():
    Addition(kind="addition", subset_size=3).check(suite("a", "b", "c"))
    with pytest.raises(UserError, match=r"protocol\.subset_size: 4, but the suite has 3 tasks"):
        Addition(kind="addition", subset_size=4).check(suite("a", "b", "c"))


# --- negation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["lowest_target", "largest_feasible"])
def test_negation_asks_for_signed_random_and_ascent_models_with_the_control(rule):
    protocol = Negation(kind="negation", rule=rule, ascent=True, control_threshold=0.9, seed=5)
    cells = by_name(protocol, suite("a", "b", control="c"))
    assert list(cells) == [
        "zero_shot",
        *[
            f"{kind}/{task}"
            for task in "ab"
            for kind in ("individual", "negated", "random", "ascent")
        ],
    ]
    assert all(cell.question.control == "c" for cell in cells.values())
    negated, random, ascent = (cells[f"{kind}/b"] for kind in ("negated", "random", "ascent"))
    assert negated.composed.vectors == ((-1.0, changed("b", "ab")),)
    assert random.composed.vectors == ((1.0, Drawn(tuned("b"), 5)),)
    assert ascent.composed.vectors == ((1.0, tuned("b", ascend=True)),)
    for searched in (negated, random):
        question = searched.question
        assert question.targets == ("b",) and question.tasks() == ("b", "c")
        assert question.grid == GRID and question.rule == Rule(kind=rule, control_threshold=0.9)
        assert dict(searched.needs) == {"zero_shot": cells["zero_shot"]}
    assert negated.composed.merge and not random.composed.merge and not ascent.composed.merge
    assert cells["zero_shot"].question.on_selection
    assert ascent.question.fixed == (1.0,) and ascent.question.rule is None


@pytest.mark.parametrize(
    ("random", "ascent"), [(True, False), (False, False), (True, True), (False, True)]
)
def test_negation_sums_up_target_and_control_means(random, ascent):
    protocol = Negation(kind="negation", random=random, ascent=ascent)
    answers = {"zero_shot": reply({0.0: {"a": 0.5, "b": 0.3, "c": 0.6}})}
    for task, chosen, target, control in (("a", 0.4, 0.1, 0.58), ("b", 0.7, 0.2, 0.57)):
        answers[f"individual/{task}"] = reply(
            {1.0: {task: 0.9, "c": 0.4}}, {1.0: {task: 0.8, "c": 0.5}}
        )
        for name, shift in (("negated", 0.0), ("random", 0.2)):
            at = {task: target + shift, "c": control}
            answers[f"{name}/{task}"] = reply(
                {chosen: at}, {0.0: at, chosen: at}, chosen, "lowest_target"
            )
        answers[f"ascent/{task}"] = reply({1.0: {task: 0.02, "c": 0.01}})
    report = protocol.summarise(suite("a", "b", control="c"), answers)
    rows = rows_of(report)
    expected = ["zero_shot", "individual", "negated", *["random"] * random, *["ascent"] * ascent]
    assert list(rows) == expected
    assert rows["zero_shot"].mean("accuracy") == pytest.approx(0.4)
    assert rows["zero_shot"].values("control") == {"c": 0.6}
    assert rows["individual"].mean("accuracy") == pytest.approx(0.9)
    assert rows["individual"].mean("control") == pytest.approx(0.4)
    negated = rows["negated"]
    assert negated.values("accuracy") == {"a": 0.1, "b": 0.2}
    assert negated.values("control") == {"a": 0.58, "b": 0.57}  # under each target's model
    assert negated.mean("accuracy") == pytest.approx(0.15) and negated.mean(
        "control"
    ) == pytest.approx(0.575)
    assert negated.selected_on == "val" and negated.rule == "lowest_target"
    assert negated.alphas == {"a": 0.4, "b": 0.7} and negated.alpha == pytest.approx(0.55)
    if random:
        assert rows["random"].mean("accuracy") == pytest.approx(0.35)
    if ascent:
        assert (
            rows["ascent"].mean("accuracy") == pytest.approx(0.02) and rows["ascent"].alpha == 1.0
        )
        assert rows["ascent"].selected_on is None
    assert criterion(report) == ("negated/validation", pytest.approx(0.15), "lower", "val")
    assert report.curves["negated/b"][-1] == {
        "alpha": 0.7,
        "mean": 0.2,
        "accuracy": {"b": 0.2},
        "control": 0.57,
    }


def test_negation_needs_a_control():
    Negation(kind="negation").check(suite("a", control="c"))
    with pytest.raises(UserError, match="no control task; set suite.control=NAME"):
        Negation(kind="negation").check(suite("a"))


# --- analogy --------------------------------------------------------------------------------------------------------

ROLES = {"a": "p", "b": "q", "c": "r", "target": "s"}


def test_analogy_asks_for_c_plus_b_minus_a_on_the_target_alone():
    protocol = Analogy(kind="analogy", **ROLES)
    protocol.check(suite("p", "q", "r", "s"))
    cells = by_name(protocol, suite("p", "q", "r", "s"))
    assert list(cells) == ["zero_shot", "individual/s", "auxiliary", "analogy"]
    assert {cell.question.targets for cell in cells.values()} == {("s",)}
    signs = {vector: sign for sign, vector in cells["analogy"].composed.vectors}
    # Nothing of s
    assert signs == {changed("r", "pqr"): 1.0, changed("q", "pqr"): 1.0, changed("p", "pqr"): -1.0}
    assert cells["auxiliary"].composed.vectors == ((1.0, changed("r", "pqr")),)


def test_analogy_sums_up_with_errors_relative_to_the_tuned_target():
    def searched(alpha: float, best: float, at_one: float) -> Answer:
        return reply(
            {alpha: {"s": best}, 1.0: {"s": at_one}},
            {0.0: {"s": 0.1}, alpha: {"s": best}},
            alpha,
            "highest_accuracy",
        )

    answers = {
        "zero_shot": reply({0.0: {"s": 0.2}}),
        "individual/s": reply({1.0: {"s": 0.8}}, {1.0: {"s": 0.7}}),
        "auxiliary": searched(0.5, 0.4, 0.3),
        "analogy": searched(0.35, 0.6, 0.1),
    }
    report = Analogy(kind="analogy", **ROLES).summarise(suite("p", "q", "r", "s"), answers)
    rows = rows_of(report)
    assert list(rows) == [
        "zero_shot", "individual", "auxiliary", "auxiliary_alpha_1", "analogy", "analogy_alpha_1"
    ]  # fmt: skip
    assert [row.mean("accuracy") for row in rows.values()] == [0.2, 0.8, 0.4, 0.3, 0.6, 0.1]
    assert (
        rows["analogy"].mean("normalised") == pytest.approx(0.75) and rows["analogy"].alpha == 0.35
    )
    assert rows["individual"].mean("normalised") == 1.0
    assert criterion(report) == ("analogy/validation", 0.6, "higher", "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": "x"}, r"protocol\.a: 'x' is not in suite\.tasks \(p, q, r, s\)"),
        ({"target": "x"}, r"protocol\.target: 'x' is not in"),
        ({"target": "p"}, "a, b, c and target must be four different tasks"),
    ],
)
def test_analogy_refuses_other_than_four_tasks_of_the_suite(change, message):
    with pytest.raises(UserError, match=message):
        Analogy(kind="analogy", **(ROLES | change)).check(suite("p", "q", "r", "s"))


# --- answering ------------------------------------------------------------------------------------------------------


class Identity(Model):
    """A linear model whose features are W x; its head is the identity."""

    def __init__(self, weight: torch.Tensor):
        module = torch.nn.Linear(*weight.shape, bias=False).double()
        module.weight.data = weight.clone()
        super().__init__(module)

    def prepare(self, inputs):
        return (inputs,)

    def logits(self, features, head, parameters=None):
        return features.to(head) @ head.T


@pytest.mark.parametrize("seed", [0, 99])
def test_an_answer_is_the_accuracy_of_each_composed_model(seed):
    """Against a loop over coefficients, splits and tasks with plain matrix products."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base, tau = normal(4, 4), normal(4, 4)
    model = Identity(base)
    data = {
        (t, split): world.view(
            normal(count, 4), torch.randint(4, (count,), generator=generator), torch.eye(4).double()
        )
        for split in ("val", "test")
        for t, count in (("t", 601), ("c", 37))
    }

    def accuracy(alpha: float, split: str, task: str) -> float:
        view = data[task, split]
        predicted = [(base + alpha * tau).matmul(x).argmax().item() for x in view.take(slice(None))]
        return sum(p == y for p, y in zip(predicted, view.labels().tolist(), strict=True)) / len(
            predicted
        )

    grid = (0.0, 0.5, 2.0)
    question = Scores(
        targets=("t",), control="c", grid=grid, fixed=(1.0,), rule=Rule(kind="highest_accuracy")
    )
    composition = Scaled(model.parameters, TaskVector({"weight": tau}))
    given = Given(model, data)
    found, masks = question.answer(given, composition, ())
    assert {(need.task, need.split) for need in given.asked} == set(data)
    assert set(given.asked) == set(question.needs(None))  # nothing that it did not declare
    assert found.selection == {a: {t: accuracy(a, "val", t) for t in ("t", "c")} for a in grid}
    assert found.alpha == max(grid, key=lambda a: accuracy(a, "val", "t"))
    assert found.report == {
        a: {t: accuracy(a, "test", t) for t in ("t", "c")} for a in {found.alpha, 1.0}
    }
    assert {name: mask.double().mean().item() for name, mask in masks.items()} == {
        f"correct/{a}/{t}": value for a, at in found.report.items() for t, value in at.items()
    }


def test_the_individual_model_is_its_own_denominator():
    """theta_0 + 1 * tau normalised by itself is exactly 1, whatever its accuracy."""
    cells = by_name(Addition(kind="addition"), suite("t"))
    for accuracy in (1 / 3, 0.7, 1.0):
        own = reply({1.0: {"t": accuracy}}, {1.0: {"t": 0.5}})
        answers = {"zero_shot": reply({0.0: {"t": 0.1}}), "individual/t": own}
        answers["merged"] = reply(
            {1.0: {"t": accuracy}}, {1.0: {"t": 0.5}}, 1.0, cells["merged"].question.rule.kind
        )
        rows = rows_of(Addition(kind="addition").summarise(suite("t"), answers))
        assert rows["individual"].mean("normalised") == rows["merged"].mean("normalised") == 1.0
