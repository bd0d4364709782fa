"""Result files: what they can hold, how old ones are read, and that a broken one harms nobody."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskvec.config import Component, Config, immaterial, immaterial_keys
from taskvec.errors import UserError
from taskvec.graph import encoding
from taskvec.graph.encoding import decode, encode
from taskvec.graph.result import Result, read_result
from taskvec.protocols.rows import Criterion, Metric, Row, metric
from taskvec.report import intervals
from taskvec.report.compare import compare
from taskvec.report.figures import draw
from taskvec.report.panels import panels
from taskvec.report.records import records
from taskvec.report.runs import Run, find_results
from taskvec.report.table import report_lines, run_table, table
from taskvec.text import printable

OLD = Path(__file__).resolve().parent / "fixtures" / "results_1"
PRINTED = json.loads((OLD / "printed.json").read_text())
INF = math.inf


def made(**parts) -> Result:
    rows = (Row(row="merged", metrics={"accuracy": metric({"a": 0.5})}),)
    criterion = Criterion(name="validation", value=0.5)
    return Result(
        **{
            "run_id": "r",
            "fingerprint": "f",
            "config": {"seed": 0},
            "rows": rows,
            "criterion": criterion,
        }
        | parts
    )


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_what_is_infinite_by_nature_is_stored_and_shown(tmp_path: Path):
    perplexity = Metric(values={"a": INF, "b": 3.5}, mean=INF, unit="perplexity", better="lower")
    result = made(
        rows=(Row(row="merged", metrics={"perplexity": perplexity}),),
        curves={"merged": [{"alpha": 1.0, "perplexity": INF}]}, maps={"m": {"matrix": [[-INF, 1.0]]}},
        reports={"pave": {"condition": INF, "named": {"float": "inf-"}, "words": ["inf", "nan"]}},
    )  # fmt: skip
    path = tmp_path / "result.json"
    path.write_text(result.to_json())
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read_result(path) == result
    assert "| inf" in table([result], ["row"], ["metric"]) and "inf |" in run_table(result)
    assert report_lines(result) == ["pave: condition inf"]


@pytest.mark.parametrize("parts", [
    {"rows": (Row(row="m", metrics={"accuracy": Metric(mean=math.nan)}),)},
    {"curves": {"m": [{"alpha": 0, "mean": math.nan}]}}, {"reports": {"pave": {"ranks": [1.0, math.nan]}}},
    {"maps": {"m": {"x": {"y": math.nan}}}}, {"criterion": Criterion(name="c", value=math.nan)},
])  # fmt: skip
def test_what_is_not_a_number_is_never_stored(parts):
    with pytest.raises(ValueError, match="is not a number"):
        made(**parts)


def test_nan_in_a_file_is_refused(tmp_path: Path):
    for text in (made().to_json().replace("0.5", "NaN"), made().to_json().replace("0.5", '"nan"')):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(UserError, match=r"result\.json: .*(NaN|not a number)"):
            read_result(tmp_path / "result.json")
    with pytest.raises(ValueError, match=r"a\[1\]\.b is not a number"):
        encode({"a": [1, {"b": math.nan}]})


def test_encoding_is_exact_on_random_values():
    rng = random.Random(5)

    def value(depth: int) -> Any:
        leaves = [rng.random(), INF, -INF, rng.randrange(9), "inf", '{"[', "ü\n", None, True]
        if depth and rng.random() < 0.7:
            return rng.choice(
                [[value(depth - 1) for _ in range(3)], {str(i): value(depth - 1) for i in range(3)}]
            )
        return rng.choice(leaves)

    for _ in range(50):
        original = value(4)
        assert decode(encode(original).encode()) == original


# --- identity ---------------------------------------------------------------------------------------------------------


def test_what_cannot_change_a_result_is_declared_at_the_field():
    class Compute(Config):
        device: str = immaterial("cpu")
        precision: str = "fp32"

    class Halve(Component):
        kind: str = "halve"
        workers: int = immaterial(1)

    class Whole(Config):
        compute: Compute = Compute()
        transform: dict[str, Component] = {"halve": Halve()}
        tracker: dict[str, str] = immaterial({"kind": "none"})

    keys = immaterial_keys(Whole())
    assert keys == ["compute.device", "transform.halve.workers", "tracker"]
    config = {"compute": {"device": "cpu", "precision": "fp32"}, "tracker": {"kind": "wandb"}}
    one = made(config=config, immaterial=keys)
    other = json.loads(json.dumps(config).replace('"cpu"', '"cuda"').replace("wandb", "none"))
    assert one.same_as(made(config=other)) is False, "without the declaration"
    assert one.same_as(made(config=other, immaterial=keys, timing={"wall_s": 1}))
    assert not one.same_as(made(config=config | {"seed": 1}, immaterial=keys))


# --- results of schema 1 ----------------------------------------------------------------------------------------------


def arguments(words: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words and the options of a command."""
    plain, options = [], {}
    here = plain
    for word in words:
        if word.startswith("--"):
            here = options.setdefault(word, [])
        else:
            here.append(word)
    return plain, options


