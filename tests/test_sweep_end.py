"""A sweep ends with its answer: what is ranked and by what, how runs and lines are called, and the command alone."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import world
from conftest import command
from test_package import METHOD
from test_verbs import run  # noqa: F401 (a fixture)
from world import FAST, TASKS

from taskvec import registry
from taskvec.errors import UserError
from taskvec.graph.plan import Plan
from taskvec.graph.result import Result, read_result
from taskvec.protocols.rows import Criterion
from taskvec.runner import compose, progress, ranking
from taskvec.runner.execute import execute
from taskvec.runner.folder import RunFolder, run_id, study
from taskvec.runner.survey import trusted, without

Run = Callable[..., tuple[int, str, str]]
SHORT = [*FAST, "suite.tasks=[stripes]", "protocol.grid=[0,1]"]


@pytest.fixture
def configured(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return the typed run of some overrides in the tiny world."""
    monkeypatch.setenv("TASKVEC_INCLUDE", str(tiny))
    compose.register_all()
    return lambda *words: compose.resolve(compose.compose([*FAST, *words]))


# --- the answer -----------------------------------------------------------------------------------------------------


def test_a_sweep_ends_with_the_best_job_and_its_command(run: Run, outputs: Path, capsys):  # noqa: F811
    status, out, err = run(*SHORT, "finetune.lr=1e-4,1e-2", "seed=0,1", "-m")
    assert status == 0, err
    values = {
        path.parent.name: read_result(path).criterion.value
        for path in outputs.glob("runs/*/result.json")
    }
    lines = re.findall(r"^  (\d+) +done +([\d.]+) +(\S+)  \[(.*)\]$", out, re.M)
    assert [int(number) for number, *_ in lines] == [1, 2, 3, 4]
    shown = [values[name] for _, _, name, _ in lines]
    assert shown == sorted(values.values(), reverse=True)
    assert all(f"{values[name]:.4f}" == value for _, value, name, _ in lines)
    assert all(re.fullmatch(r"\d/4 finetune.lr=\S+ seed=\d", title) for *_, title in lines)
    best, command = re.search(r"^best: (\S+)\n  (taskvec .*)$", out, re.M).groups()
    assert best == lines[0][2] and "accuracy" not in out
    alone = [
        word for word in shlex.split(command) if "=" in word and not word.startswith("outputs=")
    ]
    status, again, _ = run(*alone)
    assert status == 0 and f"{best}/result.json" in again, "the command alone is that run"


def drawn(criterion: Criterion, name: str, contest: str = "suite=a {}") -> ranking.Job:
    result = Result(run_id=name, fingerprint=name, config={}, rows=(), criterion=criterion)
    return ranking.Job(name, (f"seed={name}",), name, "done", "", result, contest)


def test_only_comparable_validation_numbers_are_ranked():
    rng = random.Random(3)
    up = [drawn(Criterion(name="merged/validation", value=rng.random()), f"u{i}") for i in range(5)]
    down = [
        drawn(Criterion(name="negated/validation", value=rng.random(), better="lower"), f"d{i}")
        for i in range(5)
    ]
    other = drawn(Criterion(name="merged/validation", value=2.0), "o", "suite=b {}")
    tested = drawn(Criterion(name="merged/accuracy", value=3.0, split="test"), "t")
    unclear = drawn(Criterion(name="drift", value=4.0, better="neither"), "n")
    jobs = [*up, *down, other, tested, unclear]
    rng.shuffle(jobs)
    found = {group[0].name[0]: [job.name for job in group] for group in ranking.ranked(jobs)}
    assert found["u"] == [job.name for job in sorted(up, key=lambda j: -j.result.criterion.value)]
    assert found["d"] == [job.name for job in sorted(down, key=lambda j: j.result.criterion.value)]
    assert found["o"] == ["o"] and set(found) == {"u", "d", "o"}
    lines = ranking.summary(jobs)
    assert sum(ranking.UNRANKED in line for line in lines) == 2
    assert not any(number in "\n".join(lines) for number in ("3.0000", "4.0000"))
    assert sum(line.startswith("best: ") for line in lines) == 2, "one job alone is no contest"


# --- no way from a test split to a choice ---------------------------------------------------------------------------

