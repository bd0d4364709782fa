"""One run: validate, skip if its result stands, else compute, record, mirror."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from taskvec.errors import UserError, describe
from taskvec.protocols.question import REPORT, SELECTION, Answer
from taskvec.runner.artefact import read_json
from taskvec.runner.compose import RunConfig
from taskvec.runner.folder import RunFolder, environment, run_id
from taskvec.runner.plan import Plan
from taskvec.runner.progress import Progress
from taskvec.runner.result import Result, Stage, flat_metrics
from taskvec.runner.store import RECORD, Store
from taskvec.runner.validate import preflight

if TYPE_CHECKING:
    from taskvec.runner.workspace import Workspace

log = logging.getLogger(__name__)


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
            with folder.working():
                result = folder.result(plan.fingerprint)  # another process may have computed it meanwhile
                if result is None:
                    return _compute(folder, config, plan, overrides)
    except UserError as error:
        if refuse:
            raise
        return _refused(folder, config, overrides, str(error))
    log.info("%s: already done, nothing to compute", folder.name)
    folder.asked_by(config)
    if config.tracker.kind not in ("none", folder.status_on_disk().get("mirrored_to")):
        _mirror(folder, config, plan, result)
    return Outcome(folder.name, "skipped", result)


def _refused(folder: RunFolder, config: RunConfig, overrides: tuple[str, ...], reason: str) -> Outcome:
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


def _compute(folder: RunFolder, config: RunConfig, plan: Plan, overrides: tuple[str, ...]) -> Outcome:
    folder.start(config, overrides)
    handler = logging.FileHandler(folder.path / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("taskvec").addHandler(handler)
    try:
        tracker = config.tracker.open(config, folder.name)
        with tracker, Progress(tracker) as progress:
            result = _answer(config, plan, progress)
            folder.finish(result, mirrored_to=config.tracker.kind)
            tracker.finish(result)
    except KeyboardInterrupt:
        folder.fail("interrupted; the same command resumes it")
        raise
    except Exception as error:
        reason = describe(error)
        folder.fail(reason)
        log.error("%s: failed: %s", folder.name, reason)
        log.debug("details", exc_info=True)
        if os.environ.get("TASKVEC_TRACEBACK"):
            raise
        return Outcome(folder.name, "failed", reason=reason)
    finally:
        logging.getLogger("taskvec").removeHandler(handler)
        handler.close()
    return Outcome(folder.name, "done", result)


def _answer(config: RunConfig, plan: Plan, progress: Progress) -> Result:
    from taskvec.runner.workspace import Workspace

    start = time.perf_counter()
    store = Store(config.root / "store")
    work = Workspace(store, config.device, config.precision, config.offload, progress.observe, progress.done)
    answers: dict[str, Answer] = {}
    for name, node in plan.cells.items():
        answers[name] = Answer.model_validate(work.get(node).meta["answer"])
    _replay(plan, store, progress, known=work.usage)
    report = config.protocol.summarise(config.suite, answers)
    return Result(
        run_id=run_id(config),
        fingerprint=plan.fingerprint,
        config=config.model_dump(mode="json"),
        primary=report.primary,
        metrics=flat_metrics(report.rows),
        rows=report.rows,
        curves=report.curves,
        maps=report.maps,
        data_seen=data_seen(plan),
        stages=tuple(Stage(kind=n.kind, label=n.label, fingerprint=n.fingerprint) for n in plan.nodes),
        timing=timing(plan, work) | {"wall_s": round(time.perf_counter() - start, 3)},
        environment=environment(),
    )


def data_seen(plan: Plan) -> dict[str, list[str]]:
    """Return which splits were used for learning, for selection and for the report."""
    seen: dict[str, set[str]] = {"learning": set(), "selection": set(), "report": set()}
    uses = {SELECTION: "selection", REPORT: "report"}
    for node in plan.nodes:
        for name in node.inputs:
            kind, _, rest = name.partition("/")
            if kind in ("data", "other") and node.kind in ("vector", "curvature"):
                seen["learning"].add(f"{rest}/train")
            elif kind == "data" and node.kind == "cell":
                split, _, task = rest.partition("/")
                seen[uses[split]].add(f"{task}/{split}")
    return {use: sorted(splits) for use, splits in seen.items()}


def timing(plan: Plan, work: Workspace) -> dict[str, Any]:
    """Return wall time and peak memory of each artefact, and whether this run computed it."""
    used = [node for node in plan.nodes if node.fingerprint in work.usage]
    per_stage = {f"{node.label} {node.fingerprint[:8]}": work.usage[node.fingerprint] for node in used}
    peak = max((usage["peak_memory_bytes"] for usage in per_stage.values()), default=0)
    return {"artefacts": per_stage, "peak_memory_bytes": peak}
