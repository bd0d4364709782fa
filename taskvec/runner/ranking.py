"""How a sweep ends: its jobs ranked by what they reached on validation data, and the command of the best one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
        return cls(
            name=folder.name,
            words=tuple(words),
            title=title,
            state=state,
            reason=status.get("reason") or "",
            result=result,
            contest=contest(config),
        )

    @property
    def ranked(self) -> bool:
        """Whether the job has a number by which jobs may be chosen."""
        return self.result is not None and self.result.criterion.ranks

    @property
    def measure(self) -> str:
        """What is measured, on what, and which way is better."""
        criterion = self.result.criterion
        data = self.contest.partition(" ")[0]
        return f"{criterion.name}, {data}, {criterion.better} is better"

    def line(self, rank: str, said: str) -> str:
        """Return the job's line of the summary."""
        return printable(f"  {rank:<3}{self.state:<12}{said:<8}{self.name}  [{self.title}]")


def contest(config: RunConfig) -> str:
    """Return what jobs must share so that their validation numbers can be compared: the data and the question."""
    shared = {"suite": config.suite.settings(), "question": config.protocol.kind}
    named = choice(config, "suite")
    return f"suite={named} {json.dumps(shared, sort_keys=True)}"


def ranked(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs that can be ranked, best first, apart for each number that they can be compared by."""
    contests: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if job.ranked:
            key = (job.result.criterion.name, job.contest)
            contests.setdefault(key, []).append(job)
    return [sorted(found, key=place) for found in contests.values()]


def place(job: Job) -> float:
    """Return the key by which the jobs of a contest are sorted, the best one first."""
    criterion = job.result.criterion
    return -criterion.value if criterion.better == "higher" else criterion.value


def summary(jobs: Sequence[Job]) -> list[str]:
    """Return the closing lines of a sweep."""
    lines = [f"{len(jobs)} jobs"]
    for found in ranked(jobs):
        lines += told(found)
    for job in jobs:
        if not job.ranked:
            reason = UNRANKED if job.state == "done" else job.reason
            said = printable(reason)
            lines.append(f"{job.line('-', '')}  {said}".rstrip())
    return lines


def told(found: Sequence[Job]) -> Iterator[str]:
    """Yield the lines of a contest: its jobs, and where there are several, the best one's command."""
    best = found[0]
    yield f"by {best.measure}:"
    for number, job in enumerate(found, start=1):
        value = job.result.criterion.value
        yield job.line(str(number), f"{value:.4f}")
    if len(found) > 1:
        alone = command(best.words)
        yield printable(f"best: {best.name}")
        yield printable(f"  {alone}")
