"""No work is lost or repeated: killed, concurrent and repeated runs end with the result of an undisturbed one."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import conftest
import forked
import pytest
import world

from taskvec.graph.result import Result, read_result
from taskvec.runner.folder import RunFolder

EVERY_STEP = [*world.FAST, "finetune.checkpoint_every=0"]
PHASES = ("finetune", "merge", "evaluate", "write")


def results(outputs: Path) -> list[Result]:
    return [read_result(path) for path in sorted(outputs.glob("runs/*/result.json"))]


def only(outputs: Path) -> Result:
    (result,) = results(outputs)
    return result


def snapshot(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Identity, time and size of every file below a folder but locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: ((s := path.stat()).st_ino, s.st_mtime_ns, s.st_size) for path in files}


def computed(folder: Path, when: str = "after") -> list[str]:
    """The artefacts, label and fingerprint, whose computation a child began (``before``) or ended (``after``)."""
    start = f"compute {when} "
    return [event.removeprefix(start) for event in forked.events(folder) if event.startswith(start)]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def no_leftovers(outputs: Path) -> bool:
    """Whether nothing temporary is left of the artefacts that are complete."""
    partial = list(outputs.glob("store/partial/*"))
    return not partial and not list(outputs.glob("store/*/.tmp-*"))


# The same command again.


def test_the_same_command_computes_nothing_and_does_not_import_torch(tiny, warm_outputs):
    before = snapshot(warm_outputs)
    words = ["--include", str(tiny), *world.FAST, f"outputs={warm_outputs}"]
    script = (
        f"import sys\nfrom taskvec.cli import main\ncode = main({words!r})\n"
        "heavy = {'torch', 'open_clip', 'transformers', 'datasets', 'wandb', 'PIL'} & set(sys.modules)\n"
        "print('imported:', *heavy)\nsys.exit(code)"
    )
    again = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "already done, nothing to compute" in again.stderr
    assert "merged" in again.stdout  # the table all the same
    assert again.stdout.splitlines()[-1] == "imported:"
    assert snapshot(warm_outputs) == before


def test_a_run_that_experiments_share_is_in_the_table_of_each(tiny, warm_outputs, tmp_path):
    outputs, user = shutil.copytree(warm_outputs, tmp_path / "outputs"), tmp_path / "user"
    (user / "experiment").mkdir(parents=True)
    for name in ("one", "two"):
        (user / "experiment" / f"{name}.yaml").write_text("# @package _global_\nseed: 0\n")
        done = conftest.command(
            tiny, "--include", str(user), *world.FAST, f"outputs={outputs}", f"experiment={name}"
        )
        assert "already done, nothing to compute" in done.stderr
    known = snapshot(outputs)
    for name in ("two", "one"):
        conftest.command(
            tiny, "--include", str(user), *world.FAST, f"outputs={outputs}", f"experiment={name}"
        )
        table = conftest.command(tiny, "table", str(outputs), "--where", f"experiment={name}")
        assert "merged" in table.stdout
    assert snapshot(outputs) == known
    assert (
        "merged"
        not in conftest.command(tiny, "table", str(outputs), "--where", "experiment=three").stdout
    )


def test_the_same_sweep_computes_nothing(tiny, outputs, tmp_path):
    words = ["-m", *world.FAST, f"outputs={outputs}", "seed=0,1"]
    assert forked.run(tiny, *words, folder=tmp_path / "first", events=True).returncode == 0
    assert len(computed(tmp_path / "first")) > 10
    before = snapshot(outputs)
    again = forked.run(tiny, *words, folder=tmp_path / "again", events=True)
    assert again.returncode == 0
    assert again.stdout.count("done ") == 2
    assert not computed(tmp_path / "again", "before")
    assert snapshot(outputs) == before


def test_a_new_run_computes_only_what_it_does_not_share(tiny, outputs, tmp_path):
    """A coefficient grid changes one cell; vectors and reference cells are read."""
    assert (
        forked.run(tiny, *world.FAST, f"outputs={outputs}", folder=tmp_path / "first").returncode
        == 0
    )
    words = [*world.FAST, f"outputs={outputs}", "protocol.grid=[0,1]"]
    assert forked.run(tiny, *words, folder=tmp_path / "second", events=True).returncode == 0
    assert [line.rsplit(" ", 1)[0] for line in computed(tmp_path / "second")] == ["answer merged"]
    second = next(r for r in results(outputs) if len(r.config["protocol"]["grid"] or ()) == 2)
    flags = {label: usage["computed"] for label, usage in second.timing["artefacts"].items()}
    assert [label.rsplit(" ", 1)[0] for label, flag in flags.items() if flag] == ["answer merged"]


# Killed.


@pytest.fixture(scope="module")
def undisturbed(tiny, warm_outputs, tmp_path_factory) -> tuple[list[str], Result, Path]:
    """The events, the result and the outputs of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for kind in ("head", "decoded"):
        shutil.copytree(warm_outputs / "store" / kind, folder / "outputs" / "store" / kind)
    ended = forked.run(
        tiny, *EVERY_STEP, f"outputs={folder}/outputs", folder=folder / "run", events=True
    )
    assert ended.returncode == 0, ended.stderr
    result = only(folder / "outputs")
    assert result.same_as(only(warm_outputs))
    return forked.events(folder / "run"), result, folder / "outputs"


