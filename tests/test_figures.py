"""Pictures of a run: what is on which axis, what the numbers say, and one line for what cannot be drawn."""

from __future__ import annotations

import json
import logging
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from report_world import synthetic, template
from scipy.stats import t as student

from taskvec import cli
from taskvec.errors import UserError
from taskvec.graph.result import Result
from taskvec.panel import Bars, Heat, Lines, Surface, panel
from taskvec.protocols.rows import Criterion, Metric, Row, metric
from taskvec.report.drawing import number
from taskvec.report.figures import PAINTERS, draw, paint
from taskvec.report.leaderboard import leaderboard
from taskvec.report.panels import panels
from taskvec.report.paper import Paper
from taskvec.report.runs import find_results
from taskvec.report.summary import KINDS, picture
from taskvec.report.table import table
from taskvec.report.trend import trends

GRID = [-1.0, 0.0, 0.5, 1.0, 2.0]
OLD = Path(__file__).resolve().parent / "fixtures" / "results_1"
SVG = "{http://www.w3.org/2000/svg}"


def result(*rows: Row, **parts) -> Result:
    row = Row(row="merged", alpha=0.5, selected_on="val", metrics={"accuracy": metric({"a": 0.5})})
    criterion = Criterion(name="validation", value=0.0)
    return Result(
        run_id="a-run",
        fingerprint="0",
        config={},
        rows=rows or (row,),
        criterion=criterion,
        **parts,
    )


def everything() -> Result:
    slanted = [[2 * abs(a) + abs(b) / 2 for b in GRID] for a in GRID]
    maps = {"a+b": {"grid": GRID, "labels": slanted, "features": slanted}}
    maps |= {
        "drift": {"rows": ["a", "b"], "columns": ["a", "b"], "matrix": [[3.0, 0.5], [2e-5, 7.0]]}
    }
    maps |= {"kernel_regime": {"a": {"non_linear": 1.0}}}
    points = [
        {"alpha": a, "mean": a / 2, "accuracy": {"a": a / 2, "b": a / 3}, "control": 0.9}
        for a in (0, 0.5, 1)
    ]
    spectrum = Lines(
        x="index", y="eigenvalue", scale="log", series={"layer 0": [(0, 1.0), (1, 1e-4)]}
    )
    reports = {"pave": {"kept": 3, "figures": {"spectrum": spectrum.data()}}}
    return result(maps=maps, curves={"merged": points}, reports=reports)


def painted(picture):
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    PAINTERS[type(picture)](axes, picture)
    return axes


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_what_is_drawn_follows_from_what_it_is():
    found = panels(everything())
    assert [(name, type(picture).__name__, picture.title) for name in found for picture in found[name]] == [
        ("a+b", "Surface", "a+b: error in labels"), ("a+b", "Surface", "a+b: error in features (KL)"),
        ("drift", "Heat", "drift"), ("merged", "Lines", "merged"), ("pave/spectrum", "Lines", "pave: spectrum"),
    ]  # fmt: skip
    assert (
        found["a+b"][0].x.endswith(" a")
        and found["a+b"][0].y.endswith(" b")
        and found["a+b"][0].high == 5.0
    )


def test_a_perplexity_has_an_axis_of_its_own():
    row = Row(row="negated", alphas={"mail": 0.25}, selected_on="val", metrics={
        "accuracy": metric({"mail": 0.5}), "perplexity": Metric(mean=150.0, unit="perplexity", better="lower"),
    })  # fmt: skip
    points = [
        {"alpha": a, "mean": 0.5, "accuracy": {"mail": 0.5}, "perplexity": p}
        for a, p in ((0, 148.0), (0.25, 151.5), (0.5, float("inf")))
    ]
    (picture,) = panels(
        result(row, curves={"negated/mail": [*points, {"alpha": 1.0, "excluded": "a loss"}]})
    )["negated/mail"]
    assert (
        picture.series == {"mail": ((0, 50.0), (0.25, 50.0), (0.5, 50.0))}
        and picture.unit == "fraction"
    )
    assert (
        picture.beside["perplexity"][:2] == ((0, 148.0), (0.25, 151.5))
        and picture.beside_unit == "perplexity"
    )
    assert (
        picture.y == "accuracy, % on validation" and picture.beside_y == "perplexity on validation"
    )
    assert picture.chosen == 0.25 and picture.excluded == (1.0,)
    axes = painted(picture)
    left, right = axes.figure.axes
    assert left.get_ylim()[1] == 100 and 148 < right.get_ylim()[1] < 200
    assert [line.get_label() for line in right.get_lines()] == ["perplexity"]


