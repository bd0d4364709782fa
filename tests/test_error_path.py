"""Whatever goes wrong is one line: full disks, unreadable folders, hostile files, mistakes of our own."""

from __future__ import annotations

import ast
import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import world
from conftest import command
from test_results import made

from taskvec import cli
from taskvec.errors import UserError, describe, disk_is_full
from taskvec.graph import locking
from taskvec.graph.store import MANIFEST
from taskvec.runner import progress, signals
from taskvec.runner.folder import RunFolder, run_folders
from taskvec.runner.yaml_files import read_yaml

HOSTILE = {
    "empty": b"",
    "list": b"[]",
    "deep": b"[" * 200_000,
    "types": b'{"state": {"a": 1}, "experiments": 5, "artefacts": "x"}',
    "control": b'{"state": "failed", "reason": "\\u001b[2J\\u202e\\nx"}',
    "nan": b'{"state": NaN}',
    "latin": '{"state": "é"}'.encode("latin-1"),
    "zeros": bytes(1000),
    "huge": b'{"state": "failed", "reason": "'
    + b"x" * 1000
    + b'", "experiments": ['
    + b'"a",' * 100
    + b'"b"]}',
}
BROKEN = """
from typing import Literal
from taskvec.merge.base import Merge
from taskvec.registry import register

@register("merge", "broken")
class Broken(Merge):
    \"\"\"A method with a mistake that shows when it works, or when it is planned.\"\"\"
    kind: Literal["broken"] = "broken"
    early: bool = False

    def needs(self, scope):
        return [1 / 0] if self.early else []

    def compose(self, base, vectors, given):
        return base["nothing of that name"]
"""
PACKAGE = Path(cli.__file__).resolve().parent.parent
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x9b\u202e]")


@pytest.fixture
def hostile(tmp_path) -> Path:
    """An outputs folder with one run for each hostile status, and the same content as config and result."""
    for name, content in HOSTILE.items():
        folder = tmp_path / "outputs" / "runs" / name
        folder.mkdir(parents=True)
        for file in ("status.json", "config.yaml", "result.json"):
            (folder / file).write_bytes(content)
    folder = tmp_path / "outputs" / "runs" / "pipe"
    folder.mkdir()
    os.mkfifo(folder / "status.json")
    done = tmp_path / "outputs" / "runs" / "done\x1b[31m"
    done.mkdir()
    for file in ("config.yaml", "result.json"):
        (done / file).write_bytes(HOSTILE["deep"])
    (done / "status.json").write_text('{"state": "done"}')
    return tmp_path / "outputs"


VERBS = (["status"], ["status", "--json"], ["table"], ["compare", "merged", "zero_shot"], ["retry"])