def table_cells(text: str) -> list[list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines()]
    return [
        [cell.strip() for cell in line] for line in lines if not set("".join(line)) <= {"-", ":"}
    ]


def without(column: str, cells: list[list[str]]) -> list[list[str]]:
    place = cells[0].index(column)
    return [line[:place] + line[place + 1 :] for line in cells]


@pytest.mark.parametrize("case", PRINTED, ids=lambda case: " ".join(case["words"])[:60])
def test_old_results_tabulate_and_compare_as_before(case, monkeypatch: pytest.MonkeyPatch):
    """As the program of their time printed them; marked as older, and every number under its own name."""
    (verb, *plain), options = arguments(case["words"])
    where = dict(word.split("=", 1) for word in options["--where"])
    runs = find_results([OLD])
    before = table_cells("\n".join(case["printed"]))
    if verb == "compare":
        monkeypatch.setattr(intervals, "SLOW_RESAMPLES", 20)
        found = table_cells(compare(runs, *plain, options.get("--by", ()), where, ["accuracy"]))
        # Its F1 score is drawn in another order
        if 'suite.tasks=["bars","corners"]' not in options["--where"]:
            assert [line[-2] for line in found[1:]] == [line[-1] for line in before[1:]]
        assert [line[-3] for line in found[1:]] == [line[-2] for line in before[1:]]
        return
    style = options.get("--format", ["md"])[0]
    columns = options.get("--columns", ["metric"])
    text = table(runs, options["--rows"], columns, options.get("--metrics"), style, where)
    if style == "csv":
        assert without("state", [line.split(",") for line in text.splitlines()]) == [
            line.split(",") for line in case["printed"]
        ]
    elif "protocol=disentanglement" in options["--where"]:
        found = without("state", table_cells(text))
        assert [max(line[1:]) for line in found[1:]] == [line[1] for line in before[1:]]
    else:
        assert without("state", table_cells(text)) == before


def test_old_results_keep_their_settings_under_todays_keys():
    runs = find_results([OLD])
    rows = records(runs)
    assert {record["compute.precision"] for record in rows} == {"fp32", "tf32"}
    assert all("precision" not in record and "device" not in record for record in rows)
    assert {run.state for run in runs} == {"older"} and {
        run.result.migrated_from for run in runs
    } == {1}
    text = table(
        runs, ["row"], ["metric"], ["accuracy"], where={"protocol": "addition", "row": "merged"}
    )
    assert "backbone.recipe" not in text and "choices" not in text


def test_old_harness_metrics_become_what_they_are():
    (run,) = [run for run in find_results([OLD]) if "generation" in run.result.run_id]
    quiz, pages = (run.result.rows[0].metrics[name] for name in ("accuracy", "word_perplexity"))
    assert (quiz.values, quiz.mean, quiz.unit, quiz.by_task) == (
        {"own_quiz": 0.5},
        0.5,
        "fraction",
        {"own_quiz": "acc"},
    )
    assert (pages.unit, pages.better) == ("perplexity", "lower") and 1535 < pages.mean < 1536
    heads, line = table_cells(run_table(run.result))[:2]
    assert heads == ["", "alpha", "own_quiz (acc)", "own_pages (word_perplexity)", "mean"]
    assert line == ["zero_shot", "0", "50.0", "1535.70", "50.0"]
    lines = table_cells(compare([run], "merged_1.0", "zero_shot"))
    assert [line[1:] for line in lines[1:]] == [
        ["accuracy", "1", "+0.0", "[+0.0, +0.0]", "points"],
        ["word_perplexity (lower is better)", "1", "+94.08", "", "perplexity"],
    ]


def test_criteria_of_old_results_say_what_ranked_them():
    found = {
        run.result.config["choices"]["protocol"]: run.result.criterion
        for run in find_results([OLD])
    }
    named = {
        protocol: (criterion.name, criterion.better, criterion.split)
        for protocol, criterion in found.items()
    }
    assert named == {
        "addition": ("normalised", "higher", "test"), "negation": ("accuracy", "lower", "test"),
        "disentanglement": ("xi", "lower", "test"), "analysis": ("accuracy", "higher", "test"),
        "generation": ("accuracy", "higher", "test"),
    }  # fmt: skip


# --- what stands, and what is counted once ----------------------------------------------------------------------------