def test_a_curve_without_accuracies_is_drawn_in_its_unit():
    row = Row(
        row="merged_1.0",
        metrics={"bits_per_byte": Metric(values={"t": 1.0}, unit="bits", better="lower")},
    )
    points = [{"alpha": a, "mean": a, "bits_per_byte": {"t": a}} for a in (0.5, 1.0)]
    (picture,) = panels(result(row, curves={"merged": points}))["merged"]
    assert (picture.series, picture.y, picture.beside) == (
        {"t": ((0.5, 0.5), (1.0, 1.0))},
        "bits",
        {},
    )


def test_old_results_are_drawn_with_their_units(tmp_path: Path):
    pytest.importorskip("matplotlib")
    names, beside = [], set()
    for run in find_results([OLD]):
        for name, pictures in panels(run.result).items():
            names.append(name)
            beside |= {p.beside_y for p in pictures if isinstance(p, Lines) and p.beside}
    assert len(names) == 17 and beside == {"perplexity", "perplexity on validation"}


def test_what_does_not_fit_is_left_out_with_a_word(caplog: pytest.LogCaptureFixture):
    maps = {
        "a+b": {"grid": [0, 1], "labels": [[1]]},
        "c": {"matrix": 3},
        "d": {"rows": [], "columns": [], "matrix": []},
    }
    reports = {
        "x": {"figures": [{"figure": "heat"}, 3, Bars(labels=["a"], series={"k": [1]}).data()]},
        "y\x1b": {},
    }
    curves = {"merged": [{"accuracy": {"a": 1}}, {"mean": 1}], "short": []}
    with caplog.at_level(logging.WARNING):
        assert list(panels(result(maps=maps, reports=reports, curves=curves))) == ["x/3"]
    assert len(caplog.messages) == 6 and all("is left out" in line for line in caplog.messages)


@pytest.mark.parametrize("picture", [
    Lines(title="t", series={"a": [(0, 1), (1, float("inf"))]}, chosen=0.5), Bars(labels=["a"], series={"k": [1]}),
    Heat(rows=["a"], columns=["b", "c"], values=[[1, 2]]), Surface(grid=[0, 1], values=[[1, 2], [3, 4]]),
], ids=lambda picture: picture.figure)  # fmt: skip
def test_a_picture_survives_a_report(picture):
    assert panel(picture.data()) == picture
    painted(picture)


# --- how it is drawn --------------------------------------------------------------------------------------------------


def test_the_first_task_is_on_x_and_the_origin_below():
    values = [[10 * i + j for j in range(5)] for i in range(5)]
    axes = painted(Surface(grid=GRID, values=values, high=44))
    (mesh,) = axes.collections
    drawn = mesh.get_array().reshape(5, 5)
    assert (drawn[1, 3], drawn[3, 1]) == (values[3][1], values[1][3]), (
        "rows of the picture are the second task"
    )
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    assert low < -1 < 2 < high and left < -1 < 2 < right
    (box,) = axes.patches
    assert box.get_bbox().bounds == (0, 0, 1, 1) and box.get_linestyle() == "--"
    assert mesh.get_clim() == (0, 44) and len(axes.figure.axes) == 2, "a colour bar"