PAIR = "suite.tasks=[stripes,corners]"
FOUR = "suite.tasks=[stripes,corners,colours,control]"
PROTOCOLS = {
    "addition": [PAIR],
    "negation": [PAIR],
    "analogy": [FOUR, "suite.control=null", "protocol.a=stripes", "protocol.b=corners", "protocol.c=colours",
                "protocol.target=control"],
    "few_shot": [PAIR, "merge=atlas", "merge.schedule.steps=2", "protocol.shots=2"],
    "out_of_distribution": [PAIR, "protocol.targets=[stripes]", "suite.held_out=[colours]", "protocol.shots=2",
                            "merge=atlas", "merge.schedule.steps=2"],
    "test_time": [PAIR, "merge=atlas", "merge.schedule.steps=2"],
    "analysis": [PAIR],
    "transfer": [PAIR, "protocol.grid=[0,1]"],
    "disentanglement": [PAIR, "protocol.grid=[0,1]"],
}  # fmt: skip
# One has a test split alone (tests/test_harness.py), the other evaluates one model; neither chooses anything.
ELSEWHERE = {"harness", "zero_shot"}


def test_every_protocol_is_looked_at():
    assert {entry.name for entry in registry.entries("protocol")} == {*PROTOCOLS, *ELSEWHERE}


