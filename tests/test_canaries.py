"""Components compute what is on record for their version, and the record notices changes of what they stand on."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator

import canaries
import pytest
import torch

from taskvec import registry

# Components that need a run to say anything: the golden runs and tests of their own watch them.
WATCHED_ELSEWHERE = {
    "finetune": {"stored"},
    "merge": {"adamerging", "atlas", "fisher", "none", "norms", "regmean", "regmean_pp"},
    "question": {"harness", "pseudo_labels"},
    "objective": {"negation", "sar", "simclr", "ufm"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def failing() -> set[str]:
    """The canaries whose numbers are not those on record."""
    known = canaries.records()
    return {
        name
        for name in canaries.CANARIES
        if not canaries.agree(known[name]["numbers"], canaries.numbers_of(name))
    }


@pytest.mark.parametrize("name", canaries.CANARIES)
def test_a_component_computes_what_is_on_record(name):
    record = canaries.records().get(name)
    remedy = f"raise its version and run `python tests/canaries.py --record {name}`"
    assert record is not None, f"no record of {name}: {remedy}"
    assert record["version"] == canaries.version_of(name), (
        f"the version of {name} is not on record: {remedy}"
    )
    assert canaries.agree(record["numbers"], canaries.numbers_of(name)), (
        f"{name} computes something else: {remedy}"
    )


def test_every_component_has_a_canary():
    for group in ("finetune", "merge", "statistic", "question", "objective"):
        known = {name.split("/")[1] for name in canaries.CANARIES if name.startswith(f"{group}/")}
        builtin = {entry.name for entry in registry.entries(group) if entry.schema.code is None}
        assert builtin - known <= WATCHED_ELSEWHERE.get(group, set())


def scaled(function: Callable, factor: float = 1.05) -> Callable:
    """Return a function whose result is a little larger."""

    def changed(*arguments, **named):
        found = function(*arguments, **named)
        return (
            tuple(factor * part for part in found) if isinstance(found, tuple) else factor * found
        )

    return changed


def starting(*prefixes: str) -> set[str]:
    """The canaries whose names start with a prefix."""
    return {name for name in canaries.CANARIES if name.startswith(prefixes)}


TANGENT_TRAINING = {"finetune/tangent", "finetune/kfac", "finetune/tau_jp"}
PATCHES = {
    "collector": (
        "taskvec.statistics.passes.tokens.Tokens.rows",
        starting(
            "statistic/input_moments",
            "statistic/spectrum",
            "statistic/cross_moments",
            "statistic/curvature",
        )
        - {"statistic/curvature/diag_ggn"}
        | {"finetune/kfac"},
    ),
    "loop": ("taskvec.training.schedule.Schedule.rate", starting("finetune/")),
    "jvp": (
        "taskvec.training.dual.layer_norm",
        {"question/drift/standard", "question/drift/tangent"}
        | {f"question/disentanglement_{part}/tangent" for part in ("maps", "matrix")},
    ),
    "evaluator": ("taskvec.training.evaluator.Evaluator.scores", starting("finetune/")),
}


def patched(
    place: str, monkeypatch: pytest.MonkeyPatch, change: Callable[[Callable], Callable]
) -> None:
    """Replace a function by a changed one, wherever it is looked up."""
    import importlib

    module_name, name = place.rsplit(".", 1)
    try:
        owner = importlib.import_module(module_name)
    except ModuleNotFoundError:
        module_name, owner_name = module_name.rsplit(".", 1)
        owner = getattr(importlib.import_module(module_name), owner_name)
    original = getattr(owner, name)
    changed = change(original)
    monkeypatch.setattr(owner, name, changed)
    rules = getattr(owner, "RULES", {})
    for key in [key for key, rule in rules.items() if rule is original]:
        monkeypatch.setitem(rules, key, changed)


@pytest.mark.parametrize("what", PATCHES)
def test_a_changed_constant_fails_exactly_what_depends_on_it(what, monkeypatch):
    place, expected = PATCHES[what]
    if what == "jvp":
        patched(place, monkeypatch, slower)
    else:
        patched(place, monkeypatch, scaled)
    found = failing()
    # Labels are coarse
    possible = {name for name in expected if name.startswith("question/disentanglement_matrix")}
    assert expected - possible <= found <= expected


def slower(rule: Callable) -> Callable:
    """Return a rule of forward-mode differentiation whose derivative is a little off."""
    from taskvec.training.dual import dual, parts

    def changed(*arguments, **named):
        value, tangents = parts(rule(*arguments, **named))
        return value if tangents is None else dual(value, 1.05 * tangents)

    return changed


def test_a_changed_selection_rule_fails_its_own_canary_alone(monkeypatch):
    from taskvec.protocols import selection

    monkeypatch.setattr(selection, "lowest_target", lambda curve, target, keeps: 1.0)
    assert failing() == {"rule/lowest_target"}


def test_a_renamed_variable_fails_none(monkeypatch):
    from taskvec.training import schedule

    source = textwrap.dedent(inspect.getsource(schedule.Schedule.rate))
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "warmup":
            node.id = "ramp"
    renamed: dict[str, Callable] = {}
    exec(
        compile(ast.unparse(tree).replace("self.ramp", "self.warmup"), "renamed", "exec"),
        vars(schedule),
        renamed,
    )
    assert "ramp" in renamed["rate"].__code__.co_varnames
    monkeypatch.setattr(schedule.Schedule, "rate", renamed["rate"])
    assert failing() == set()
