"""Pictures of a run: what is on which axis, what the numbers say, and one line for what cannot be drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from taskvec import cli
from taskvec.errors import UserError
from taskvec.protocols.question import Row
from taskvec.report.figures import draw, heat_map, matrix, number, panels
from taskvec.runner.result import Result

GRID = [-1.0, 0.0, 0.5, 1.0, 2.0]


def result(**parts) -> Result:
    row = Row(row="merged", alpha=0.5, accuracy={"a": 0.5}, mean=0.5)
    empty = {"primary": 0.0, "metrics": {}, "curves": {}, "data_seen": {}, "stages": ()}
    return Result(run_id="a-run", fingerprint="0", config={}, rows=(row,), **(empty | parts))


def everything() -> Result:
    slanted = [[2 * abs(a) + abs(b) / 2 for b in GRID] for a in GRID]
    maps = {"a+b": {"grid": GRID, "labels": slanted, "features": slanted}}
    maps |= {"drift": {"rows": ["a", "b"], "columns": ["a", "b"], "matrix": [[3.0, 0.5], [2e-5, 7.0]]}}
    maps |= {"kernel_regime": {"a": {"non_linear": 1.0}}}
    points = [{"alpha": a, "mean": a / 2, "accuracy": {"a": a / 2, "b": a / 3}, "control": 0.9} for a in (0, 0.5, 1)]
    return result(maps=maps, curves={"merged": points})


@pytest.fixture
def axes():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    return figure.subplots()


def test_the_first_task_is_on_x_and_the_origin_below(axes):
    values = [[10 * i + j for j in range(5)] for i in range(5)]
    heat_map("a+b", GRID, values, 44)(axes)
    (mesh,) = axes.collections
    drawn = mesh.get_array().reshape(5, 5)
    assert (drawn[1, 3], drawn[3, 1]) == (values[3][1], values[1][3]), "rows of the picture are the second task"
    assert axes.get_xlabel().endswith(" a") and axes.get_ylabel().endswith(" b")
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    assert low < -1 < 2 < high and left < -1 < 2 < right
    (box,) = axes.patches
    assert box.get_bbox().bounds == (0, 0, 1, 1) and box.get_linestyle() == "--"
    assert mesh.get_clim() == (0, 44) and len(axes.figure.axes) == 2, "a colour bar"


def test_an_unordered_grid_is_drawn_in_order(axes):
    heat_map("a+b", [1.0, -1.0, 0.0], [[1, 2, 3], [4, 5, 6], [7, 8, 9]], 9)(axes)
    assert axes.collections[0].get_array().reshape(3, 3).T.tolist() == [[5, 6, 4], [8, 9, 7], [2, 3, 1]]


def test_matrices_say_their_numbers(axes):
    matrix(["a", "b"], ["c", "d"], [[0.0, 0.25], [1e-6, 1234.0]])(axes)
    found = {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in axes.texts}
    assert found == {(0, 0): "0", (1, 0): "0.25", (0, 1): "1e-6", (1, 1): "1e3"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["c", "d"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (0.0254, "0.025"), (0.0021, "2e-3"), (-2.5e-7, "-2e-7"), (12.3456, "12.3")],
)
def test_numbers_are_short(value: float, text: str):
    assert number(value) == text


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_every_panel_is_drawn(suffix: str, tmp_path: Path):
    pytest.importorskip("matplotlib")
    assert [title for group in panels(everything()).values() for title, _ in group] == [
        "a+b: error in labels", "a+b: error in features (KL)", "drift", "merged",
    ]  # fmt: skip
    target = tmp_path / "new" / f"picture.{suffix}"
    draw(everything(), target)
    assert target.stat().st_size > 3000
    first = target.read_bytes()
    if suffix == "png":
        draw(everything(), target)
        assert target.read_bytes() == first


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"must end in \.svg, \.pdf, \.png"):
        draw(everything(), tmp_path / "picture.gif")
    with pytest.raises(UserError, match="did you mean 'drift'"):
        draw(everything(), tmp_path / "picture.svg", ["drifts"])
    with pytest.raises(UserError, match="no map, matrix or curve"):
        draw(result(), tmp_path / "picture.svg")
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"matplotlib is missing; pip install 'taskvec\[figures\]'"):
        draw(everything(), tmp_path / "picture.svg")


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("matplotlib")
    run = tmp_path / "outputs" / "runs" / "a-run"
    run.mkdir(parents=True)
    (run / "result.json").write_text(everything().model_dump_json())
    outputs = ["--outputs", str(tmp_path / "outputs")]
    assert cli.main(["figure", "a-run", *outputs]) == 0
    assert capsys.readouterr().out == f"{run / 'figure.svg'}\n" and (run / "figure.svg").is_file()
    target = tmp_path / "only.png"
    assert cli.main(["figure", str(run / "result.json"), "-o", str(target), "--only", "drift"]) == 0
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
