"""One run: validate, skip if its result stands, else compute, record, mirror."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from taskvec.config import immaterial_keys
from taskvec.errors import UserError, describe, details, expected
from taskvec.graph.artefact import Node, read_json
from taskvec.graph.plan import Plan
from taskvec.graph.result import Result, Stage
from taskvec.graph.run import RunConfig
from taskvec.graph.store import RECORD, Store
from taskvec.protocols.base import Answer
from taskvec.protocols.rows import Report
from taskvec.runner import signals
from taskvec.runner.folder import RunFolder, environment, run_id
from taskvec.runner.progress import Progress
from taskvec.runner.validate import preflight, room

if TYPE_CHECKING:
    from taskvec.graph.workspace import Workspace

log = logging.getLogger(__name__)
DETAILS = logging.getLogger("taskvec.details")  # for log files alone
DETAILS.propagate = False
LOG = "log.txt"
INTERRUPTED = "interrupted; the same command resumes it"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``done`` (computed now), ``skipped`` (its result stands) or ``failed`` (with the reason)."""

    run_id: str
    state: Literal["done", "skipped", "failed"]
    result: Result | None = None
    reason: str | None = None


def execute(config: RunConfig, overrides: tuple[str, ...] = (), *, refuse: bool = True) -> Outcome:
    """Run a config to its result, or return the result that stands.

    With ``refuse`` input that cannot be worked with raises before a run folder exists; without it (in a sweep, whose
    other jobs go on) it is recorded as a failed run.

    Raises:
        UserError: for input that cannot be worked with, where ``refuse`` is set.
    """
    folder = RunFolder.of(config)
    try:
        plan = Plan(config)
        preflight(config, plan)
        result = folder.result(plan.fingerprint)
        if result is None:
            room(config, plan)  # a finished run is repeated from a folder that nobody can write to
            with folder.working():
                # Another process may have computed it meanwhile
                result = folder.result(plan.fingerprint)
                if result is None:
                    return _compute(folder, config, plan, overrides)
    except UserError as error:
        if refuse:
            raise
        return _refused(folder, config, overrides, str(error))
    log.info("%s: already done, nothing to compute", folder.name)
    with contextlib.suppress(UserError):
        folder.asked_by(config)
    if config.tracker.kind not in ("none", folder.status_on_disk().get("mirrored_to")):
        _mirror(folder, config, plan, result)
    return Outcome(folder.name, "skipped", result)


def _refused(
    folder: RunFolder, config: RunConfig, overrides: tuple[str, ...], reason: str
) -> Outcome:
    with contextlib.suppress(UserError), folder.working():
        folder.start(config, overrides)
        folder.fail(reason)
    log.error("%s: failed: %s", folder.name, reason)
    return Outcome(folder.name, "failed", reason=reason)


def _mirror(folder: RunFolder, config: RunConfig, plan: Plan, result: Result) -> None:
    tracker = config.tracker.open(config, folder.name)
    with folder.working(), tracker, Progress(tracker) as progress:
        _replay(plan, Store(config.root / "store"), progress, known=())
        tracker.finish(result)
        folder.finish(result, mirrored_to=config.tracker.kind)


def _replay(plan: Plan, store: Store, progress: Progress, known: Collection[str]) -> None:
    """Show the training curves of vectors that nobody asked for because what needs them was stored."""
    for node in plan.nodes:
        record = read_json(store.folder(node) / RECORD)
        if node.kind == "vector" and node.fingerprint not in known and record:
            progress.done(node, record, computed=False)


def _compute(
    folder: RunFolder, config: RunConfig, plan: Plan, overrides: tuple[str, ...]
) -> Outcome:
    try:
        folder.set_aside()
        folder.start(config, overrides, plan)
        with _logged(folder):
            return _recorded(folder, config, plan)
    except KeyboardInterrupt:
        folder.fail(INTERRUPTED, "interrupted")
        raise


def _recorded(folder: RunFolder, config: RunConfig, plan: Plan) -> Outcome:
    """Compute a run's result and record it, or why there is none."""
    try:
        tracker = config.tracker.open(config, folder.name)
        with tracker, Progress(tracker) as progress:
            result = _answer(config, plan, progress)
            folder.finish(result, mirrored_to=config.tracker.kind)
            tracker.finish(result)
    except Exception as error:
        signals.require_none(error)
        reason = describe(error)
        if not expected(error):
            DETAILS.error("%s", details(error))
            reason += f"; the traceback is in {folder.path}/{LOG}"
        folder.fail(reason)
        log.error("%s: failed: %s", folder.name, reason)
        return Outcome(folder.name, "failed", reason=reason)
    return Outcome(folder.name, "done", result)


@contextlib.contextmanager
def _logged(folder: RunFolder) -> Iterator[None]:
    """Write the log to the run's folder too, details included, for the time of a block.

    Raises:
        UserError: if it cannot be written.
    """
    path = folder.path / LOG
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    loggers = (logging.getLogger("taskvec"), DETAILS)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk; the reason is in the status
            handler.close()


def _answer(config: RunConfig, plan: Plan, progress: Progress) -> Result:
    from taskvec.graph.workspace import Workspace

    start = time.perf_counter()
    store = Store(config.root / "store")
    work = Workspace(store, config.compute, progress.observe, progress.done)
    work.plan(plan.nodes)
    work.prepare(plan.cells.values())
    answers: dict[str, Answer] = {name: node.value(work) for name, node in plan.cells.items()}
    _replay(plan, store, progress, known=work.usage)
    report = config.protocol.summarise(config.suite, answers)
    stages = [
        Stage(kind=node.kind, label=node.label, fingerprint=node.fingerprint) for node in plan.nodes
    ]
    wall = round(time.perf_counter() - start, 3)
    return Result(
        run_id=run_id(config),
        fingerprint=plan.fingerprint,
        config=config.recorded(),
        immaterial=tuple(immaterial_keys(config)),
        criterion=report.criterion,
        rows=with_fingerprints(report, plan),
        curves=report.curves,
        maps=report.maps,
        reports=reports_of(plan.nodes, store),
        data_seen=plan.data_seen(),
        stages=tuple(stages),
        timing=timing(plan, work) | {"wall_s": wall},
        environment=environment(),
    )


def with_fingerprints(report: Report, plan: Plan) -> tuple:
    """Return the rows with the fingerprints of their cells in place of the cells' names."""
    found = []
    for row in report.rows:
        cells = {key: plan.cells[name].fingerprint for key, name in row.cells.items()}
        found.append(row.model_copy(update={"cells": cells}))
    return tuple(found)


def reports_of(nodes: Iterable[Node], store: Store) -> dict[str, Any]:
    """Return what stages have to say, by the label of the artefact that says it."""
    reports = {}
    for node in nodes:
        record = read_json(store.folder(node) / RECORD) if node.stored else None
        said = record["meta"].get("report") if record else None
        if said:
            reports[node.label] = said
    return reports


def timing(plan: Plan, work: Workspace) -> Mapping[str, Any]:
    """Return wall time and peak memory of each artefact, and whether this run computed it."""
    used = [node for node in plan.nodes if node.fingerprint in work.usage]
    per_stage = {
        f"{node.label} {node.fingerprint[:8]}": work.usage[node.fingerprint] for node in used
    }
    peak = max((usage["peak_memory_bytes"] for usage in per_stage.values()), default=0)
    return {"artefacts": per_stage, "peak_memory_bytes": peak}
