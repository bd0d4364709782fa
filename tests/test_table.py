"""Result tables and the result schema, on hand-made results."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from pathlib import Path

import pytest

from taskvec.errors import UserError
from taskvec.graph import result as schema
from taskvec.graph.result import Result, flat_metrics, read_result
from taskvec.protocols.rows import Criterion, Metric, Row, metric
from taskvec.report.records import records, says
from taskvec.report.runs import Run, find_results
from taskvec.report.table import run_table, table

IMMATERIAL = ("outputs", "compute.device", "compute.offload", "tracker", "choices", "backbone.recipe",
              "finetune.gradient_checkpointing")  # fmt: skip


def made(
    seed: int = 0,
    accuracy: float = 0.5,
    method: str = "task_arithmetic",
    rows: tuple = (),
    **config,
) -> Result:
    """A result whose config has the shape of a run's; ``config`` holds dotted keys."""
    node = {
        "method": method, "experiment": None, "seed": seed, "outputs": "outputs",
        "compute": {"device": "cpu", "precision": "fp32", "offload": False},
        "backbone": {"kind": "clip"}, "suite": {"kind": "images"}, "finetune": {"kind": "full", "lr": 1e-4},
        "transform": {}, "merge": {"kind": method}, "protocol": {"kind": "addition"}, "tracker": {"kind": "none"},
        "choices": {"backbone": "mini_clip_s", "suite": "mini8", "merge": method},
    }  # fmt: skip
    for key, value in config.items():
        *parents, last = key.split(".")
        place = node
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    values = {"mnist": accuracy, "emoji": accuracy / 2}
    metrics = {"accuracy": metric(values), "normalised": metric(dict.fromkeys(values, accuracy))}
    metrics |= {"validation": metric({"mnist": 0.25, "emoji": 0.75})}
    return Result(
        run_id=f"{method}-{seed}-{len(config)}", fingerprint="f", config=node, immaterial=IMMATERIAL,
        rows=rows or (Row(row="merged", alpha=0.3, metrics=metrics),), criterion=Criterion(name="c", value=accuracy),
    )  # fmt: skip