def points(events: list[str], count: int = 5) -> list[int]:
    """Random events, ``count`` of each phase, by their numbers from 1."""
    generator = random.Random(3)
    by_phase = {
        phase: [n for n, e in enumerate(events, 1) if e.startswith(f"{phase} ")] for phase in PHASES
    }
    return [number for phase in PHASES for number in generator.sample(by_phase[phase], count)]


@pytest.mark.parametrize("index", range(20))
def test_a_killed_run_ends_with_the_undisturbed_result(index, tiny, outputs, undisturbed, tmp_path):
    events, expected, _ = undisturbed
    number = points(events)[index]
    words = [*EVERY_STEP, f"outputs={outputs}"]
    killed = forked.run(tiny, *words, folder=tmp_path / "killed", kill_at=number)
    assert killed.returncode == -9
    assert forked.events(tmp_path / "killed")[-1] == events[number - 1]
    for path in outputs.glob("runs/*"):
        run = RunFolder(path)
        status = run.status()
        if status.get("state") == "done":  # it was killed after its last word
            assert run.result().same_as(expected)
        else:
            assert status.get("state") in (None, "interrupted")
            assert status.get("reason", "killed").startswith(("killed", "the process was killed"))

    again = forked.run(tiny, *words, folder=tmp_path / "again", events=True)
    assert again.returncode == 0, again.stderr
    assert only(outputs).same_as(expected)
    assert RunFolder(next(outputs.glob("runs/*"))).status()["state"] == "done"
    assert no_leftovers(outputs)
    complete = set(computed(tmp_path / "killed"))
    # What was complete is not computed again
    assert not complete & set(computed(tmp_path / "again"))


def test_the_kills_cover_all_phases(undisturbed):
    events, _, _ = undisturbed
    assert Counter(events[n - 1].split(" ")[0] for n in points(events)) == dict.fromkeys(PHASES, 5)
    assert len(set(points(events))) == 20


def test_a_run_killed_again_and_again_gets_there(tiny, outputs, undisturbed, tmp_path):
    words = [*EVERY_STEP, f"outputs={outputs}"]
    for attempt in range(10):
        ended = forked.run(tiny, *words, folder=tmp_path / f"run-{attempt}", kill_at=230)
        if ended.returncode == 0:
            break
    assert ended.returncode == 0
    assert attempt >= 2
    assert only(outputs).same_as(undisturbed[1])
    assert no_leftovers(outputs)


