"""Runs in a notebook: shown as a table, as a data frame, as figures; the example notebook runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from report_world import synthetic, template

import taskvec
from taskvec.errors import UserError
from taskvec.report.summary import KINDS


@pytest.fixture(scope="module")
def place(warm_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose outputs hold made-up runs of three merges, two seeds each."""
    folder = tmp_path_factory.mktemp("notebook")
    synthetic(
        folder / "outputs", template(warm_outputs), 30, names=("ties", "tsv", "task_arithmetic")
    )
    return folder


def test_runs_are_shown_as_a_table_and_as_figures(place: Path):
    found = taskvec.runs(place / "outputs", where={"row": "merged"})
    shown = found._repr_html_()
    assert shown.startswith("<table") and "task_arithmetic" in shown and "±" in shown
    assert len(found.frame()) == 30 and set(found.frame()["merge"]) == {
        "ties",
        "tsv",
        "task_arithmetic",
    }
    for kind in KINDS:
        image = found.figure(kind)._repr_png_()
        assert image.startswith(b"\x89PNG")
    only = taskvec.runs(place / "outputs", where={"row": "merged", "merge": "ties"})
    assert set(only.figure("bars").pictures[0].series) == {"ties"}
    with pytest.raises(UserError, match="did you mean"):
        found.figure("bar")


def test_a_figure_is_saved_in_the_size_of_a_paper(place: Path, tmp_path: Path):
    drawn = taskvec.runs(place / "outputs", where={"row": "merged"}).figure("bars")
    drawn.save(tmp_path / "bars.pdf", width="text")
    assert b"/MediaBox [ 0 0 486 " in (tmp_path / "bars.pdf").read_bytes()
    with pytest.raises(UserError, match="pdf"):
        drawn.save(tmp_path / "bars.txt")


def test_the_example_notebook_runs(place: Path, tmp_path: Path):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    path = ROOT / "experiments" / "comparing.ipynb"
    notebook = nbformat.read(path, as_version=4)
    kept = shown_by(notebook)
    shutil.copytree(place / "outputs", tmp_path / "outputs")
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    kinds = shown_by(notebook)
    assert kinds == kept, "as it was committed"
    assert (
        "text/html" in kinds[0] and "image/png" in kinds[2] and (tmp_path / "radar.pdf").is_file()
    )


def shown_by(notebook) -> list[set[str]]:
    """What kinds of output each cell of code shows."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found.append({kind for output in cell.outputs for kind in output.get("data", ())})
    return found
