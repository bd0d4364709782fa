"""Jobs that share artefacts compute different ones side by side, each once, and wait only when nothing else is left."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from taskvec.graph.artefact import Content, Node, aside
from taskvec.graph.run import Compute
from taskvec.graph.store import Store
from taskvec.graph.workspace import Workspace

SECONDS = 0.4


@dataclass(frozen=True, eq=False)
class Slow(Node):
    """An artefact that takes its time."""

    kind: ClassVar[str] = "vector"

    number: int
    log: Path = aside()

    def compute(self, work) -> Content:
        time.sleep(SECONDS)
        (self.log / f"{self.number}-{os.getpid()}-{time.time_ns()}").touch()
        return Content(meta={"number": self.number})


@dataclass(frozen=True, eq=False)
class Together(Node):
    """An artefact that is made from others, some of them by way of one that is not stored."""

    kind: ClassVar[str] = "answer"

    parts: tuple[Node, ...]
    name: str

    def compute(self, work) -> Content:
        numbers = [work.get(part).meta["number"] for part in self.parts]
        return Content(meta={"numbers": numbers})


def prepare(outputs: Path, log: Path, name: str) -> None:
    """Compute one job's answer over eight vectors that all jobs share."""
    work = Workspace(Store(outputs), Compute(), lambda *_: None, lambda *_: None)
    root = Together(tuple(Slow(number, log) for number in range(8)), name)
    work.prepare([root])
    assert work.get(root).meta["numbers"] == list(range(8))


@pytest.mark.parametrize("jobs", [1, 4])
def test_jobs_share_the_tuning(jobs, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    start = time.monotonic()
    children = []
    for job in range(jobs):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                prepare(tmp_path / "store", log, f"job {job}")
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * jobs
    computed = Counter(path.name.split("-")[0] for path in log.iterdir())
    assert computed == Counter(map(str, range(8)))  # no vector twice
    workers = {path.name.split("-")[1] for path in log.iterdir()}
    assert len(workers) == jobs
    ended = max(int(path.name.rsplit("-", 1)[1]) for path in log.iterdir()) / 1e9
    began = min(int(path.name.rsplit("-", 1)[1]) for path in log.iterdir()) / 1e9 - SECONDS
    assert time.monotonic() - start >= ended - began
    if jobs == 4:
        assert ended - began <= 0.35 * 8 * SECONDS + 0.5  # half a second for a busy machine
