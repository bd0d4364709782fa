"""``taskvec store``: the artefacts on disk."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.cli.options import Parser, write
from taskvec.errors import UserError

if TYPE_CHECKING:
    from taskvec.runner.folder import RunFolder

EXAMPLES = """\
  taskvec store list
  taskvec store verify                          check every byte
  taskvec store explain finetune.lr=1e-3        what would be computed, and which changed key is the cause
  taskvec store explain 3f2a                    why this artefact was computed
  taskvec store prune --yes                     delete what no run stands on or was making
  taskvec store prune RUN --yes                 and what only this unfinished run made"""


def main(arguments: list[str]) -> int:
    """List, verify, explain or prune stored artefacts."""
    parser = Parser("store", "Look after the artefact store.", EXAMPLES)
    parser.add_argument("action", choices=["list", "verify", "explain", "prune"])
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUE|FINGERPRINT|RUN",
        help="what to explain, or runs to give up",
    )
    parser.add_argument(
        "--yes", action="store_true", help="prune: delete, instead of saying what would be deleted"
    )
    parser.outputs()
    options = parser.read(arguments)
    if options.words and options.action not in ("explain", "prune"):
        parser.error(f"{options.action} takes no arguments, got {options.words[0]!r}")
    return {"list": list_, "verify": verify, "explain": explain, "prune": prune}[options.action](
        options
    )


def list_(options: Namespace) -> int:
    """Print kind, label, fingerprint, size, time and cost of every artefact."""
    from tabulate import tabulate

    lines = []
    for folder, record in _store(options).records():
        usage = record["usage"] if record else {}
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(usage["ended"])) if record else ""
        label = record["label"] if record else "(unreadable)"
        cost = f"{usage['wall_s']:.1f} s" if record else ""
        lines.append(
            [
                folder.parent.name,
                label,
                folder.name[:8],
                f"{_size(folder) / 1e6:.1f} MB",
                cost,
                when,
            ]
        )
    write(tabulate(lines, headers=["kind", "label", "fingerprint", "size", "cost", "made"]))
    return 0


def verify(options: Namespace) -> int:
    """Check every artefact against its checksums; exit 1 if one is corrupt (it is computed again when needed)."""
    from taskvec.graph.store import CorruptError

    store, corrupt, count = _store(options), 0, 0
    for folder, _ in store.records():
        count += 1
        try:
            store.verify(folder)
        except CorruptError as error:
            corrupt += 1
            write(f"corrupt: {error}")
    write(f"{count} artefacts, {corrupt} corrupt")
    return 1 if corrupt else 0


def explain(options: Namespace) -> int:
    """Say for each artefact of a command, or for one stored artefact, which changed keys made it new.

    Raises:
        UserError: if no artefact has the fingerprint.
    """
    from taskvec.graph.history import reasons
    from taskvec.graph.plan import Plan
    from taskvec.runner import compose

    store = _store(options)
    if len(options.words) == 1 and "=" not in options.words[0]:
        records = [
            record
            for folder, record in store.records()
            if folder.name.startswith(options.words[0]) and record
        ]
        if not records:
            raise UserError(
                f"store explain: no artefact {options.words[0]!r}; see `taskvec store list`"
            )
        nodes, planned = [(record, record["label"], True) for record in records], {}
    else:
        compose.register_all()
        plan = Plan(
            compose.resolve(compose.compose([*options.words, f"outputs={options.outputs}"]))
        )
        nodes = [(node.recipe, node.label, store.has(node)) for node in plan.nodes if node.stored]
        planned = {node.fingerprint: node.recipe for node in plan.nodes}
    for recipe, label, stored in nodes:
        why = reasons(recipe, label, store, planned) if not stored or len(nodes) == 1 else []
        write(f"{'stored' if stored else 'to compute'}: {label}")
        for line in why or ([] if stored else ["nothing like it is stored"]):
            write(f"    {line}")
    return 0


def prune(options: Namespace) -> int:
    """Delete artefacts that no run stands on, and checkpoints of what no run wants; without --yes only say so.

    What a failed, interrupted or unfinished run made stays, unless the run is named.

    Raises:
        UserError: while a run is working, if one cannot be read, or if there is none of a name.
    """
    from taskvec.runner.folder import run_folders

    store = _store(options)
    runs = {run.name: run for run in run_folders(options.outputs)}
    for name in options.words:
        if name not in runs:
            raise UserError(f"store prune: no run {name!r} in {options.outputs}")
    used: set[str] = set()
    for name, run in runs.items():
        if run.locked():
            raise UserError("store prune: a run is working; wait for it, or stop it first")
        used |= _stands_on(run, given_up=name in options.words)
    doomed = [folder for folder, _ in store.records() if folder.name not in used]
    checkpoints = [folder for folder in (store.root / "partial").glob("*") if folder.is_dir()]
    doomed += [folder for folder in checkpoints if folder.name not in used]
    size = sum(map(_size, doomed))
    for folder in doomed if options.yes else ():
        store.remove(folder)
    verb = "deleted" if options.yes else "would delete (give --yes to do it)"
    write(f"{verb}: {len(doomed)} artefacts, {size / 1e6:.1f} MB")
    return 0


def _stands_on(run: RunFolder, *, given_up: bool) -> set[str]:
    """Return the fingerprints of what a run stands on, and of what it was to make unless it is given up.

    Raises:
        UserError: if that cannot be known: nothing is deleted by guess.
    """
    from taskvec.graph.result import read_result

    if given_up:
        return set()
    status = run.status()
    if status.get("state") == "unreadable":
        remedy = f"name it (`taskvec store prune {run.name}`) to give up what it made"
        raise UserError(f"store prune: {status['reason']}; {remedy}")
    found = set(status.get("artefacts", ()))
    path = run.path / "result.json"
    if path.exists():
        found |= {stage.fingerprint for stage in read_result(path).stages}
    return found


def _store(options: Namespace):
    from taskvec.graph.store import Store

    return Store(options.outputs / "store")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