def test_training_resumed_in_mid_run_gives_the_identical_file(tiny, outputs, undisturbed, tmp_path):
    events, _, reference = undisturbed
    steps = [
        number for number, event in enumerate(events, 1) if event == "finetune after save_if_due"
    ]
    words = [*EVERY_STEP, f"outputs={outputs}"]
    assert forked.run(tiny, *words, folder=tmp_path / "killed", kill_at=steps[8]).returncode == -9
    again = forked.run(tiny, *words, folder=tmp_path / "again", events=True)
    assert again.returncode == 0
    assert "training resumes at step 3" in again.stderr
    assert forked.events(tmp_path / "again").count("finetune after step") == len(steps) - 9
    files = [
        path.relative_to(reference) for path in reference.glob("store/vector/*/tensors.safetensors")
    ]
    assert len(files) == 3
    for file in files:
        assert (outputs / file).read_bytes() == (reference / file).read_bytes()


@pytest.mark.parametrize("damage", ["empty", "half", "bit"])
def test_a_damaged_checkpoint_is_named_and_not_used(damage, tiny, outputs, undisturbed, tmp_path):
    events, expected, _ = undisturbed
    steps = [
        number for number, event in enumerate(events, 1) if event == "finetune after save_if_due"
    ]
    words = [*EVERY_STEP, f"outputs={outputs}"]
    assert forked.run(tiny, *words, folder=tmp_path / "killed", kill_at=steps[3]).returncode == -9
    (checkpoint,) = outputs.glob("store/partial/*/training.safetensors")
    checkpoint.write_bytes(dict(forked.damaged(checkpoint.read_bytes(), seed=5))[damage])
    again = forked.run(tiny, *words, folder=tmp_path / "again")
    assert again.returncode == 0
    assert f"checkpoint {checkpoint} cannot be read" in again.stderr
    assert only(outputs).same_as(expected)


# Several at once.


def test_four_processes_share_one_sweep(tiny, outputs, undisturbed, tmp_path):
    words = ["-m", *world.FAST, f"outputs={outputs}", "seed=0,1"]
    folders = [tmp_path / f"process-{number}" for number in range(4)]
    children = [forked.start(tiny, *words, folder=folder, events=True) for folder in folders]
    for child in children:
        ended = child.wait()
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("done ") == 2
    begun = Counter(line for folder in folders for line in computed(folder, "before"))
    stored = {
        path.parent.name
        for kind in ("vector", "answer")
        for path in outputs.glob(f"store/{kind}/*/SHA256SUMS")
    }
    assert {line.rsplit(" ", 1)[1] for line in begun} >= stored
    assert set(begun.values()) == {1}
    first, second = results(outputs)
    assert first.same_as(undisturbed[1])
    alone = tmp_path / "alone/outputs"
    shutil.copytree(outputs / "store/head", alone / "store/head")
    assert (
        forked.run(
            tiny, *world.FAST, f"outputs={alone}", "seed=1", folder=tmp_path / "alone"
        ).returncode
        == 0
    )
    assert second.same_as(only(alone))


def test_others_go_on_when_the_holder_of_a_lock_is_killed(tiny, outputs, undisturbed, tmp_path):
    """One process trains and holds the locks of its run and of the vector; the others wait for one or the other."""
    words = [*EVERY_STEP, f"outputs={outputs}"]
    holder = forked.start(tiny, *words, folder=tmp_path / "holder", stop_at="finetune")
    until(lambda: (log := tmp_path / "holder/events").exists() and "finetune" in log.read_text())
    (run,) = outputs.glob("runs/*")
    assert RunFolder(run).status()["state"] == "running"

    same_run = [
        forked.start(tiny, *words, folder=tmp_path / f"same-{n}", events=True) for n in range(2)
    ]
    other_run = forked.start(
        tiny, *words, "protocol.subset_size=2", folder=tmp_path / "other", events=True
    )
    for child in same_run:
        until(lambda c=child: f"waiting for another process that works on {run.name}" in c.stderr)
    until(lambda: "waiting for another process that computes vector stripes" in other_run.stderr)
    holder.kill()
    assert holder.wait().returncode == -9
    for child in (*same_run, other_run):
        ended = child.wait()
        assert ended.returncode == 0, ended.stderr
    names = ("holder", "same-0", "same-1", "other")
    ended = Counter(line for name in names for line in computed(tmp_path / name))
    assert set(ended.values()) == {1}
    assert read_result(run / "result.json").same_as(undisturbed[1])
    assert len(results(outputs)) == 2
    assert no_leftovers(outputs)