@pytest.fixture(scope="module")
def retested(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with other test examples: the pictures of another task under the labels of this one."""
    root = tmp_path_factory.mktemp("retested")
    shutil.copytree(tiny, root, dirs_exist_ok=True)
    others = dict(zip((*TASKS, "control"), ("control", *TASKS), strict=True))
    for task, other in others.items():
        shutil.copy(tiny / "data" / other / "test.parquet", root / "data" / task / "test.parquet")
        rename_classes(root / "data" / task / "test.parquet", task)
    world.write_configs(root)
    (root / "backbone" / "tiny.yaml").write_text((tiny / "backbone" / "tiny.yaml").read_text())
    return root


def rename_classes(path: Path, task: str) -> None:
    rows = parquet.read_table(path).to_pydict()
    names = [f"{task} {number}" for number in range(4)]
    world.write_table(path, rows["image"], rows["label"], names)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_test_example_reaches_a_choice_or_a_ranking(
    name: str, tiny: Path, retested: Path, warm_outputs: Path, monkeypatch
):
    found = []
    for place in (tiny, retested):
        monkeypatch.setenv("TASKVEC_INCLUDE", str(place))
        compose.register_all()
        words = [
            *FAST,
            *PROTOCOLS[name],
            f"protocol={name}",
            f"outputs={shared_outputs(warm_outputs)}",
        ]
        config = compose.resolve(compose.compose(words))
        plan = Plan(config)
        seen = plan.data_seen()
        assert not any(place.endswith("/test") for place in seen.get("selection", ()))
        assert not any(
            grant.split == "test" and grant.labels and grant.use != "report"
            for grant in config.protocol.grants(config.suite)
        )
        outcome = execute(config)
        found.append(outcome.result)
    first, second = found
    assert [row.metrics for row in first.rows] != [row.metrics for row in second.rows], (
        "the test is another"
    )
    assert [(row.alpha, row.alphas) for row in first.rows] == [
        (row.alpha, row.alphas) for row in second.rows
    ]
    assert first.curves == second.curves
    assert first.criterion.ranks == (first.criterion.split == "val")
    if first.criterion.ranks:
        assert first.criterion == second.criterion


def shared_outputs(warm: Path) -> Path:
    return warm.parent / "retested"


# --- names ----------------------------------------------------------------------------------------------------------

NAMES = {
    "": "tiny-tiny-addition",
    "finetune=linear_ft": "linear_ft-tiny-tiny-addition",
    "method=kfac": "kfac-tiny-tiny-addition",
    "merge=ties": "ties-tiny-tiny-addition",
    "method=pave merge=ties": "pave-ties-tiny-tiny-addition",
    "transform=[pave,random_maps] merge=tsv": "pave-random_maps-tsv-tiny-tiny-addition",
    "finetune=kfac merge=ties protocol=negation": "kfac-ties-tiny-tiny-negation",
    "method=theseus source=tiny": "theseus-tiny-tiny-addition-from_tiny",
    "finetune.lr=0.1 seed=3": "tiny-tiny-addition",
}


@pytest.mark.parametrize("words", NAMES)
def test_a_run_is_called_by_what_was_chosen(words: str, configured):
    config = configured(*words.split())
    assert study(config) == NAMES[words]
    assert re.fullmatch(rf"{re.escape(NAMES[words])}-s{config.seed}-[0-9a-f]{{8}}", run_id(config))


def test_jobs_are_called_by_what_differs():
    jobs = [
        ["suite=a", f"finetune={name}", f"seed={seed}"]
        for name in ("full", "kfac")
        for seed in (0, 1)
    ]
    assert progress.titles(jobs)[2] == "3/4 finetune=kfac seed=0"
    assert progress.titles([["a=1"]]) == ["1/1"] and progress.titles([]) == []


def test_lines_of_a_sweep_say_which_job_they_are_of(tiny: Path, outputs: Path):
    done = command(
        tiny, "-m", *SHORT, "finetune=full,linear_ft", "sweep.jobs=2", f"outputs={outputs}"
    )
    assert done.returncode == 0, done.stderr
    for title in ("1/2 finetune=full", "2/2 finetune=linear_ft"):
        own = [line for line in done.stderr.splitlines() if line.startswith(f"[{title}] ")]
        assert any(re.search(r"\] vector stripes 3/6, loss \d", line) for line in own), done.stderr
    assert "\x1b" not in done.stderr and done.stderr.startswith("2 jobs\n")


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal of pty")
def test_a_terminal_gets_bars_with_the_time_left(tiny: Path, outputs: Path):
    words = ["-m", *SHORT, "merge=task_arithmetic,ties", f"outputs={outputs}"]
    master, slave = pty.openpty()
    shell = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "taskvec", "--include", str(tiny), *words],
        stdout=subprocess.DEVNULL, stderr=slave, env=shell,
    )  # fmt: skip
    os.close(slave)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while block := os.read(master, 1 << 16):
            said += block
    assert process.wait(60) == 0
    text = said.decode()
    assert "[1/2 merge=task_arithmetic] vector stripes" in text
    assert re.search(r"[━╸╺]{5}.* \d+/\d+ .*\d:\d\d:\d\d|-:--:--", text), text


# --- the command of a run -------------------------------------------------------------------------------------------


def test_a_run_knows_its_include_and_retry_uses_it(
    tiny: Path, outputs: Path, tmp_path: Path, capsys
):
    mine = tmp_path / "my folder"
    mine.mkdir()
    (mine / "sign_sum.py").write_text(METHOD)
    words = ["-m", *SHORT, "merge=sign_sum", "finetune.lr=3e-3,1e30", f"outputs={outputs}"]
    done = command(tiny, "--include", str(mine), *words)
    assert done.returncode == 1 and "1 failed" in done.stderr
    recorded = [json.loads(path.read_text()) for path in outputs.glob("runs/*/status.json")]
    for status in recorded:
        assert status["include"] == [str(tiny), str(mine)]
        assert shlex.split(status["command"])[:5] == [
            "taskvec",
            "--include",
            str(tiny),
            "--include",
            str(mine),
        ]
    shown = command(tiny, "status", "--outputs", str(outputs)).stdout
    assert f"made with --include {mine}; give it here too" in shown
    assert shown.startswith("failed") and "\nunchecked" in shown and "unknown merge" not in shown
    again = command(None, "retry", "--outputs", str(outputs))
    assert "1 run again, 1 failed" in again.stderr and "unknown" not in again.stdout, again.stderr
    folder = next(RunFolder(path) for path in outputs.glob("runs/sign_sum*"))
    mine.rename(tmp_path / "moved")
    assert without(folder) == f"made with --include {mine}, which is no longer there"


def test_code_that_somebody_else_names_is_not_loaded(tmp_path: Path, monkeypatch):
    folder = RunFolder(tmp_path)
    (tmp_path / "status.json").write_text(
        json.dumps({"state": "failed", "include": ["/tmp/evil.py"]})
    )
    assert trusted(folder) == [Path("/tmp/evil.py")]
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    with pytest.raises(UserError, match="another user's: give --include /tmp/evil.py yourself"):
        trusted(folder)
