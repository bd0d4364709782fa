"""What a run or a sweep would do: jobs, artefacts, downloads and disk, found by planning; nothing is written."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from taskvec.data.remote import MEGA, Remote
from taskvec.errors import UserError
from taskvec.graph.artefact import Node
from taskvec.graph.plan import Plan
from taskvec.graph.run import RunConfig
from taskvec.graph.store import Store
from taskvec.graph.workspace import to_compute
from taskvec.runner import sweep
from taskvec.runner.expand import expand, unions
from taskvec.runner.folder import RunFolder, run_id
from taskvec.runner.remotes import lacking, total
from taskvec.runner.validate import bytes_of, preflight
from taskvec.text import printable_lines


@dataclass(frozen=True)
class Outlook:
    """What would become of one job, with what it would compute and what it finds stored, by fingerprint."""

    config: RunConfig
    state: Literal["done", "to run", "refused"]
    reason: str = ""
    compute: Mapping[str, Node] = field(default_factory=dict)
    stored: Mapping[str, Node] = field(default_factory=dict)
    missing: Sequence[Remote] = ()

    def line(self) -> str:
        """The job in one line."""
        said = self.reason
        if self.state == "to run":
            said = f"{len(self.compute)} to compute, {len(self.stored)} stored"
        return f"{self.state:<10}{run_id(self.config)}  {said}".rstrip()


def run(overrides: Sequence[str], *, multirun: bool) -> int:
    """Print what a run or sweep would do, and return 2 if a job of it would be refused.

    Raises:
        UserError: for a config that is wrong.
    """
    if multirun:
        jobs = [job for words in unions(overrides) for job in expand(words)]
        configs = [config for config, _ in sweep.distinct(jobs).values()]
    else:
        configs = [sweep.single(overrides)]
    outlooks = [*map(outlook, configs)]
    lines = [found.line() for found in outlooks]
    lines += [*_artefacts(outlooks), *_downloads(outlooks), *_disk(outlooks)]
    lines.append("nothing was written")
    print(printable_lines("\n".join(lines)))
    refused = any(found.state == "refused" for found in outlooks)
    return 2 if refused else 0


def outlook(config: RunConfig) -> Outlook:
    """Return what would become of a job."""
    plan, folder = Plan(config), RunFolder.of(config)
    try:
        preflight(config, plan)
        if folder.result(plan.fingerprint) is not None:
            return Outlook(config, "done")
    except UserError as error:
        return Outlook(config, "refused", str(error))
    store = Store(config.root / "store")
    stored = {node.fingerprint: node for node in plan.nodes if node.stored and store.has(node)}
    compute = to_compute(store, plan.cells.values())
    return Outlook(config, "to run", "", compute, stored, lacking(config, plan))


def _artefacts(outlooks: Sequence[Outlook]) -> Iterator[str]:
    """Yield a table of kinds; what several jobs share counts once."""
    compute = _by_kind([found.compute for found in outlooks])
    stored = _by_kind([found.stored for found in outlooks])
    kinds = sorted({*compute, *stored})
    if kinds:
        yield f"{'artefacts':<14}{'to compute':>12}{'to reuse':>12}"
    for kind in kinds:
        yield f"{kind:<14}{compute[kind]:>12}{stored[kind]:>12}"


def _by_kind(groups: Sequence[Mapping[str, Node]]) -> Counter[str]:
    merged = {fingerprint: node for group in groups for fingerprint, node in group.items()}
    return Counter(node.kind for node in merged.values())


def _downloads(outlooks: Sequence[Outlook]) -> Iterator[str]:
    missing = {remote.title: remote for found in outlooks for remote in found.missing}
    for remote in missing.values():
        yield f"to fetch  {remote}"
    if missing:
        size = total(list(missing.values()))
        yield f"to fetch, all together: {size}"


def _disk(outlooks: Sequence[Outlook]) -> Iterator[str]:
    """Yield what each outputs folder's disk would have to hold; a training checkpoint of each is counted once."""
    roots = {found.config.root for found in outlooks if found.state == "to run"}
    for root in sorted(roots):
        need = _bytes_below(root, outlooks)
        free = shutil.disk_usage(_existing(root)).free
        verdict = "" if need <= free else ": too little"
        yield (
            f"disk      about {need / MEGA:,.1f} MB of vectors, statistics and a checkpoint; "
            f"{root} has {free / MEGA:,.1f} MB{verdict}"
        )


def _bytes_below(root: Path, outlooks: Sequence[Outlook]) -> int:
    """Return about how much the jobs of one folder write."""
    counted: set[str] = set()
    need = 0
    for found in outlooks:
        if found.config.root != root:
            continue
        fresh = {key: node for key, node in found.compute.items() if key not in counted}
        copies = sum(node.copies for node in fresh.values())
        need += bytes_of(found.config, copies)
        counted |= set(fresh)
    return need


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder
