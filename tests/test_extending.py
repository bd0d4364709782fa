"""docs/extending.md is tested by doing it: its files are written and its commands run, on the tiny world."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import world

from taskvec import registry
from taskvec.cli import main

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
STUDY = ["finetune.steps=2", "finetune.warmup=1", "suite.tasks=[stripes]", "protocol.grid=[0,1]"]


def blocks(language: str) -> list[str]:
    """Return the text of the guide's blocks in a language."""
    return [
        text
        for found, text in BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
        if found == language
    ]


@pytest.fixture(scope="module")
def mine(tiny, tmp_path_factory):
    """The user's folder as the guide has it, and data for its suite."""
    folder = tmp_path_factory.mktemp("guide")
    for text in [*blocks("python"), *blocks("yaml")]:
        comment, _, body = text.partition("\n")
        path = folder / comment.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
    shutil.copytree(tiny / "data" / "stripes", folder / "mine" / "data" / "stripes")
    return folder / "mine"


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("command", [line for text in blocks("sh") for line in text.splitlines()])
def test_a_command_of_the_guide_runs(command, mine, tiny, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.setenv("TASKVEC_INCLUDE", os.pathsep.join([str(tiny), str(mine)]))
    program, *words = shlex.split(command)
    assert (program, words[:2]) == ("taskvec", ["--include", "mine"])
    short = STUDY if "-m" in words else [*world.FAST, "finetune.steps=2"]
    outputs = mine.parent / "outputs"
    assert main([*words[2:], *short, f"outputs={outputs}"]) == 0, capsys.readouterr().err


def test_every_kind_of_component_is_shown():
    shown = set(re.findall(r'@register\("(\w+)"', GUIDE.read_text(encoding="utf-8")))
    presets = {"backbone", "suite"}
    left = set(registry.PACKAGES) - shown - presets
    assert left == {"tracker", "adapter"}
