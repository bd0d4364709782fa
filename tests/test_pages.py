"""The pages of docs/ are tested by doing them: their files are written, and their commands run, in an empty folder."""

from __future__ import annotations

import os
import re
import runpy
import shlex
from pathlib import Path

import pages
import pytest
import torch

from taskvec.cli import main
from taskvec.cli.docs import pages as printed
from taskvec.cli.docs import title


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.page
@pytest.mark.parametrize("topic", pages.JOBS)
def test_a_page_does_what_it_says(topic: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    commands = pages.steps(topic, tmp_path)
    assert commands
    for command in commands:
        monkeypatch.setitem(os.environ, "TASKVEC_INCLUDE", "")
        program, *words = shlex.split(command, comments=True)
        if program == "pip":  # the extras are here, and their names are checked below
            continue
        if program == "python":
            runpy.run_path(words[0], run_name="__main__")
            continue
        assert program == "taskvec", command
        assert main(words) == 0, (command, capsys.readouterr().err)


def test_extras_that_pages_name_exist():
    import tomllib

    project = tomllib.loads((pages.DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    for path in pages.DOCS.glob("*.md"):
        for names in re.findall(r"taskvec\[([\w,-]+)\]", path.read_text(encoding="utf-8")):
            assert set(names.split(",")) <= set(extras), path


def test_every_page_is_printed_under_its_name(capsys):
    assert main(["docs"]) == 0
    listed = capsys.readouterr().out
    for topic, path in printed().items():
        assert topic in listed and title(path) in listed
        assert main(["docs", topic]) == 0
        assert capsys.readouterr().out.strip() == path.read_text(encoding="utf-8").strip()


def test_links_between_pages_lead_somewhere():
    for path in pages.DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+?)\)", path.read_text(encoding="utf-8")):
            assert target.startswith("http") or (path.parent / target).exists(), (path.name, target)
