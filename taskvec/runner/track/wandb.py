"""Runs mirrored to Weights & Biases, online or offline. Nothing that fails there reaches the run."""

from __future__ import annotations

import logging
import netrc
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from taskvec.errors import describe
from taskvec.registry import register
from taskvec.runner.track.base import Session, Tracker

if TYPE_CHECKING:
    from taskvec.graph.result import Result
    from taskvec.graph.run import RunConfig

log = logging.getLogger(__name__)
GROUPS = ("backbone", "suite", "finetune", "merge", "protocol")
RECIPE = ("lr", "steps", "epochs", "batch_size", "weight_decay")
AXES = {"train": "train/step", "alpha_curve": "alpha_curve/alpha"}


@register("tracker", "wandb")
class WandbTracker(Tracker):
    """Mirrors each run to Weights & Biases: online, or below ``<outputs>/wandb`` for ``wandb leet`` and ``wandb sync``.

    ``mode=auto`` is online where an API key is configured, offline where none is. A server that has not answered after
    ``timeout_s`` is given up and the run recorded offline. ``group`` None takes the experiment's or the method's name.
    """

    kind: Literal["wandb"] = "wandb"
    mode: Literal["auto", "offline", "online"] = "auto"
    project: str = Field("taskvec", pattern=r"^[^/\\#?%:]{1,128}$")
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    timeout_s: float = Field(30, gt=0)

    def open(self, config: RunConfig, run_id: str) -> Session:
        """Return the session of one run; one that mirrors nothing where W&B does not work at all."""
        problems = []
        for mode in dict.fromkeys((self.mode, "offline")):
            try:
                session = WandbSession(self._start(mode, config, run_id), self.timeout_s)
            except Exception as error:
                problems.append(f"{mode}: {one_line(error)}")
                continue
            if problems:
                log.warning("W&B %s; this run is recorded offline in %s/wandb", problems[0], config.root)
            return session
        log.warning("W&B does not work, so this run is not mirrored; %s", problems[0])
        return Session()

    def _start(self, mode: str, config: RunConfig, run_id: str) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it waits 20 s at exit for a server that is not there
        import wandb

        wanted = {"silent": True, "console": "off", "init_timeout": self.timeout_s, "finish_timeout": self.timeout_s}
        settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in wandb.Settings.model_fields})
        standing = wandb.setup(settings).settings
        keyed = has_key(standing.base_url)
        if mode == "auto":
            mode = ("online" if keyed else "offline") if standing.mode == "online" else standing.mode  # of WANDB_MODE
        elif mode == "online" and not keyed:
            raise ValueError("no API key is configured (`wandb login`)")  # wandb would ask for one in a terminal
        own = inherited_id() or secrets.token_hex(4)
        keys = uniform_keys(config, run_id)
        tags = (*(keys[key] for key in ("method", "backbone", "suite", "protocol")), *self.tags)
        try:
            return wandb.init(
                id=own, mode=mode, project=self.project, entity=self.entity, dir=str(config.root), name=run_id,
                group=self.group or config.experiment or config.method, job_type=keys["protocol"],
                tags=list(dict.fromkeys(tag[:64] for tag in tags)), reinit="create_new", settings=settings,
                config=keys | {"resolved": config.recorded()},
            )  # fmt: skip
        except Exception:
            for left in (config.root / "wandb").glob(f"run-*-{own}"):
                shutil.rmtree(left, ignore_errors=True)
            raise


def inherited_id() -> str | None:
    """Return the run that an agent of W&B chose for this process, once: a second run of the process is another one.

    A shell that exports ``WANDB_RUN_ID`` or ``WANDB_RESUME`` for something else would make all its runs one.
    """
    own = os.environ.pop("WANDB_RUN_ID", None)
    os.environ.pop("WANDB_RESUME", None)
    return own if "WANDB_SWEEP_ID" in os.environ else None