@pytest.mark.parametrize("verb", VERBS)
def test_hostile_records_stop_no_verb_and_steer_no_terminal(verb, hostile, capfd, caplog):
    status = cli.main([*verb, "--outputs", str(hostile)])
    shown = capfd.readouterr()
    text = shown.out + shown.err
    assert status in (0, 1, 2)
    assert not CONTROLS.search(text), text
    assert "Traceback" not in text + caplog.text
    if verb == ["status"]:
        assert len(shown.out.splitlines()) == len(HOSTILE) + 3  # pipe, done, and the total
        assert "deep" in shown.out and "unreadable" in shown.out


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: " * 5000,
        "&a [*a]",
        "x: !!python/object/apply:os.system [ls]",
        "\x00",
        "a: 'b",
    ],
)
def test_no_yaml_hurts(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    try:
        read_yaml(tmp_path / "config.yaml")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


def test_an_unreadable_folder_is_not_an_empty_one(tmp_path):
    """Another user's outputs under umask 077, looked at without the rights of root."""
    (tmp_path / "outputs" / "runs" / "one").mkdir(parents=True)
    for path in (tmp_path / "outputs").rglob("*"):
        path.chmod(0o700)
    (tmp_path / "outputs").chmod(0o755)

    def look() -> str:
        try:
            return str(run_folders(tmp_path / "outputs"))
        except UserError as error:
            return str(error)

    assert "cannot be read: Permission denied" in as_nobody(look, tmp_path)
    (tmp_path / "outputs" / "runs").chmod(0o755)
    assert "unreadable" in as_nobody(
        lambda: str([f.status() for f in run_folders(tmp_path / "outputs")]), tmp_path
    )


def as_nobody(look, folder: Path) -> str:
    """Return what a function says in a process without rights of its own."""
    if os.getuid() == 0:
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o055)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(writer, look().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def test_a_mistake_of_ours_names_the_file_with_its_traceback(monkeypatch, capfd):
    def broken(arguments):
        raise KeyError("a\x1b[2Jb")

    monkeypatch.setattr("taskvec.cli.list.main", broken)
    assert cli.main(["list"]) == 70
    said = capfd.readouterr().err
    assert (
        said.count("\n") == 1
        and "a mistake in taskvec: KeyError" in said
        and not CONTROLS.search(said)
    )
    log = Path(re.search(r"the traceback is in (\S+\.log)", said)[1])
    assert "Traceback" in log.read_text()
    log.unlink()


def test_a_traceback_in_any_test_is_noticed(no_traceback, capfd):
    """``shown.py`` watches all tests: in this process, in processes of their own, in forks."""
    ours = [sys.executable, "-c", "raise SystemExit(print(1 / 0))", "taskvec"]
    subprocess.run(ours, capture_output=True)
    logging.lastResort.handle(logging.makeLogRecord({"msg": "Traceback (most recent call last)"}))
    capfd.readouterr()
    assert len(no_traceback) == 2 and "ZeroDivisionError" in no_traceback[0]
    no_traceback.clear()
    subprocess.run([sys.executable, "-c", "1 / 0"], capture_output=True)
    assert not no_traceback


def test_one_place_tells_errors():
    """Tracebacks are made in ``errors.py`` alone, and go to the log of a run or to the file of a mistake of ours."""
    printing = {
        "print_exc",
        "print_exception",
        "print_tb",
        "print_stack",
        "format_exc",
        "exception",
    }
    makers, keepers = set(), set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and node.names[0].name == "traceback":
                makers.add(name)
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                named = {word.arg for word in node.keywords}
                assert called not in printing and "exc_info" not in named, f"{name}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and node.module == "taskvec.errors":
                imported = {alias.name for alias in node.names}
                if "details" in imported:
                    keepers.add(name)
    assert makers == {"errors.py"}
    assert keepers == {"cli/__init__.py", "runner/execute.py"}


def test_a_mistake_in_a_users_component_names_the_log_with_its_traceback(tiny, outputs, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    words = ["--include", str(tmp_path / "broken.py"), *world.FAST, f"outputs={outputs}"]
    ended = command(tiny, *words, "merge=broken")
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if "failed" in line]
    assert "KeyError: 'nothing of that name' (broken.py:" in line
    log = Path(re.search(r"the traceback is in (\S+)", line)[1])
    assert "Traceback" in log.read_text()
    ended = command(tiny, *words, "merge=broken", "merge.early=true")
    assert ended.returncode == 70 and ended.stderr.count("\n") == 1
    log = Path(re.search(r"the traceback is in (\S+)", ended.stderr)[1])
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()


def test_a_full_output_is_told_and_a_closed_one_is_not(tmp_path):
    command = [sys.executable, "-m", "taskvec", "table", "--help"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100)
    assert (
        ended.stderr.count("\n") <= 1
        and "Traceback" not in ended.stderr
        and "Exception" not in ended.stderr
    )


def test_an_error_that_quotes_the_input_is_one_line():
    error = UserError("task 'a\nb\u2028\x1b[2J' is not known")
    assert str(error) == r"task 'a\nb\u2028\x1b[2J' is not known"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"),
        OSError(errno.EDQUOT, "over quota"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recorded_as_such(error):
    assert disk_is_full(error)
    assert describe(error).startswith("the disk is full") and "\n" not in describe(error)


def test_a_disk_that_fills_in_mid_run_leaves_one_line_and_its_reason(tmp_path_factory, tmp_path):
    tiny = world.build(tmp_path_factory.mktemp("tiny"))
    outputs = tmp_path / "outputs"
    ended = forked.run(
        tiny, *world.FAST, f"outputs={outputs}", folder=tmp_path / "full", full_at=60
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr and ended.stderr.count("No space left") == 1
    (folder,) = run_folders(outputs)
    # the words could not be written either, so that the rule for killed processes says how it stands
    assert folder.status()["state"] in ("failed", "interrupted")
    again = forked.run(tiny, *world.FAST, f"outputs={outputs}", folder=tmp_path / "again")
    assert again.returncode == 0, again.stderr


def test_logging_to_a_full_disk_prints_no_traceback(capfd, monkeypatch):
    progress.to_standard_error()
    assert logging.raiseExceptions is False


# Locks where the file system has none, and what prune may delete.

HOLDER = """
import errno, fcntl, sys, time
def flock(*_): raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
from pathlib import Path
from taskvec.graph.locking import taken
lock = taken(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def no_flock(monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_flock_a_living_holder_excludes_and_a_dead_one_does_not(tmp_path, no_flock):
    path = tmp_path / "x.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert locking.is_held(path)
        with locking.at_once(path) as free:
            assert not free
    finally:
        holder.kill()
        holder.wait()
    assert not locking.is_held(path)
    with locking.held(path, "tests"):
        assert os.path.lexists(f"{path}.lease")


def test_without_flock_the_marker_of_a_silent_holder_elsewhere_expires(
    tmp_path, no_flock, monkeypatch
):
    monkeypatch.setattr(locking, "LEASE_SECONDS", 0.5)
    path = tmp_path / "x.lock"
    lock = locking.taken(path)
    marker = Path(f"{path}.lease")
    text = re.sub(r"host=.*", "host=elsewhere", marker.read_text())
    lock.release()
    marker.write_text(text)
    assert locking.is_held(path)
    with locking.held(path, "tests"):
        pass


def test_a_look_at_a_lock_that_nobody_held_writes_nothing(tmp_path):
    assert not locking.is_held(tmp_path / "runs" / "x.lock")
    assert not list(tmp_path.iterdir())


def test_prune_keeps_what_unfinished_runs_made_unless_they_are_named(tmp_path, capfd):
    kept = {}
    for number, state in enumerate(("failed", "interrupted", "running", "done")):
        kept[state] = f"{number:032x}"
        run = tmp_path / "runs" / state
        run.mkdir(parents=True)
        (run / "status.json").write_text(json.dumps({"state": state, "artefacts": [kept[state]]}))
    for fingerprint in (*kept.values(), "f" * 32):
        artefact = tmp_path / "store" / "vector" / fingerprint
        artefact.mkdir(parents=True)
        (artefact / MANIFEST).write_text("")
        (tmp_path / "store" / "partial" / fingerprint).mkdir(parents=True)

    def left() -> set[str]:
        return {
            path.name
            for kind in ("vector", "partial")
            for path in (tmp_path / "store" / kind).glob("[0-9a-f]*")
        }

    assert cli.main(["store", "prune", "--outputs", str(tmp_path)]) == 0
    assert left() == {*kept.values(), "f" * 32}
    assert cli.main(["store", "prune", "--yes", "--outputs", str(tmp_path)]) == 0
    assert left() == set(kept.values())
    assert cli.main(["store", "prune", "failed", "--yes", "--outputs", str(tmp_path)]) == 0
    assert left() == set(kept.values()) - {kept["failed"]}
    assert cli.main(["store", "prune", "faild", "--yes", "--outputs", str(tmp_path)]) == 2
    (tmp_path / "runs" / "done" / "status.json").write_bytes(b"{")
    assert cli.main(["store", "prune", "--yes", "--outputs", str(tmp_path)]) == 2
    assert kept["done"] in left()


def test_another_projects_result_is_kept_when_it_is_replaced(tmp_path, caplog):
    result = made()
    folder = RunFolder(tmp_path / "runs" / result.run_id)
    folder.path.mkdir(parents=True)
    (folder.path / "config.yaml").write_text("")
    folder.finish(result, mirrored_to="none")
    status = json.loads((folder.path / "status.json").read_text())
    status["config_sha256"] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (folder.path / "status.json").write_text(json.dumps(status))
    with caplog.at_level("WARNING"):
        folder.set_aside()
    (kept,) = folder.path.glob("result-*.json")
    assert kept.read_text() == result.to_json() and "earlier result, kept as" in caplog.text


@pytest.fixture
def handlers():
    """The handlers of signals are as before when a test that sends one has ended."""
    saved = {number: signal.getsignal(number) for number in signals.numbers()}
    yield
    for number, handler in saved.items():
        signal.signal(number, handler)


def wrapped(kind: type[Exception]):
    """Be told to end in the middle of a library's work, which wraps whatever is raised there."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt as interrupt:
        raise kind("building a validator failed") from interrupt


@pytest.mark.parametrize("kind", [UserError, RuntimeError, ValueError])
def test_a_signal_ends_the_command_however_a_library_wraps_what_it_raised(
    kind, handlers, monkeypatch, capsys
):
    monkeypatch.setattr("taskvec.cli.doctor.main", lambda arguments: wrapped(kind))
    assert cli.main(["doctor"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "taskvec: interrupted; the same command resumes\n"


def test_work_that_goes_on_after_an_error_ends_after_a_signal(handlers, monkeypatch, outputs, tiny):
    """A run is recorded as interrupted, and a look at many runs stops."""
    monkeypatch.setenv("TASKVEC_INCLUDE", str(tiny))
    words = [*world.FAST, f"outputs={outputs}"]
    assert cli.main(words) == 0
    monkeypatch.setattr("taskvec.runner.survey.Survey._planned", lambda *_: wrapped(ValueError))
    assert cli.main(["status", "--outputs", str(outputs)]) == 128 + signal.SIGTERM
    monkeypatch.setattr("taskvec.runner.execute._answer", lambda *_: wrapped(RuntimeError))
    assert cli.main([*words, "seed=1"]) == 128 + signal.SIGTERM
    (status,) = outputs.glob("runs/*-s1-*/status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"
