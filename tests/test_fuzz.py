"""Two hundred random edits of files that others write; `make fuzz` makes two thousand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "campaigns"))
import fuzz


def test_random_edits_are_taken_or_refused_in_one_line(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKVEC_INCLUDE", "")
    found = fuzz.fuzz(200, seed=11, folder=tmp_path)
    assert not found.problems, "\n".join(found.problems)
    assert {name.partition(":")[0] for name in found.counts} == set(found.targets)
