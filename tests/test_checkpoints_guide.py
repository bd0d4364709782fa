"""docs/checkpoints.md is tested by doing it: its commands run on tiny models with the names of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from test_checkpoints import adapted
from test_on_disk_tokenizers import WORDS, save, tokenizer

from taskvec.cli import main

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "checkpoints.md").read_text(
    encoding="utf-8"
)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)
CODE = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the models, adapters and the recipe of the page."""
    root = tmp_path_factory.mktemp("page")
    words = tokenizer(WORDS, 1)
    chat = tokenizer(WORDS, 2, ("<chat>",))
    for seed, name in enumerate(["base", "math", "code"]):
        save(root / "models" / name, words, 20, seed)
    save(root / "models" / "chat", chat, 21, 3)
    return root


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """Adapters and the base that they were trained on."""
    from test_checkpoints import model

    root = tmp_path_factory.mktemp("adapters")
    model("llama").save_pretrained(root / "models" / "base")
    adapted("llama", root / "adapters" / "first", seed=1, target_modules=["q_proj"])
    adapted("llama", root / "adapters" / "second", seed=2, target_modules=["v_proj"])
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command, place, lora, monkeypatch, capsys):
    folder = lora if "adapters/" in command else place
    (recipe,) = [text for _, text in BLOCKS if text.startswith("# recipe.yaml")]
    (folder / "recipe.yaml").write_text(recipe)
    monkeypatch.chdir(folder)
    program, *words = shlex.split(command)
    assert program == "taskvec"
    assert main(words) == 0, capsys.readouterr().err
    out = next(word.removeprefix("out=") for word in words if word.startswith("out="))
    assert (folder / out).exists() != ("--dry-run" in words)


def test_the_code_of_the_page_runs(lora, monkeypatch):
    (code,) = [text for text in CODE if not text.startswith("# convert.py")]
    monkeypatch.chdir(lora)
    names: dict = {}
    exec(compile(code, "docs/checkpoints.md", "exec"), names)
    assert len(names["weights"]) == len(names["base"].tensors)
