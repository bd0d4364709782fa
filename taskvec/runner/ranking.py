"""How a sweep ends: its jobs ranked by what they reached on validation data, and the command of the best one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from taskvec.graph.result import Result
from taskvec.graph.run import RunConfig
from taskvec.runner.folder import RunFolder, choice, command
from taskvec.text import printable

UNRANKED = "no validation number, so it is not ranked"


@dataclass(frozen=True)
class Job:
    """A job of a sweep as its folder has it: state, reason, and the result where it is done."""

    name: str
    words: tuple[str, ...]
    title: str
    state: str
    reason: str
    result: Result | None
    contest: str

    @classmethod
    def of(cls, config: RunConfig, words: Sequence[str], title: str) -> Job:
        """Return how the job of some overrides stands, which the sweep calls by a title."""
        folder = RunFolder.of(config)
        status = folder.status()
        state = status.get("state", "missing")
        result = folder.result() if state == "done" else None
        reason = status.get("reason") or ""
        return cls(folder.name, tuple(words), title, state, reason, result, contest(config))

    @property
    def ranked(self) -> bool:
        """Whether the job has a number by which jobs may be chosen."""
        return self.result is not None and self.result.criterion.ranks

    @property
    def place(self) -> float:
        """The key by which jobs of a contest are sorted, the best one first."""
        criterion = self.result.criterion
        return -criterion.value if criterion.better == "higher" else criterion.value

    @property
    def measure(self) -> str:
        """What is measured, on what, and which way is better."""
        criterion = self.result.criterion
        return f"{criterion.name}, {self.contest.partition(' ')[0]}, {criterion.better} is better"

    def line(self, rank: str, said: str) -> str:
        """Return the job's line of the summary."""
        return printable(f"  {rank:<3}{self.state:<12}{said:<8}{self.name}  [{self.title}]")


def contest(config: RunConfig) -> str:
    """Return what jobs must share so that their validation numbers can be compared: the data and the question."""
    shared = {"suite": config.suite.settings(), "question": config.protocol.kind}
    return f"suite={choice(config, 'suite')} {json.dumps(shared, sort_keys=True)}"


def ranked(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs that can be ranked, best first, apart for each number that they can be compared by."""
    contests: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if job.ranked:
            contests.setdefault((job.result.criterion.name, job.contest), []).append(job)
    return [sorted(found, key=lambda job: job.place) for found in contests.values()]


def summary(jobs: Sequence[Job]) -> list[str]:
    """Return the closing lines of a sweep."""
    lines = [f"{len(jobs)} jobs"]
    for found in ranked(jobs):
        lines.append(f"by {found[0].measure}:")
        for number, job in enumerate(found, start=1):
            lines.append(job.line(f"{number}", f"{job.result.criterion.value:.4f}"))
        if len(found) > 1:
            lines.append(printable(f"best: {found[0].name}"))
            lines.append(printable(f"  {command(found[0].words)}"))
    for job in jobs:
        if not job.ranked:
            reason = UNRANKED if job.state == "done" else job.reason
            lines.append(job.line("-", "") + printable(f"  {reason}".rstrip()))
    return lines