def cells(text: str) -> list[list[str]]:
    """Return a markdown table's lines of cells, without the rule below the heads."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [line for line in lines if not set("".join(line)) <= {"-", ":"}]


# --- what is averaged -----------------------------------------------------------------------------------------------


def test_seeds_are_averaged_with_the_sample_standard_deviation():
    values = [0.61, 0.64, 0.73]
    text = table(
        [made(seed, value) for seed, value in enumerate(values)],
        ["method"],
        ["metric"],
        ["normalised"],
        "md",
    )
    mean, deviation = 100 * statistics.fmean(values), 100 * statistics.stdev(values)
    assert cells(text) == [
        ["method", "normalised"],
        ["task_arithmetic", f"{mean:.1f} ± {deviation:.1f}"],
    ]
    assert f"{mean:.1f} ± {deviation:.1f}" == "66.0 ± 6.2"


def test_one_run_has_no_deviation_and_coefficients_are_no_percentage():
    text = table(
        [made(accuracy=0.5)], ["row"], ["metric"], ["accuracy", "accuracy/mnist", "alpha"], "md"
    )
    assert cells(text) == [
        ["row", "accuracy", "accuracy/mnist", "alpha"],
        ["merged", "37.5", "50.0", "0.30"],
    ]


def test_rows_and_columns_are_any_keys():
    runs = [
        made(seed, value, **{"choices.backbone": backbone, "finetune.lr": rate})
        for backbone, rate, values in (
            ("s", 0.1, (0.1, 0.2)),
            ("m", 0.1, (0.3, 0.5)),
            ("s", 0.2, (0.7, 0.7)),
        )
        for seed, value in enumerate(values)
    ]
    text = table(runs, ["finetune.lr"], ["backbone", "metric"], ["normalised"], "md")
    assert cells(text) == [
        ["finetune.lr", "s normalised", "m normalised"],
        ["0.1", "15.0 ± 7.1", "40.0 ± 14.1"],
        ["0.2", "70.0 ± 0.0", ""],
    ]


@pytest.mark.parametrize(
    "key", ["finetune.lr", "merge.density", "finetune.crop.scale", "compute.precision"]
)
def test_runs_that_differ_in_an_undeclared_key_are_not_averaged(key):
    first, second = [(0, 0.2), (1, 0.4)], [(0, 0.6), (1, 0.8)]
    runs = [made(s, v, **{key: "one"}) for s, v in first] + [
        made(s, v, **{key: "two"}) for s, v in second
    ]
    text = table(runs, ["method"], ["metric"], ["normalised"], "md")
    assert cells(text) == [
        ["method", key, "normalised"],
        ["task_arithmetic", "one", "30.0 ± 14.1"],
        ["task_arithmetic", "two", "70.0 ± 14.1"],
    ]


def test_a_key_that_the_first_run_lacks_tells_runs_apart_too():
    runs = [
        made(0, 0.5, "plain"),
        made(0, 0.2, "ties", **{"merge.k": 1}),
        made(0, 0.4, "ties", **{"merge.k": 2}),
    ]
    lines = cells(table(runs, ["method"], ["metric"], ["normalised"], "md"))
    assert lines == [
        ["method", "merge.k", "normalised"], ["plain", "", "50.0"], ["ties", "1", "20.0"], ["ties", "2", "40.0"],
    ]  # fmt: skip


def test_lists_tell_runs_apart_and_can_be_asked_for():
    runs = [
        made(0, 0.2, **{"protocol.grid": [0.0, 1.0]}),
        made(0, 0.4, **{"protocol.grid": [0.0, 2.0]}),
    ]
    lines = cells(table(runs, ["method"], ["metric"], ["normalised"], "md"))
    assert lines[1:] == [
        ["task_arithmetic", "[0.0,1.0]", "20.0"],
        ["task_arithmetic", "[0.0,2.0]", "40.0"],
    ]
    lines = cells(
        table(
            runs,
            ["protocol.grid"],
            ["metric"],
            ["normalised"],
            "md",
            {"protocol.grid": "[0.0,2.0]"},
        )
    )
    assert lines[1:] == [["[0.0,2.0]", "40.0"]]


def test_what_cannot_change_a_result_does_not_tell_runs_apart():
    other = {
        "tracker.kind": "wandb",
        "tracker.entity": "me",
        "finetune.gradient_checkpointing": True,
    }
    other |= {"compute.device": "cuda:1", "compute.offload": True, "backbone.recipe.lr": 1}
    one = made(0, 0.2, outputs="a", **other)
    lines = cells(table([one, made(1, 0.4)], ["method"], ["metric"], ["normalised"], "md"))
    assert lines == [["method", "normalised"], ["task_arithmetic", "30.0 ± 14.1"]]


def test_metrics_and_rows_of_a_run_are_never_averaged_with_each_other():
    rows = tuple(
        Row(row=name, metrics={"accuracy": metric({"t": a}), "normalised": Metric(mean=n)})
        for name, a, n in (("x", 0.1, 0.2), ("y", 0.5, 1))
    )
    text = table([made(rows=rows)], ["method"], ["backbone"], ["accuracy", "normalised"], "csv")
    numbers = {
        float(n)
        for line in list(csv.reader(io.StringIO(text)))[1:]
        for n in line
        if re.fullmatch(r"[\d.]+", n)
    }
    assert numbers == {10.0, 20.0, 50.0, 100.0}


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [("6e-4", 0.0006, True), ("2", 2, True), ("2", "2", True), ("", None, True), ("null", None, True),
     ("1", True, False), ("True", True, True), ("true", True, True), ("a", 1.0, False), ("None", None, False)],
)  # fmt: skip
def test_a_condition_reads_numbers_as_numbers(text: str, value: object, expected: bool):
    assert says(text, value) is expected


def test_where_keeps_some_records():
    runs = [made(0, 0.2), made(1, 0.4), made(2, 0.9, **{"compute.precision": "bf16"})]
    lines = cells(
        table(runs, ["method"], ["metric"], ["normalised"], "md", {"compute.precision": "fp32"})
    )
    assert lines[1] == ["task_arithmetic", "30.0 ± 14.1"]


# --- formats --------------------------------------------------------------------------------------------------------


def test_csv_has_full_precision():
    value = 0.123456789012345
    for runs in ([made(0, value)], [made(0, value), made(1, value + 1e-13)]):
        lines = list(
            csv.reader(io.StringIO(table(runs, ["method"], ["metric"], ["normalised"], "csv")))
        )
        expected = statistics.fmean(100 * run.rows[0].mean("normalised") for run in runs)
        assert lines[0][:2] == ["method", "normalised"]
        assert float(lines[1][1]) == expected


def test_csv_quotes_what_needs_it():
    text = table([made(0, 0.5, 'a,"b"')], ["method"], ["metric"], ["normalised"], "csv")
    assert list(csv.reader(io.StringIO(text)))[1] == ['a,"b"', "50.0", ""]


UNESCAPED = re.compile(r"(?<!\\)[_%&#$]")


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    "name", ["my_method", "50%_a&b#c", "cost$", "a^b", "~/x", "{set}", "back\\slash", "fpm_x"]
)
def test_latex_is_valid(name, seeds):
    text = table(
        [made(s, 0.5 + s / 10, name) for s in range(seeds)],
        ["method"],
        ["metric"],
        ["accuracy/mnist"],
        "latex",
    )
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1
    assert (
        text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1 and "hline" not in text
    )
    lines = [line for line in text.splitlines() if line.rstrip().endswith(r"\\")]
    assert len(lines) == 2
    for line in lines:
        assert len(re.findall(r"(?<!\\)&", line)) == 1  # two columns
        inside = line.rstrip().removesuffix(r"\\").replace(r"$\pm$", "")
        inside = re.sub(
            r"\\(textbackslash|textasciitilde|textasciicircum|ensuremath)(\{\})?|\\\^\{\}|\\[_%&#${}]",
            "",
            inside,
        )
        assert not re.search(r"[_%#$^~\\]", inside), line
        assert inside.count("{") == inside.count("}")
    if name == "my_method":
        assert r"my\_method" in lines[1]
    assert (r"$\pm$" in lines[1]) == (seeds == 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["methd"], ["metric"], ["accuracy"]), "unknown key 'methd'; did you mean 'method'"),
        (
            (["method"], ["finetune.lrr"], ["accuracy"]),
            "unknown key 'finetune.lrr'; did you mean 'finetune.lr'",
        ),
        (
            (["method"], ["metric"], ["acuracy"]),
            "unknown metric 'acuracy'; did you mean 'accuracy'",
        ),
        (
            (["method"], ["metric"], ["accuracy/mnits"]),
            "unknown metric 'accuracy/mnits'; did you mean 'accuracy/mnist'",
        ),
    ],
)
def test_an_unknown_key_or_metric_is_named_with_the_nearest(arguments, message):
    with pytest.raises(UserError, match=message):
        table([made()], *arguments, "md")


def test_the_table_of_one_run_has_a_column_per_task():
    rows = (
        Row(row="zero_shot", alpha=0.0, metrics={"accuracy": metric({"a": 0.25, "b": 0.5}),
                                                 "normalised": Metric(mean=0.5), "control": Metric(mean=0.61)}),
        Row(row="negated", metrics={"accuracy": metric({"a": 0.125}), "control": Metric(mean=0.6)}),
    )  # fmt: skip
    assert cells(run_table(made(rows=rows))) == [
        ["", "alpha", "a", "b", "mean", "normalised", "control"],
        ["zero_shot", "0", "25.0", "50.0", "37.5", "50.0", "61.0"],
        ["negated", "", "12.5", "", "12.5", "", "60.0"],
    ]


# --- the schema -----------------------------------------------------------------------------------------------------


def write(path: Path, data) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 1e-17, 0.0])
def test_a_result_survives_its_file_exactly(tmp_path, value):
    original = made(3, value).model_copy(
        update={"curves": {"merged": [{"alpha": 0.05, "mean": value}]}}
    )
    loaded = read_result(write(tmp_path / "result.json", original.to_json()))
    assert loaded == original and loaded.same_as(original)
    assert loaded.rows[0].values("accuracy")["mnist"] == value


def test_timing_and_environment_do_not_make_another_result():
    one = made().model_copy(update={"timing": {"wall_s": 1.0}, "environment": {"host": "a"}})
    assert one.same_as(made()) and one != made()
    assert not one.same_as(made(accuracy=0.5000001))
    assert not one.same_as(made(seed=1))


def test_flat_metrics_name_row_metric_and_task():
    assert flat_metrics(made(accuracy=0.5).rows) == {
        "merged/accuracy": 0.375, "merged/normalised": 0.5, "merged/alpha": 0.3, "merged/accuracy/mnist": 0.5,
        "merged/accuracy/emoji": 0.25, "merged/normalised/mnist": 0.5, "merged/normalised/emoji": 0.5,
        "merged/validation": 0.5, "merged/validation/mnist": 0.25, "merged/validation/emoji": 0.75,
    }  # fmt: skip


@pytest.mark.parametrize("version", [schema.SCHEMA_VERSION + 1, 99, None, "1"])
def test_another_schema_version_is_refused(tmp_path, version):
    data = made().model_dump(mode="json") | {"schema_version": version}
    with pytest.raises(
        UserError, match=f"schema {version!r}, but this program reads up to {schema.SCHEMA_VERSION}"
    ):
        read_result(write(tmp_path / "result.json", data))


def test_earlier_versions_are_migrated_step_by_step(tmp_path, monkeypatch):
    first = schema.SCHEMA_VERSION
    monkeypatch.setattr(schema, "SCHEMA_VERSION", first + 2)
    for version, letter in ((first, "a"), (first + 1, "b")):

        def longer(data, version=version, letter=letter):
            return data | {"schema_version": version + 1, "run_id": data["run_id"] + letter}

        monkeypatch.setitem(schema.MIGRATIONS, version, longer)
    data = made(accuracy=0.5).model_dump(mode="json") | {"schema_version": first}
    loaded = read_result(write(tmp_path / "result.json", data))
    assert (loaded.schema_version, loaded.migrated_from) == (
        first + 2,
        first,
    ) and loaded.run_id.endswith("ab")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"schema_version": 1}', '"text"'])
def test_what_is_no_result_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(UserError, match=r"result\.json|result schema") as caught:
        read_result(write(tmp_path / "result.json", text))
    assert "\n" not in str(caught.value)


def test_results_are_found_by_file_and_by_run_folder(tmp_path):
    path = write(tmp_path / "result.json", made().to_json())
    assert find_results([path]) == find_results([tmp_path]) == [Run(made(), folder=tmp_path)]
    with pytest.raises(UserError, match="nowhere: no such run"):
        find_results([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished run in .*empty"):
        find_results([tmp_path / "empty"])


def test_records_are_flat():
    (record,) = records([made(accuracy=0.5)])
    assert (
        record["finetune.lr"] == 1e-4
        and record["backbone"] == "mini_clip_s"
        and record["row"] == "merged"
    )
    names = {
        name
        for name in record
        if name.split("/")[0] in ("accuracy", "normalised", "alpha", "validation")
    }
    assert {name: record[name] for name in names} == {
        "accuracy": 0.375, "normalised": 0.5, "alpha": 0.3, "validation": 0.5, "accuracy/mnist": 0.5,
        "accuracy/emoji": 0.25, "normalised/mnist": 0.5, "normalised/emoji": 0.5, "validation/mnist": 0.25,
        "validation/emoji": 0.75,
    }  # fmt: skip
