"""No test of the suite may show a person a traceback: all that commands print here is looked through.

The command says what went wrong in one line; tracebacks lie in log files. Loaded by ``conftest.py`` as a plugin.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

import forked
import pytest

TRACE = re.compile(
    r"^(Traceback \(most recent call last\)|Exception ignored in|--- Logging error)", re.M
)


def traces(texts: Iterable[Any]) -> list[str]:
    """Return the texts that hold a traceback."""
    found = []
    for text in texts:
        said = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
        if TRACE.search(said):
            found.append(said)
    return found


def is_command(words: Any) -> bool:
    """Return whether a process is the ``taskvec`` command, and no script of a test."""
    return isinstance(words, list | tuple) and "taskvec" in words


@pytest.fixture(autouse=True)
def no_traceback(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fail a test in which a command shows a traceback, in this process, in one of its own or in a fork."""
    shown: list[str] = []
    communicate, wait = subprocess.Popen.communicate, forked.Child.wait
    read = pytest.CaptureFixture.readouterr

    def communicated(process: subprocess.Popen, *arguments: Any, **named: Any) -> Any:
        texts = communicate(process, *arguments, **named)
        if is_command(process.args):
            shown.extend(traces(texts))
        return texts

    def waited(child: forked.Child) -> forked.Finished:
        ended = wait(child)
        shown.extend(traces((ended.stdout, ended.stderr)))
        return ended

    def read_out(capture: pytest.CaptureFixture) -> Any:
        texts = read(capture)
        shown.extend(traces(texts))
        return texts

    monkeypatch.setattr(subprocess.Popen, "communicate", communicated)
    monkeypatch.setattr(forked.Child, "wait", waited)
    monkeypatch.setattr(pytest.CaptureFixture, "readouterr", read_out)
    yield shown
    assert not shown, f"a traceback reached the user: {shown[0][-2000:]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Fail a test that left a traceback in what pytest itself captured."""
    report = yield
    if report.passed:
        found = traces(text for name, text in report.sections if name.startswith("Captured std"))
        if found:
            report.outcome = "failed"
            report.longrepr = f"a traceback reached the user: {found[0][-2000:]}"
    return report
