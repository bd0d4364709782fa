"""One ``outputs`` for several: two projects whose words are the same, and a reader without the right to write."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path

import conftest
import world
from test_error_path import as_nobody

from taskvec.cli import main
from taskvec.graph.result import Result, read_result


def project(tiny: Path, folder: Path, seed: int) -> Path:
    """Return a project with its own copy of the tiny world and its own images of one task; paths are relative."""
    copied = shutil.copytree(tiny, folder / "world")
    # A backbone's folder starts where the command runs, a task's at its file
    for path in copied.glob("*/*.yaml"):
        here = "world" if path.parent.name == "backbone" else ".."
        path.write_text(path.read_text().replace(str(tiny), here))
    images = copied / "data" / "stripes" / "test.parquet"
    world.write_split(images, "stripes", world.COUNTS["test"], seed=seed)
    return folder


def results(outputs: Path) -> dict[str, Result]:
    """Every result that is kept, by its text."""
    return {path.read_text(): read_result(path) for path in outputs.glob("runs/*/result*.json")}


def test_two_projects_of_the_same_words_keep_their_own_results(tiny, outputs, tmp_path):
    words = ["--include", "world", *world.FAST, "outputs=../outputs"]
    found = []
    for number in range(2):
        folder = project(tiny, tmp_path / f"project{number}", seed=50 + number)
        done = conftest.command(None, *words, environment={"PWD_FOR_TEST": str(folder)})
        assert done.returncode == 0, done.stderr
        found.append(results(outputs))
    first, both = found
    assert len(first) == 1 and len(both) == 2
    assert first.keys() < both.keys()  # the first project's, byte for byte
    theirs, ours = (result.rows for result in both.values())
    assert theirs != ours
    for number in range(2):
        folder = tmp_path / f"project{number}"
        again = conftest.command(None, *words, environment={"PWD_FOR_TEST": str(folder)})
        assert again.returncode == 0
        assert "already done, nothing to compute" in again.stderr
    assert results(outputs) == both


def test_a_finished_run_is_repeated_on_a_folder_that_is_read_only(tiny, warm_outputs, tmp_path):
    outputs = shutil.copytree(warm_outputs, tmp_path / "outputs")
    words = ["--include", str(tiny), *world.FAST, f"outputs={outputs}"]
    assert main(words) == 0  # and whatever it imports is there
    for path in (tiny, *tiny.rglob("*")):
        path.chmod(path.stat().st_mode | 0o444 | 0o111 * path.is_dir())
    for path in (outputs, *outputs.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555 | 0o055)

    def repeat() -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(words)
        return f"{said.getvalue()}\nexit {code}, uid {os.getuid()}"

    said = as_nobody(repeat, tmp_path)
    assert f"exit 0, uid {65534 if os.getuid() == 0 else os.getuid()}" in said, said
    assert "merged" in said
