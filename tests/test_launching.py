"""Jobs of a sweep end with it, on the devices it was given; a name, a preset and a value are what was typed."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskvec.errors import UserError
from taskvec.graph.locking import held
from taskvec.runner import compose, expand, quoting
from taskvec.runner.folder import word
from taskvec.runner.launch import devices, processes
from taskvec.runner.launch.devices import chosen
from taskvec.runner.neighbours import notice
from taskvec.runner.sweep import at_home
from taskvec.runner.track.wandb import inherited_id

SWEEP = """
import sys
from taskvec.runner import signals
from taskvec.runner.launch import processes
processes.COMMAND = (sys.executable, sys.argv[1], sys.argv[2])
signals.install()
try:
    jobs = [["a=1"], ["a=2"], ["a=3"]]
    processes.run_processes(jobs, ["1/3", "2/3", "3/3"], processes.SweepConfig(jobs=2))
except KeyboardInterrupt as error:
    sys.exit(128 + getattr(error, "number", 2))
"""
JOB = """
import os, subprocess, sys, time
from taskvec.runner import signals
signals.install()
subprocess.Popen(["sleep", "300"])
open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
signals.die_with_sweep()
time.sleep(300)
"""


@pytest.fixture
def sweep(tmp_path):
    """A sweep of jobs that each start a process of their own and then wait, and the folder in which jobs sign."""
    job, signed = tmp_path / "job.py", tmp_path / "signed"
    job.write_text(JOB)
    signed.mkdir()
    words = [sys.executable, "-c", SWEEP, str(job), str(signed)]
    parent = subprocess.Popen(words, start_new_session=True, preexec_fn=heed_signals)
    until(lambda: len(list(signed.iterdir())) == 2)
    yield parent, [int(path.name) for path in signed.iterdir()]
    parent.kill()


def heed_signals() -> None:
    """Undo ``nohup`` and ``&`` around the tests, which a program has to respect."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(group: int) -> bool:
    """Whether a process of a job's group lives; zombies of a killed parent do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(found) == group and state != "Z":
            return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_no_job_outlives_a_sweep_that_was_told_to_end(name, sweep):
    parent, groups = sweep
    number = getattr(signal, name)
    parent.send_signal(number)
    assert parent.wait(60) == 128 + number
    until(lambda: not any(map(alive, groups)), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_job_outlives_a_killed_sweep(sweep):
    parent, groups = sweep
    parent.kill()
    leaders = [Path(f"/proc/{group}/stat") for group in groups]
    until(lambda: not any(path.exists() and ") Z" not in path.read_text() for path in leaders), 20)
    for group in groups:
        os.killpg(group, signal.SIGKILL) if alive(group) else None


@pytest.mark.parametrize(
    ("granted", "asked", "expected"),
    [
        (None, (0, 3), ("0", "3")),
        (None, ("GPU-77", 1), ("GPU-77", "1")),
        ("2,5", (5, 2), ("5", "2")),
        ("GPU-1a2b-33,GPU-9f00-44", (0, "GPU-9f00"), ("GPU-1a2b-33", "GPU-9f00-44")),
        ("MIG-aa,MIG-bb", ("MIG-bb", 0), ("MIG-bb", "MIG-aa")),
        ("2,5", (), ()),
    ],
)
def test_devices_are_among_those_that_were_given(granted, asked, expected, monkeypatch):
    grant(monkeypatch, granted)
    monkeypatch.setattr(devices, "count", lambda: 4)
    assert chosen(asked) == expected


NOT_THERE = ((None, 4), (None, -1), (None, "cuda"))
NOT_GRANTED = (("2,5", 0), ("", 0), ("GPU-1a", 1), ("MIG-aa,MIG-ab", "MIG-a"), ("3", "GPU-1"))
LABELS = (
    "paper/two",
    "x=1,y=2",
    'it\'s "so"',
    "~",
    "${seed}",
    "v[2]",
    "..",
    "a\nb",
    "é" * 300,
    "-x",
)
ODD = (
    "^blocks",
    "(q|k).weight",
    r"blocks\.[01]\.",
    "~/vit",
    "a,b",
    'it\'s "both"',
    "${x",
    "a=b",
    "#1",
    "back\\",
)


@pytest.mark.parametrize(("granted", "asked"), (*NOT_THERE, *NOT_GRANTED))
def test_other_devices_are_refused(granted, asked, monkeypatch):
    grant(monkeypatch, granted)
    monkeypatch.setattr(devices, "count", lambda: 4)
    with pytest.raises(UserError, match=f"sweep.devices: {asked} is not among"):
        chosen((asked,))


def grant(monkeypatch, granted: str | None) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if granted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", granted)


def test_two_jobs_are_never_one_run_of_wandb(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    monkeypatch.setenv("WANDB_RESUME", "must")
    assert not {"WANDB_RUN_ID", "WANDB_RESUME"} & set(processes.environment(None))
    assert inherited_id() is None  # exported in a shell
    assert "WANDB_RESUME" not in os.environ
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")  # by an agent
    assert [inherited_id(), inherited_id()] == ["abc", None]


# Names and values.


@pytest.mark.parametrize("label", LABELS)
def test_a_run_has_the_name_of_one_file(label):
    name = word(label)
    assert re.fullmatch(r"\w[\w.+-]{0,39}", name), name


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's folder with a suite and a recipe of names that exist already, one in a folder, and two experiments."""
    schema = "defaults:\n  - /schema/{}@_here_\n  - _self_\n"
    files = {
        "suite/mini8": schema.format("suite/images") + "tasks: [mnist, emoji]\n",
        "suite/a=1, b's [2]/two": schema.format("suite/images") + "tasks: [mnist, kana]\n",
        "finetune/full": schema.format("finetune/full") + "steps: 7\n",
        "experiment/one": "# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}\nfinetune: {lr: 0.1}\n",
        "experiment/two": "# @package _global_\nparts:\n- {seed: [5, 6], finetune.lr: 0.2}\n",
        "experiment/picky": "# @package _global_\n"
        "defaults:\n  - override /merge: ties\n  - override /transform: [pave]\n"
        "merge: {density: 0.4}\ntransform: {pave: {ratio: 0.5}}\n",
        "experiment/sloppy": "# @package _global_\n"
        "defaults:\n  - override /merge: ties\nmerge: {dnsity: 1}\n",
        "suite/bomb": "a: &a [x,x,x,x,x,x]\n"
        + "".join(f"k{i}: &k{i} [{', '.join(['*a'] * 9)}]\n" for i in range(20)),
    }
    for name, text in files.items():
        path = tmp_path / "it's ${mine}" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("TASKVEC_INCLUDE", str(tmp_path / "it's ${mine}"))
    compose.register_all()


