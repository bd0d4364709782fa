"""Components of users get tensors that are theirs: what they change or share moves no number of anybody else's."""

from __future__ import annotations

import shutil
from pathlib import Path

import forked
import pytest
import world

from taskvec.graph.result import Result, read_result

HEADER = """
from typing import Literal
import torch
from taskvec.merge.base import Merge, TensorWise
from taskvec.protocols.base import Answer, Question
from taskvec.registry import register
from taskvec.transform.base import Transform
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Scaled
"""
# Each computes what task arithmetic, or the identity, does
SPOILING_MERGE = """
@register("merge", "own")
class Own(Merge):
    \"\"\"A sum whose vectors are spoilt once it is made.\"\"\"
    kind: Literal["own"] = "own"

    def compose(self, base, vectors, given):
        total = {name: sum(v.delta[name] for v in vectors).clone() for name in vectors[0].delta}
        for signed in vectors:
            for delta in dict(signed.delta).values():
                delta.fill_(7)
        return Scaled(base, TaskVector(total))
"""
SPOILING_TRANSFORM = """
@register("transform", "own")
class Own(Transform):
    \"\"\"The identity, whose input is spoilt afterwards.\"\"\"
    kind: Literal["own"] = "own"

    def apply(self, vector, of, fit, given):
        kept = {name: delta.clone() for name, delta in vector.items()}
        for delta in vector.values():
            delta.mul_(-3)
        return TaskVector(kept)
"""
SHARING_TRANSFORM = """
@register("transform", "own")
class Own(Transform):
    \"\"\"The identity as views of one long tensor, each bias zero: one number that is expanded.\"\"\"
    kind: Literal["own"] = "own"

    def apply(self, vector, of, fit, given):
        together = torch.cat([delta.flatten() for delta in vector.values()])
        found, start, zero = {}, 0, torch.zeros(1)
        for name, delta in vector.items():
            found[name] = together[start : start + delta.numel()].view(delta.shape)
            start += delta.numel()
            if name.endswith("bias"):
                found[name] = zero.expand(delta.shape)
            elif delta.ndim == 2 and delta.shape[0] == delta.shape[1]:
                found[name] = found[name].T.contiguous().T
        return TaskVector(found)
"""
PLAIN_TRANSFORM = """
@register("transform", "own")
class Own(Transform):
    \"\"\"The identity with zero biases, in tensors of their own.\"\"\"
    kind: Literal["own"] = "own"

    def apply(self, vector, of, fit, given):
        found = {}
        for name, delta in vector.items():
            found[name] = torch.zeros_like(delta) if name.endswith("bias") else delta.clone()
        return TaskVector(found)
"""
SPOILING_BASE = """
@register("merge", "own")
class Own(Merge):
    \"\"\"A sum that is added to the base in place.\"\"\"
    kind: Literal["own"] = "own"

    def compose(self, base, vectors, given):
        for signed in vectors:
            for name, delta in signed.delta.items():
                base[name].add_(delta)
        return Scaled(base, TaskVector({}))
"""


@pytest.fixture
def ran(tiny: Path, outputs: Path, tmp_path: Path):
    """Run the command with a component of a user's, and return how it ended and its result."""

    def run(code: str, *words: str, called: str = "run") -> tuple[forked.Finished, Result | None]:
        folder = tmp_path / called
        folder.mkdir()
        (folder / "own.py").write_text(HEADER + code)
        own = Path(shutil.copytree(outputs, outputs.parent / f"outputs-{called}"))
        arguments = ["--include", str(folder / "own.py"), *world.FAST, f"outputs={own}"]
        ended = forked.run(tiny, *arguments, *words, folder=folder / "said")
        found = [read_result(path) for path in own.glob("runs/*/result.json")]
        return ended, found[0] if found else None

    return run


def accuracies(result: Result) -> dict[str, dict[str, float]]:
    """Return the test accuracies by row and task."""
    return {row.row: dict(row.metrics["accuracy"].values) for row in result.rows}


@pytest.mark.parametrize(
    ("code", "word"),
    [(SPOILING_MERGE, "merge=own"), (SPOILING_TRANSFORM, "transform=own")],
    ids=["merge", "transform"],
)
def test_what_a_user_changes_in_place_is_nobody_elses(code, word, ran):
    ended, found = ran(code, word)
    assert ended.returncode == 0, ended.stderr
    _, plain = ran("", called="plain")
    assert accuracies(found) == accuracies(plain)


def test_what_a_user_returns_may_share_storage_be_a_view_or_be_expanded(ran):
    ended, shared = ran(SHARING_TRANSFORM, "transform=own")
    assert ended.returncode == 0, ended.stderr
    _, plain = ran(PLAIN_TRANSFORM, "transform=own", called="plain")
    assert accuracies(shared) == accuracies(plain)


def test_the_base_cannot_be_changed_unnoticed(ran):
    ended, _ = ran(SPOILING_BASE, "merge=own")
    assert ended.returncode == 1
    said = "merge=own changes the weights of the model that it was given; let it work on copies"
    assert said in ended.stderr
