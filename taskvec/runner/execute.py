"""One run: validate, skip if its result stands, else compute, record, mirror."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from taskvec.errors import NoFeasibleCoefficientError, UserError
from taskvec.protocols.question import REPORT, SELECTION, Answer
from taskvec.runner.compose import RunConfig
from taskvec.runner.folder import RunFolder, environment, run_id
from taskvec.runner.plan import Plan
from taskvec.runner.progress import Progress
from taskvec.runner.result import Result, Stage, flat_metrics
from taskvec.runner.store import Store
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
        expected = plan.fingerprint
    except UserError as error:
        if refuse:
            raise
        return _refused(folder, config, overrides, str(error))
    result = folder.result(expected)
    if result is None:
        with folder.working():
            result = folder.result(expected)  # another process may have computed it meanwhile
            if result is None:
                return _compute(folder, config, plan, overrides)
    log.info("%s: already done, nothing to compute", folder.name)
    return Outcome(folder.name, "skipped", result)


def _refused(folder: RunFolder, config: RunConfig, overrides: tuple[str, ...], reason: str) -> Outcome:
    with folder.working():
        folder.start(config, overrides)
        folder.fail(reason)
    log.error("%s: failed: %s", folder.name, reason)
    return Outcome(folder.name, "failed", reason=reason)


def _compute(folder: RunFolder, config: RunConfig, plan: Plan, overrides: tuple[str, ...]) -> Outcome:
    folder.start(config, overrides)
    handler = logging.FileHandler(folder.path / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("taskvec").addHandler(handler)
    tracker = config.tracker.open(config, folder.name)
    try:
        with tracker, Progress(tracker) as progress:
            result = _answer(config, plan, progress)
            folder.finish(result)
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


def describe(error: BaseException) -> str:
    """Return an error as one line; of an unexpected one the kind and the place too."""
    message = " ".join(str(error).split())
    if isinstance(error, (UserError, NoFeasibleCoefficientError, FloatingPointError)):
        return message
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {message}{place}"


def _answer(config: RunConfig, plan: Plan, progress: Progress) -> Result:
    from taskvec.runner.workspace import Workspace

    start = time.perf_counter()
    store = Store(config.root / "store")
    work = Workspace(store, config.device, config.precision, progress.observe, progress.done)
    answers: dict[str, Answer] = {}
    for name, node in plan.cells.items():
        answers[name] = Answer.model_validate(work.get(node).meta["answer"])
    report = config.protocol.summarise(config.suite, answers)
    return Result(
        run_id=run_id(config),
        fingerprint=plan.fingerprint,
        config=config.model_dump(mode="json"),
        primary=report.primary,
        metrics=flat_metrics(report.rows),
        rows=report.rows,
        curves=report.curves,
        data_seen=data_seen(plan),
        stages=stages(plan),
        timing=timing(plan, store, work) | {"wall_s": round(time.perf_counter() - start, 3)},
        environment=environment(),
    )


def stages(plan: Plan) -> tuple[Stage, ...]:
    """Return every artefact the run's answers stand on, inputs first."""
    seen: dict[str, Stage] = {}
    for root in plan.cells.values():
        for node in root.walk():
            seen.setdefault(node.fingerprint, Stage(kind=node.kind, label=node.label, fingerprint=node.fingerprint))
    return tuple(seen.values())


def data_seen(plan: Plan) -> dict[str, list[str]]:
    """Return which splits were used for learning, for selection and for the report."""
    seen: dict[str, set[str]] = {"learning": set(), "selection": set(), "report": set()}
    uses = {SELECTION: "selection", REPORT: "report"}
    for root in plan.cells.values():
        for node in root.walk():
            for name in node.inputs:
                kind, _, rest = name.partition("/")
                if kind == "images" and node.kind == "vector":
                    seen["learning"].add(f"{rest}/train")
                elif kind == "images" and node.kind == "cell":
                    split, _, task = rest.partition("/")
                    seen[uses[split]].add(f"{task}/{split}")
    return {use: sorted(splits) for use, splits in seen.items()}


def timing(plan: Plan, store: Store, work: Workspace) -> dict[str, Any]:
    """Return wall time and peak memory of each artefact, and whether this run computed it."""
    per_stage: dict[str, Mapping[str, Any]] = {}
    for root in plan.cells.values():
        for node in root.walk():
            usage = work.usage.get(node.fingerprint)
            if usage:
                per_stage[f"{node.label} {node.fingerprint[:8]}"] = usage
    peak = max((u["peak_memory_bytes"] for u in per_stage.values()), default=0)
    return {"artefacts": per_stage, "peak_memory_bytes": peak}