def test_a_preset_of_the_users_wins_over_ours_of_the_same_name(mine):
    config = compose.resolve(compose.compose(["suite=mini8", "finetune=full"]))
    assert config.suite.tasks == ("mnist", "emoji")
    assert config.finetune.steps == 7


def test_a_preset_lies_in_a_folder_of_any_name(mine):
    config = compose.resolve(compose.compose(['suite="a=1, b\'s [2]/two"']))
    assert config.suite.tasks == ("mnist", "kana")


def test_a_sweep_over_experiments_keeps_the_sweep_of_each(mine):
    jobs = [job for words in expand.unions(["experiment=one,two"]) for job in expand.expand(words)]
    found = sorted(
        (config.experiment, config.seed, config.finetune.lr) for config in map(resolved, jobs)
    )
    assert found == [("one", 0, 0.1), ("one", 1, 0.1), ("two", 5, 0.2), ("two", 6, 0.2)]


def test_settings_of_an_option_that_the_command_line_replaces_are_left_out(mine, caplog):
    words = ["experiment=demo", "tracker=none"]
    assert resolved(words).tracker.kind == "none"
    with pytest.raises(UserError, match=r"tracker.mode \(command line\): unknown key"):
        resolved([*words, "tracker.mode=offline"])
    own = ["experiment=picky"]
    assert resolved(own).merge.density == resolved([*own, "merge=dare"]).merge.density == 0.4
    for transforms in ("[]", "[identity]"):
        config = resolved([*own, "merge=tsv", f"transform={transforms}"])
        assert config.merge.kind == "tsv" and "pave" not in config.transform
    # A key that no option has is a mistake, whichever is chosen
    with pytest.raises(UserError, match=r"merge.dnsity \(experiment/sloppy.yaml\): unknown key"):
        resolved(["experiment=sloppy", "merge=tsv"])


