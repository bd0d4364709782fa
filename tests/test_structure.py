"""The house's limits of size, and the README's commands."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, command

SOURCES = [path for folder in ("taskvec", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = [
    line.split("#")[0].strip() for block in re.findall(r"```\n(.*?)```", README, re.S) for line in block.splitlines()
]
RUNS = [line for line in SHOWN if line.startswith("taskvec") and "my_" not in line]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is {node.end_lineno - node.lineno + 1} lines long"


@pytest.mark.parametrize("line", RUNS)
def test_readme_commands_are_valid(line: str, tmp_path: Path):
    words = shlex.split(line)[1:]
    if words[0] == "run" or "=" in words[0] or words[0] == "-m":
        words = ["show", *(word for word in words if word not in ("-m", "run") and not word.startswith("sweep."))]
        words = [re.sub(r"^(seed|protocol)=([^,]+),.*", r"\1=\2", word) for word in words]
    elif words[0] not in ("list", "show", "doctor", "completion"):
        words = [*words, "--help"]
    done = command(None, *words)
    assert done.returncode == 0, done.stderr