def outputs(folder: Path, count: int = 3) -> Path:
    """An outputs folder with finished runs of several seeds."""
    for seed in range(count):
        place = folder / "runs" / f"run-s{seed}"
        place.mkdir(parents=True)
        rows = (Row(row="merged", metrics={"accuracy": metric({"a": 0.1 * seed})}),)
        result = made(
            run_id=place.name,
            fingerprint=f"{seed}",
            config={"seed": seed, "method": "m"},
            rows=rows,
        )
        (place / "result.json").write_text(result.to_json())
        (place / "status.json").write_text(
            json.dumps({"state": "done", "experiments": ["e"], "pid": 1})
        )
    return folder


def test_stale_runs_are_left_out_and_older_ones_marked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    place = outputs(tmp_path)
    states = {"run-s0": "done", "run-s1": "stale", "run-s2": "older"}
    with caplog.at_level(logging.WARNING):
        runs = find_results([place], lambda folder: states[folder.name])
    assert [run.state for run in runs] == [
        "done",
        "older",
    ] and "stale runs left out: 1" in caplog.text
    cells = table_cells(table(runs, ["method"], ["metric"]))
    assert cells == [["method", "state", "accuracy"], ["m", "done", "0.0"], ["m", "older", "20.0"]]
    every = find_results([place], lambda folder: states[folder.name], stale=True)
    assert [run.state for run in every] == ["done", "stale", "older"]
    with pytest.raises(UserError, match="no run that still holds: 3 are stale"):
        find_results([place], lambda folder: "stale")


def test_what_cannot_be_checked_is_shown_and_marked(tmp_path: Path):
    def standing(folder: Path) -> str:
        raise UserError("backbone: no such file")

    assert "unchecked" in table(find_results([outputs(tmp_path)], standing), ["method"], ["metric"])


def test_a_run_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    place = outputs(tmp_path / "a")
    shutil.copytree(place, tmp_path / "b")
    with caplog.at_level(logging.WARNING):
        runs = find_results([place, place, tmp_path / "b", place / "runs" / "run-s0"])
    assert len(runs) == 3 and "counted once: 7" in caplog.text
    assert "10.0 ± 10.0" in table(runs, ["method"], ["metric"])


def test_the_same_run_on_other_inputs_is_not_averaged_with_it(tmp_path: Path):
    place = outputs(tmp_path / "a", 1)
    shutil.copytree(place, tmp_path / "b")
    path = tmp_path / "b" / "runs" / "run-s0" / "result.json"
    path.write_text(
        path.read_text().replace('"fingerprint": "0"', '"fingerprint": "1"').replace("0.0", "0.4")
    )
    cells = table_cells(table(find_results([place, tmp_path / "b"]), ["method"], ["metric"]))
    assert cells == [["method", "fingerprint", "accuracy"], ["m", "0", "0.0"], ["m", "1", "40.0"]]


def test_records_are_what_pandas_takes(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(records(find_results([outputs(tmp_path)])))
    assert list(frame["accuracy"]) == [0.0, 0.1, 0.2] and set(frame["experiment"]) == {"e"}
    assert records([made(config={"accuracy": "mine"})])[0]["metric/accuracy"] == 0.5


# --- damage -----------------------------------------------------------------------------------------------------------

BROKEN: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "another value": lambda path: path.write_text("[1, 2]"),
    "deep": lambda path: path.write_text("[" * 100_000 + "]" * 100_000),
    "deep inside": lambda path: path.write_text(
        path.read_text().replace("{", '{"x": ' + "[" * 120 + "]" * 120 + ",", 1)
    ),
    "large": lambda path: path.write_bytes(b" " * (encoding.LIMIT + 1)),
    "many": lambda path: path.write_bytes(b"[" + b"{}," * encoding.VALUES + b"{},{}]"),
    "newer": lambda path: path.write_text(path.read_text().replace(": 2,", ": 99,", 1)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path)),
    "a number too long": lambda path: path.write_text(path.read_text().replace("0.1", "1" * 5000)),
}