def resolved(words):
    return compose.resolve(compose.compose(words))


def test_a_file_that_multiplies_itself_is_refused_in_one_line(mine):
    with pytest.raises(UserError, match="bomb.yaml: not valid YAML: more than 100 aliases"):
        compose.compose(["suite=bomb"])


def test_what_hydra_cannot_read_is_shown_as_it_can(mine):
    compose.register_all()
    drawn = random.Random(5)
    values = [
        *ODD,
        *("".join(drawn.choices("ab\\\"'(){}[]|^$,=~ ", k=8)).strip() or "x" for _ in range(6)),
    ]
    shown = 0
    for value in values:
        try:
            compose.compose([f"finetune.select={value}"])
        except UserError as error:
            words = shlex.split(
                re.search(r"(?:own: |them, )(.*?)(?: is one value)?$", str(error), re.S)[1]
            )
            assert quoting.literal(words[0]) == value, error
            shown += 1
    assert shown > 10


def test_a_tilde_in_outputs_is_the_home_folder_for_every_launcher(monkeypatch):
    monkeypatch.setenv("HOME", "/home/o'neil")
    assert quoting.literal(at_home("outputs='~/out'")) == "/home/o'neil/out"
    assert at_home("outputs=here") == "outputs=here"


# Cores and neighbours.


def test_jobs_side_by_side_share_the_cores(monkeypatch):
    for name in processes.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert set(processes.share(3)) == set(processes.THREADS)
    for jobs, threads in ((1, "8"), (2, "4"), (3, "2"), (8, "1"), (20, "1")):
        assert set(processes.share(jobs).values()) == {threads}
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    assert "MKL_NUM_THREADS" not in processes.share(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes.share(2) == {}, "the user's own wins for all"
    assert processes.environment(None, {"A": "b"})["A"] == "b"


@pytest.mark.parametrize(
    ("pid", "host", "state", "told"),
    [
        (-1, "here", "running", True),
        (0, "here", "running", False),
        (-1, "elsewhere", "running", False),
        (-1, "here", "done", False),
    ],
)
def test_two_commands_on_one_outputs_folder_are_told_of_each_other(
    pid, host, state, told, tmp_path, monkeypatch, caplog
):
    monkeypatch.delenv("TASKVEC_SWEEP", raising=False)
    folder = tmp_path / "runs" / "kfac-s0-1a2b"
    name = socket.gethostname() if host == "here" else "another"
    status = {"state": state, "pid": os.getpid() + pid, "host": name}
    with held(folder / "run.lock", "works"):
        (folder / "status.json").write_text(json.dumps(status))
        notice(tmp_path)
        assert (
            "another command works on kfac-s0-1a2b in this outputs folder" in caplog.text
        ) == told
        caplog.clear()
        monkeypatch.setenv("TASKVEC_SWEEP", "1")
        notice(tmp_path)
        assert caplog.text == "", "a job of a sweep shares already"
    monkeypatch.delenv("TASKVEC_SWEEP")
    notice(tmp_path)
    assert caplog.text == "", "one that died is no neighbour"