def uniform_keys(config: RunConfig, run_id: str) -> dict[str, Any]:
    """Return the flat settings that every run has, whatever its method, so that runs can be filtered and grouped."""
    own = {key: getattr(config, key) for key in ("method", "experiment", "seed")}
    own["precision"] = config.compute.precision
    chosen = {group: config.choices.get(group) or getattr(config, group).kind for group in GROUPS}
    tuned = config.method_on("source" if config.moves else "target")
    recipe = {key: getattr(tuned, key, None) for key in RECIPE}
    return {"run_id": run_id} | own | chosen | {"transform": "+".join(config.transform) or None} | recipe


def has_key(base_url: str) -> bool:
    """Return whether credentials for a W&B server are configured, without asking anybody for them."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    for path in [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(Path(path).expanduser()).authenticators(urlsplit(base_url).netloc):
                return True
    return False


class WandbSession(Session):
    """One W&B run. Whatever a call into it raises is told once and forgotten."""

    def __init__(self, run: Any, timeout_s: float = 30):
        self._run, self._timeout_s = run, timeout_s
        self._broken = False
        with self._tolerant():
            for section, axis in AXES.items():
                run.define_metric(axis, hidden=True, summary="none")
                run.define_metric(f"{section}/*", step_metric=axis, summary="none")  # the summary is for results

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the run: finished, or failed with the reason in its summary."""
        if error is not None:
            with self._tolerant():
                self._run.summary.update({"state": "failed", "reason": reason(error)})
        with self._tolerant():
            self._run.finish(exit_code=0 if error is None else 1)

    def curve(self, label: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log one point of a training curve as ``train/<what>/<metric>`` over ``train/step``."""
        if not self._broken:
            values = {key: value for key, value in metrics.items() if key != "step"}
            with self._tolerant():
                self._point("train", label.removeprefix("vector "), step, values)

    def finish(self, result: Result) -> None:
        """Log metrics, then the curves over coefficients, then both as tables."""
        with self._tolerant():
            self._run.log(flat_metrics(result.rows) | {"criterion": result.criterion.value})
            usage = {key: result.timing.get(key) for key in ("wall_s", "peak_memory_bytes")}
            self._run.summary.update({"state": "done", "reason": None, "fingerprint": result.fingerprint} | usage)
        with self._tolerant():
            points = ((name, flat(point)) for name, curve in result.curves.items() for point in curve)
            for name, point in points:
                if "alpha" in point:
                    self._point("alpha_curve", name, point.pop("alpha"), point)
        tables = Thread(target=self._tables, args=(result,), daemon=True)
        tables.start()
        tables.join(self._timeout_s)  # to log a table, wandb asks the server and waits for the answer

    def _tables(self, result: Result) -> None:
        with self._tolerant():
            points = [{"curve": name} | flat(point) for name, curve in result.curves.items() for point in curve]
            rows = [flat(row.model_dump(mode="json")) for row in result.rows]
            self._run.log({"tables/rows": table(rows), "tables/alpha_curve": table(points)})

    def _point(self, section: str, what: str, at: float, values: Mapping[str, Any]) -> None:
        numbers = {f"{section}/{clean(what)}/{key}": v for key, v in values.items() if isinstance(v, (int, float))}
        self._run.log(numbers | {AXES[section]: at})

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._broken:
                log.warning("W&B fails, so this run's mirror is incomplete: %s", one_line(error))
            self._broken = True


def reason(error: BaseException) -> str:
    """Return why a run ended, as its ``status.json`` says it."""
    return "interrupted; the same command resumes it" if isinstance(error, KeyboardInterrupt) else describe(error)


def clean(label: str) -> str:
    """Return a label as a part of a metric's key."""
    return re.sub(r"[^\w/+-]+", "_", label)


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose mappings (one number per task) became keys of their own."""
    plain = {key: value for key, value in record.items() if not isinstance(value, dict)}
    return plain | {f"{key}/{task}": v for key in record if key not in plain for task, v in record[key].items()}


def table(records: Sequence[Mapping[str, Any]]) -> Any:
    """Return records as a W&B table with the union of their keys as columns."""
    import wandb

    columns = list(dict.fromkeys(key for record in records for key in record))
    data = [[record.get(column) for column in columns] for record in records]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


def one_line(error: BaseException) -> str:
    """Return an error as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