HARMLESS = {("newer", "status.json"), ("a number too long", "status.json")}


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (damage, name)
        for damage in BROKEN
        for name in ("result.json", "status.json")
        if (damage, name) not in HARMLESS
    ],
)
def test_one_broken_file_hides_no_other_run(
    damage: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    place = outputs(tmp_path)
    path = place / "runs" / "run-s1" / name
    BROKEN[damage](path)
    with caplog.at_level(logging.WARNING):
        runs = find_results([place])
    assert [run.result.run_id for run in runs] == ["run-s0", "run-s2"]
    (line,) = caplog.messages
    assert (
        line.startswith("left out: ")
        and f"run-s1/{name}" in line
        and "\n" not in line
        and len(line) < 600
    )


def test_a_result_that_was_changed_is_left_out(tmp_path: Path):
    place = shutil.copytree(OLD, tmp_path / "copy")
    (path,) = place.glob("runs/*generation*/result.json")
    path.write_text(path.read_text().replace("0.5", "0.9"))
    (config,) = place.glob("runs/*analysis*/config.yaml")
    config.write_text(config.read_text() + "\n")
    assert len(find_results([place])) == len(find_results([OLD])) - 2


def test_unreadable_is_not_empty(tmp_path: Path):
    # What no user can list, the superuser included
    (tmp_path / "runs").symlink_to(tmp_path / "runs")
    with pytest.raises(UserError, match=r"no finished run in .*runs: cannot be read"):
        find_results([tmp_path])
    (tmp_path / "runs").unlink()
    with pytest.raises(UserError, match=r"no finished run in [^()]*; "):
        find_results([tmp_path])


def test_reading_a_hostile_file_takes_bounded_memory(tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_text('{"schema_version": 2, "rows": [' + "[]," * (encoding.VALUES - 10) + "1]}")
    before = peak_memory()
    with pytest.raises(UserError, match="values do not fit"):
        read_result(path)
    assert peak_memory() - before < 600e6


def peak_memory() -> int:
    """The bytes that this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_control_characters_reach_no_terminal():
    name = "a\x1b[2J\x07\n\u202eb\x9b|c\ud800<i>"
    rows = (Row(row=name, metrics={"accuracy": metric({name: 0.5})}),)
    result = made(rows=rows, config={"method": name, "seed": 0}, reports={name: {name: name}})
    runs = [Run(result)]
    pages = {style: table(runs, ["method", "row"], ["metric"], [f"accuracy/{name}"], style) for style in
             ("md", "latex", "csv", "html")}  # fmt: skip
    for text in (*pages.values(), run_table(result), *report_lines(result)):
        assert all(line == printable(line) for line in text.split("\n"))
        text.encode()
    assert (
        "\\|c" in pages["md"] and "<i>" not in pages["html"] and len(pages["md"].splitlines()) == 3
    )


# --- random edits -----------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, -1, 10**30, 1e308, "", "nan", "inf", "\x1b[2J", "../../x", "x" * 10_000, [], {}, [[]], {"float": "inf"},
    {"a": {"b": []}}, [1, "a", None], "zero_shot",
]  # fmt: skip


def edited(data: Any, rng: random.Random) -> Any:
    """A copy of some data with one value replaced, removed, renamed or repeated."""
    data = copy.deepcopy(data)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        children = (
            node.items()
            if isinstance(node, dict)
            else enumerate(node)
            if isinstance(node, list)
            else ()
        )
        for key, child in list(children):
            places.append((node, key))
            visit(child)

    visit(data)
    node, key = rng.choice(places)
    action = rng.randrange(5)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[rng.choice(["x", "\x1b", "config", "matrix", "grid", "accuracy", "figures"])] = (
            node.pop(key)
        )
    elif action == 2:
        node[key] = [node[key]] * 3
    else:
        node[key] = rng.choice(VALUES)
    return data


def attempt(function: Callable, *arguments: Any) -> None:
    """Call a function that may refuse in one line, but not otherwise."""
    try:
        text = function(*arguments)
    except UserError as error:
        text = printable(str(error))
    for line in (text or "").split("\n"):
        assert line == printable(line)


@pytest.mark.parametrize("seed", range(4))
def test_random_edits_are_read_or_refused_in_a_line(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    rng = random.Random(seed)
    paths = sorted(OLD.glob("runs/*/result.json"))
    (tmp_path / "store").symlink_to(OLD / "store")
    picture = {"figure": "bars", "labels": ["a"], "series": {"k": [1.0]}}
    edits = int(os.environ.get("TASKVEC_EDITS", "60"))
    monkeypatch.setattr(intervals, "RESAMPLES", 20)
    monkeypatch.setattr(intervals, "SLOW_RESAMPLES", 5)
    for number in range(edits):
        data = json.loads(rng.choice(paths).read_text())
        if rng.random() < 0.5:
            path = tmp_path / "now.json"
            path.write_text(json.dumps(data))
            data = json.loads(read_result(path).to_json()) | {
                "reports": {"pave": {"k": 3, "figures": {"p": picture}}}
            }
        for _ in range(rng.randrange(1, 4)):
            data = edited(data, rng)
        path = tmp_path / "runs" / "run" / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
        try:
            (run,) = find_results([path.parent])
        except UserError as error:
            assert "\n" not in printable(str(error))
            continue
        attempt(table, [run], ["method", "row"], ["metric"])
        attempt(run_table, run.result)
        attempt(lambda run=run: "\n".join(report_lines(run.result)))
        attempt(compare, [run], "merged", "zero_shot")
        panels(run.result)
        if number % 15 == 0:
            pytest.importorskip("matplotlib")
            attempt(draw, run.result, tmp_path / "picture.png")
    assert all("\x1b" not in line for line in caplog.messages)
