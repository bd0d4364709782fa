"""The functions of a notebook: records, vectors, merges and scores agree with what the command computes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
import world
from conftest import ROOT
from merge_world import draw

import taskvec
from taskvec.cli import main
from taskvec.errors import UserError
from taskvec.registry import entries
from taskvec.vectors import TaskVector


def random_vectors(count: int) -> list[TaskVector]:
    return [TaskVector(draw(seed)) for seed in range(count)]


@pytest.fixture(scope="module")
def outputs(tiny, tmp_path_factory):
    """An outputs folder with a run of TIES on the tiny world."""
    folder = tmp_path_factory.mktemp("api") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKVEC_INCLUDE", str(tiny))
        words = [*world.FAST, "merge=ties", "merge.density=0.3", "protocol.grid=[0.5]"]
        assert main([*words, f"outputs={folder}"]) == 0
        yield folder


def test_records_are_those_of_the_result(outputs):
    found = taskvec.runs(outputs, where={"row": "merged", "merge.density": 0.3, "seed": 0})
    assert repr(found) == "Runs(1 records of 1 runs)"
    record = found[0]
    assert record["merge"] == "ties" and 0 <= record["accuracy/stripes"] <= 1
    frame = taskvec.runs(outputs).frame()
    assert len(frame) == len(taskvec.runs(outputs)) > 2
    assert frame.set_index("row").loc["merged", "accuracy"] == record["accuracy"]
    assert "merged" in taskvec.runs(outputs).table(style="html")
    with pytest.raises(UserError, match="no record has row=nothing"):
        taskvec.runs(outputs, where={"row": "nothing"})
    with pytest.raises(UserError, match="unknown key 'sede'.*did you mean 'seed'"):
        taskvec.runs(outputs, where={"sede": 0})


def test_vectors_merge_and_score_as_in_the_run(outputs):
    (folder,) = (outputs / "runs").iterdir()
    vectors = {task: taskvec.load_vector(folder, task) for task in world.TASKS}
    merged = taskvec.merge(vectors, "ties", density=0.3)
    words = [f"outputs={outputs}"]
    measured = taskvec.evaluate(merged, backbone="tiny", suite="tiny", alpha=0.5, overrides=words)
    record = taskvec.runs(outputs, where={"row": "merged"})[0]
    assert measured == {task: record[f"accuracy/{task}"] for task in world.TASKS}
    start = taskvec.evaluate(tasks=["corners"], backbone="tiny", suite="tiny", overrides=words)
    zero_shot = taskvec.runs(outputs, where={"row": "zero_shot"})[0]
    assert start == {"corners": zero_shot["accuracy/corners"]}
    with pytest.raises(UserError, match="unknown task 'cornrs'.*'corners'"):
        taskvec.evaluate(tasks=["cornrs"], backbone="tiny", suite="tiny", overrides=words)
    with pytest.raises(UserError, match="'cornrs' is none of the run's"):
        taskvec.load_vector(folder, "cornrs")
    with pytest.raises(UserError, match="other base weights"):
        taskvec.evaluate(merged, ["mnist"], overrides=words)


def test_a_vector_is_loaded_from_a_file_and_from_the_store_and_prints_as_one_line(
    outputs, tmp_path
):
    (folder,) = (outputs / "runs").iterdir()
    vector = taskvec.load_vector(folder, "stripes")
    vector.save(tmp_path / "stripes.safetensors")
    loaded = taskvec.load_vector(tmp_path / "stripes.safetensors")
    stored = [taskvec.load_vector(place) for place in (outputs / "store/vector").iterdir()]
    same = [all(torch.equal(other[name], vector[name]) for name in vector) for other in stored]
    assert same.count(True) == 1 and all(torch.equal(loaded[name], vector[name]) for name in vector)
    text = repr(vector)
    entries_in = sum(delta.numel() for delta in vector.values())
    assert "\n" not in text and len(text) < 120
    assert f"{len(vector)} tensors, {entries_in:,} entries, norm " in text and "standard" in text
    for place in (tmp_path / "none", outputs / "store"):
        with pytest.raises(UserError, match="no task vector, stored artefact or run"):
            taskvec.load_vector(place)


def test_every_merge_works_in_memory_or_says_why_not():
    vectors = {f"t{place}": vector for place, vector in enumerate(random_vectors(2))}
    worked, refused = set(), set()
    for entry in entries("merge"):
        if not entry.shipped:
            continue
        try:
            merged = taskvec.merge(vectors, entry.name)
        except UserError as error:
            assert f"merge={entry.name}" in str(error)
            refused.add(entry.name)
            continue
        assert isinstance(merged, TaskVector)
        worked.add(entry.name)
    assert {"task_arithmetic", "ties", "dare", "iso_c", "tsv"} <= worked
    assert {"fisher", "regmean", "adamerging"} <= refused


def test_merges_in_memory_are_checked():
    first, second = random_vectors(2)
    total = taskvec.merge([first, second])
    assert all(torch.allclose(total[name], first[name] + second[name]) for name in first)
    with pytest.raises(UserError, match="merge=ties: densty: .*did you mean 'density'"):
        taskvec.merge([first, second], "ties", densty=0.1)
    with pytest.raises(UserError, match="unknown merge 'tees'"):
        taskvec.merge([first, second], "tees")
    with pytest.raises(UserError, match="no vectors given"):
        taskvec.merge([])
    other = TaskVector(dict(second), {"base_hash": "b" * 64})
    with pytest.raises(UserError, match="different base weights"):
        taskvec.merge([TaskVector(dict(first), {"base_hash": "a" * 64}), other])
    name, tensor = next(iter(second.items()))
    wider = TaskVector(dict(second) | {name: torch.cat([tensor, tensor])})
    for method in ("task_arithmetic", "ties", "slerp", "tsv"):
        with pytest.raises(UserError, match=f"merge: {name} is .* in vector 1, .* elsewhere"):
            taskvec.merge([first, wider], method)
    with pytest.raises(UserError, match=f"base= has no {name}, which vector 0 has"):
        taskvec.merge([first, second], base={})


def test_importing_the_package_imports_nothing_heavy():
    program = (
        "import sys, taskvec; dir(taskvec); taskvec.merge; "
        "print(sorted({'torch', 'hydra', 'pandas', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_example_of_the_readme(outputs, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    (example,) = [block for block in blocks if "import taskvec\n" in block]
    # on the tiny world, whose run is done
    names = {"mnist": "stripes", "emoji": "corners", "mini_clip_s": "tiny", "mini8": "tiny"}
    for theirs, ours in names.items():
        assert theirs in example
        example = example.replace(theirs, ours)
    monkeypatch.chdir(outputs.parent)
    exec(compile(example, "README.md", "exec"), {})
    vector, scores = capsys.readouterr().out.splitlines()
    assert vector.startswith("TaskVector(") and scores.startswith("{'stripes': ")