def test_an_unordered_grid_is_drawn_in_order():
    axes = painted(Surface(grid=[1.0, -1.0, 0.0], values=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
    assert axes.collections[0].get_array().reshape(3, 3).T.tolist() == [
        [5, 6, 4],
        [8, 9, 7],
        [2, 3, 1],
    ]


def test_matrices_say_their_numbers():
    axes = painted(Heat(rows=["a", "b"], columns=["c", "d"], values=[[0.0, 0.25], [1e-6, 1234.0]]))
    found = {
        (round(text.get_position()[0]), round(text.get_position()[1])): text.get_text()
        for text in axes.texts
    }
    assert found == {(0, 0): "0", (1, 0): "0.25", (0, 1): "1e-6", (1, 1): "1e3"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["c", "d"]


def test_a_large_matrix_has_colours_and_some_names():
    names = [f"block {i}" for i in range(150)]
    axes = painted(Heat(rows=["x", "y", "z"], columns=names, values=[range(150)] * 3))
    assert not axes.texts and len(axes.figure.axes) == 2
    assert [label.get_text() for label in axes.get_xticklabels()] == names[::3]


def test_bars_stand_side_by_side():
    axes = painted(Bars(labels=["a", "b"], series={"k": [3, 4], "m": [1, 2]}))
    assert sorted((round(bar.get_x(), 3), bar.get_height()) for bar in axes.patches) == [
        (-0.4, 3), (0.0, 1), (0.6, 4), (1.0, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (0.0254, "0.025"), (0.0021, "2e-3"), (-2.5e-7, "-2e-7"), (12.3456, "12.3"),
     (float("inf"), "inf")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str):
    assert number(value) == text


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_every_picture_is_drawn(suffix: str, tmp_path: Path):
    pytest.importorskip("matplotlib")
    target = tmp_path / "new" / f"picture.{suffix}"
    draw(everything(), target)
    assert target.stat().st_size > 3000
    first = target.read_bytes()
    if suffix != "pdf":
        draw(everything(), target)
        assert target.read_bytes() == first


@pytest.mark.parametrize(
    "name",
    ["$\\frac{", "<script>&'\"", "a--b", "\x1b[2J\x07", "_hidden", "\ud800", "ünï\u202ecode"],
)
def test_names_are_text_and_nothing_else(name: str, tmp_path: Path):
    pytest.importorskip("matplotlib")
    row = Row(row="merged", metrics={"accuracy": metric({name: 0.5})})
    points = [{"alpha": a, "mean": 0.1, "accuracy": {name: a, "other": 0}} for a in (0, 1)]
    matrix = {"rows": [name], "columns": [name], "matrix": [[1.0]]}
    bars = Bars(labels=[name], series={name: [1.0], "b": [2.0]}, title=name, x=name, y=name).data()
    found = result(
        row,
        maps={name: matrix},
        curves={f"merged/{name}": points},
        reports={name: {"figures": {name: bars}}},
    )
    draw(found.model_copy(update={"run_id": name}), tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)  # well-formed
    assert not any(character in text for character in "\x1b\x07\u202e")
    assert {child.tag for child in ElementTree.fromstring(text).iter()}.isdisjoint(
        {f"{SVG}script", f"{SVG}a"}
    )


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"must end in \.svg, \.pdf, \.png"):
        draw(everything(), tmp_path / "picture.gif")
    with pytest.raises(UserError, match="did you mean 'drift'"):
        draw(everything(), tmp_path / "picture.svg", ["drifts"])
    with pytest.raises(UserError, match="no map, matrix or curve"):
        draw(result(), tmp_path / "picture.svg")
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        draw(everything(), tmp_path / "file" / "picture.svg")
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"matplotlib is missing; pip install 'taskvec\[figures\]'"):
        draw(everything(), tmp_path / "picture.svg")


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("matplotlib")
    run = tmp_path / "outputs" / "runs" / "a-run"
    run.mkdir(parents=True)
    (run / "result.json").write_text(everything().to_json())
    outputs = ["--outputs", str(tmp_path / "outputs")]
    assert cli.main(["figure", "a-run", *outputs]) == 0
    assert capsys.readouterr().out == f"{run / 'figure.svg'}\n" and (run / "figure.svg").is_file()
    target = tmp_path / "only.png"
    only = ["--only", "drift", "pave/spectrum"]
    assert cli.main(["figure", str(run / "result.json"), "-o", str(target), *only]) == 0
    assert target.is_file() and capsys.readouterr().out == f"{target}\n"
    assert json.loads((run / "result.json").read_text())["run_id"] == "a-run"
    for words in (
        ["figure", "no-run", *outputs],
        ["figure", str(tmp_path)],
        ["figure", "a-run", "--only", "x", *outputs],
    ):
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("taskvec: error: ") and error.count("\n") == 1


# --- many runs ------------------------------------------------------------------------------------------------------


def along(ratio: float, seed: int, *rows: Row) -> Result:
    config = {"transform": {"pave": {"ratio": ratio}}, "seed": seed, "method": "pave"}
    name = f"pave-{ratio}-{seed}"
    about = {"run_id": name, "fingerprint": name, "config": config}
    return result(*rows).model_copy(update=about)


def accuracies(merged: float, zero: float = 0.2) -> tuple[Row, Row]:
    metrics = {"accuracy": metric({"a": merged}), "gain": metric({"a": merged - zero})}
    start = Row(row="zero_shot", metrics={"accuracy": metric({"a": zero})})
    return start, Row(row="merged", metrics=metrics)


def test_a_trend_is_the_mean_over_seeds_and_its_interval_along_a_setting():
    runs = [along(0.9, 0, *accuracies(0.5)), along(0.5, 0, *accuracies(0.4))]
    runs += [along(0.5, 1, *accuracies(0.6)), along(0.9, 1, *accuracies(0.5))]
    named = ["accuracy", "gain"]
    accuracy, gain = trends(runs, "transform.pave.ratio", ["row"], named, {})
    assert set(accuracy.series) == {"zero_shot", "merged"}
    assert accuracy.series["merged"] == ((0.5, pytest.approx(50)), (0.9, pytest.approx(50)))
    half = 12.706 * 100 * (0.02 / 2) ** 0.5  # Student's t of one degree of freedom
    assert accuracy.low["merged"][0] == (0.5, pytest.approx(50 - half, rel=1e-3))
    assert accuracy.high["merged"] == (
        (0.5, pytest.approx(50 + half, rel=1e-3)),
        (0.9, pytest.approx(50)),
    )
    assert gain.y == "gain, %"
    assert list(gain.series) == ["merged"]
    assert len(painted(accuracy).get_lines()) == 2 + 4  # two curves, and intervals at two places
    (only,) = trends(runs, "transform.pave.ratio", ["row"], None, {"row": "zero_shot"})
    assert list(only.series) == ["zero_shot"]
    with pytest.raises(UserError, match="is no number"):
        trends(runs, "method", ["row"], None, {})
    with pytest.raises(UserError, match="unknown key"):
        trends(runs, "transform.pave.ratios", ["row"], None, {})


def test_the_verb_over_runs(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("matplotlib")
    for ratio in (0.5, 0.9):
        run = tmp_path / "outputs" / "runs" / f"run-{ratio}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(along(ratio, 0, *accuracies(ratio)).to_json())
    words = ["figure", "--over", "transform.pave.ratio", "--outputs", str(tmp_path / "outputs")]
    target = tmp_path / "trend.svg"
    assert cli.main([*words, "--stale", "-o", str(target)]) == 0
    assert target.is_file()
    for wrong, reason in ((words, "--over wants -o FILE"), (["figure"], "give one RUN")):
        assert cli.main(wrong) == 2
        assert reason in capsys.readouterr().err


# --- many runs, for a paper -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lines(warm_outputs: Path, tmp_path_factory: pytest.TempPathFactory):
    """Lines of three methods on two backbones, five seeds each."""
    root = tmp_path_factory.mktemp("lines")
    synthetic(root, template(warm_outputs), 30, names=("ties", "dare", "tsv"))
    return leaderboard(find_results([root]), {"row": "merged"})


def test_pictures_of_runs_hold_their_means_and_intervals(lines):
    bars = picture(lines, "bars", "accuracy")
    assert sorted(bars.labels) == ["clip_a", "clip_b"] and sorted(bars.series) == [
        "dare",
        "ties",
        "tsv",
    ]
    for line in lines:
        place = bars.labels.index(line.about["backbone"])
        spread = line.metrics["accuracy"]
        found = [ends[line.name][place] for ends in (bars.low, bars.series, bars.high)]
        assert found == [100 * spread.low, 100 * spread.mean, 100 * spread.high]
    heat = picture(lines, "tasks", "accuracy")
    assert heat.columns == ("stripes", "corners", "colours") and len(heat.rows) == 6
    first = lines[0].metrics["accuracy/corners"].mean
    assert heat.values[0][1] == 100 * first
    curve = picture(lines, "curves", "accuracy").series["ties · clip_a"]
    assert [x for x, _ in curve] == sorted(lines[0].curve)
    assert picture(lines, "seconds", "accuracy").scale == "log"


def test_a_name_is_marked_the_same_everywhere(lines, warm_outputs: Path):
    marks = {line.name: line.mark for line in lines}
    for kind in ("bars", "radar", "curves", "memory"):
        found = picture(lines, kind, "accuracy").marks
        assert found and all(marks[name.split(" · ")[0]] == mark for name, mark in found.items())
    only = leaderboard([member.run for line in lines for member in line.members], {"merge": "tsv"})
    assert {line.mark for line in only} == {marks["tsv"]}, "whatever is left out"


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_has_the_size_and_letters_of_its_paper(lines, kind: str, tmp_path: Path):
    pytest.importorskip("matplotlib")
    target = tmp_path / f"{kind}.pdf"
    paint([picture(lines, kind, "accuracy")], "", target, Paper.of("column", serif=True))
    text = target.read_bytes()
    (box,) = re.findall(rb"/MediaBox \[ 0 0 ([0-9.]+) ", text)
    assert (
        float(box) == pytest.approx(3.25 * 72) and b"STIXGeneral" in text and b"/Type3" not in text
    )
    paint(
        [picture(lines, kind, "accuracy")],
        "",
        tmp_path / "again.pdf",
        Paper.of("column", serif=True),
    )
    assert (tmp_path / "again.pdf").read_bytes() == text


def test_what_cannot_be_compared_is_one_line(lines):
    for kind, name, reason in (
        ("bar", "accuracy", "did you mean"),
        ("bars", "acuracy", "did you mean 'accuracy'"),
        ("tasks", "alpha", "by task"),
    ):
        with pytest.raises(UserError, match=reason):
            picture(lines, kind, name)
    for width in ("wide", "0.1", "nan"):
        with pytest.raises(UserError, match="--width"):
            Paper.of(width)


def test_a_paper_table_says_what_is_best(warm_outputs: Path, tmp_path: Path):
    synthetic(tmp_path, template(warm_outputs), 30, names=("ties", "dare", "tsv"))
    runs = find_results([tmp_path])
    options = {"where": {"row": "merged"}, "best": True, "interval": True}
    text = table(runs, ["merge"], ["backbone"], ["accuracy"], "latex", **options)
    bold = re.findall(r"^ *(\w+) .*textbf", text, re.M)
    second = re.findall(r"^ *(\w+) .*underline", text, re.M)
    assert (bold, second) == (["tsv"], ["dare"]) and text.count("textbf{") == 2
    assert "\\toprule" in text and "$\\pm$" in text
    values = [run.result.rows[2].mean("accuracy") for run in runs if "tsv" in run.result.run_id]
    values = [100 * value for value in values[:5]]
    half = student.ppf(0.975, 4) * np.std(values, ddof=1) / np.sqrt(5)
    assert f"{np.mean(values):.1f} $\\pm$ {half:.1f}" in text
