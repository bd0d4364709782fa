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
from itertools import chain
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from taskvec.errors import describe
from taskvec.graph.result import flat_metrics, row_metrics
from taskvec.registry import register
from taskvec.runner.folder import choice, study
from taskvec.runner.track import content
from taskvec.runner.track.base import Session, Tracker

if TYPE_CHECKING:
    from taskvec.graph.result import Result
    from taskvec.graph.run import RunConfig

log = logging.getLogger(__name__)
GROUPS = ("backbone", "suite", "finetune", "merge", "protocol")
RECIPE = ("lr", "steps", "epochs", "batch_size", "weight_decay")
AXES = {"train": "train/step", "alpha_curve": "alpha_curve/alpha", "layer": "layer/index"}
PICTURES = 24  # of a run that are mirrored


@register("tracker", "wandb")
class WandbTracker(Tracker):
    """Mirrors each run to Weights & Biases: online, or below ``<outputs>/wandb`` for ``wandb leet`` and ``wandb sync``.

    ``mode=auto`` is online where an API key is configured, offline where none is. A server that has not answered after
    ``timeout_s`` is given up and the run recorded offline. ``group`` None takes the experiment's name, else what
    runs of all seeds have in common.
    """

    kind: Literal["wandb"] = "wandb"
    mode: Literal["auto", "offline", "online"] = "auto"
    project: str = Field("taskvec", pattern=r"^[^/\\#?%:]{1,128}$")
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    timeout_s: float = Field(30, gt=0)
    artifacts: bool = False

    def open(self, config: RunConfig, run_id: str) -> Session:
        """Return the session of one run; one that mirrors nothing where W&B does not work at all."""
        problems = []
        for mode in dict.fromkeys((self.mode, "offline")):
            try:
                store = config.root / "store" if self.artifacts else None
                run = self._start(mode, config, run_id)
                session = WandbSession(run, self.timeout_s, store)
            except Exception as error:
                problems.append(f"{mode}: {one_line(error)}")
                continue
            if problems:
                log.warning(
                    "W&B %s; this run is recorded offline in %s/wandb", problems[0], config.root
                )
            return session
        log.warning("W&B does not work, so this run is not mirrored; %s", problems[0])
        return Session()

    def _start(self, mode: str, config: RunConfig, run_id: str) -> Any:
        # It waits 20 s at exit for a server that is not there
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        wanted = {
            "silent": True,
            "console": "off",
            "init_timeout": self.timeout_s,
            "finish_timeout": self.timeout_s,
        }
        known = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}
        settings = wandb.Settings(**known)
        own = inherited_id() or secrets.token_hex(4)
        keys = uniform_keys(config, run_id)
        try:
            return wandb.init(
                id=own,
                mode=mode_of(mode, wandb.setup(settings).settings),
                project=self.project,
                entity=self.entity,
                group=self.group or config.experiment or study(config)[:128],
                name=run_id,
                job_type=keys["protocol"],
                tags=self._tags(keys),
                config=keys | {"resolved": config.recorded()},
                dir=str(config.root),
                reinit="create_new",
                settings=settings,
            )
        except Exception:
            for left in (config.root / "wandb").glob(f"run-*-{own}"):
                shutil.rmtree(left, ignore_errors=True)
            raise

    def _tags(self, keys: Mapping[str, Any]) -> list[str]:
        """Return what the run is, and the user's own, each once and within the length that W&B takes."""
        chosen = [keys[group] for group in GROUPS]
        transforms = (keys["transform"] or "").split("+")
        named = filter(None, [*chosen, *transforms, *self.tags])
        short = [tag[:64] for tag in named]
        return list(dict.fromkeys(short))


def mode_of(mode: str, standing: Any) -> str:
    """Return the mode that W&B is started in; ``standing`` are its settings from files and environment.

    Raises:
        ValueError: for an online run without a key, which wandb would ask for in a terminal.
    """
    keyed = has_key(standing.base_url)
    if mode == "online" and not keyed:
        raise ValueError("no API key is configured (`wandb login`)")
    if mode != "auto":
        return mode
    if standing.mode != "online":
        return standing.mode  # of WANDB_MODE
    return "online" if keyed else "offline"


def inherited_id() -> str | None:
    """Return the run that an agent of W&B chose for this process, once: a second run of the process is another one.

    A shell that exports ``WANDB_RUN_ID`` or ``WANDB_RESUME`` for something else would make all its runs one.
    """
    own = os.environ.pop("WANDB_RUN_ID", None)
    os.environ.pop("WANDB_RESUME", None)
    return own if "WANDB_SWEEP_ID" in os.environ else None


def uniform_keys(config: RunConfig, run_id: str) -> dict[str, Any]:
    """Return the flat settings that every run has, whatever its method, so that runs can be filtered and grouped."""
    found: dict[str, Any] = {"run_id": run_id}
    for key in ("method", "experiment", "seed"):
        found[key] = getattr(config, key)
    found["precision"] = config.compute.precision
    for group in GROUPS:
        found[group] = choice(config, group)
    found["transform"] = "+".join(config.transform) or None
    tuned = config.tuning
    for key in RECIPE:
        found[key] = getattr(tuned, key, None)
    return found


def has_key(base_url: str) -> bool:
    """Return whether credentials for a W&B server are configured, without asking anybody for them."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url).netloc
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for place in places:
        path = Path(place).expanduser()
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host):
                return True
    return False


class WandbSession(Session):
    """One W&B run. Whatever a call into it raises is told once and forgotten."""

    def __init__(self, run: Any, timeout_s: float = 30, store: Path | None = None):
        self._run, self._timeout_s, self._store = run, timeout_s, store
        self._broken = False
        with self._tolerant():
            for section, axis in AXES.items():
                run.define_metric(axis, hidden=True, summary="none")
                # The summary is for results
                run.define_metric(f"{section}/*", step_metric=axis, summary="none")

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the run: finished, or failed with the reason in its summary."""
        if error is not None:
            with self._tolerant():
                self._run.summary.update({"state": "failed", "reason": reason(error)})
        code = 0 if error is None else 1
        with self._tolerant():
            self._run.finish(exit_code=code)

    def curve(self, label: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log one point of a training curve as ``train/<what>/<metric>`` over ``train/step``."""
        if not self._broken:
            values = {key: value for key, value in metrics.items() if key != "step"}
            with self._tolerant():
                self._point("train", label.removeprefix("vector "), step, values)

    def finish(self, result: Result) -> None:
        """Log metrics, then the curves over coefficients, then both as tables."""
        with self._tolerant():
            for one in content.described(result):
                if one["axis"] is None:
                    self._run.define_metric(one["metric"])
        with self._tolerant():
            self._run.log(flat_metrics(result.rows) | criterion(result))
            usage = {key: result.timing.get(key) for key in ("wall_s", "peak_memory_bytes")}
            self._run.summary.update(
                {"state": "done", "reason": None, "fingerprint": result.fingerprint} | usage
            )
        with self._tolerant():
            for point in curve_points(result):
                self._point("alpha_curve", point.pop("curve"), point.pop("alpha"), point)
            for at in content.by_layer(result):
                self._point("layer", at.picture, at.layer, at.values)
        self._pictures(result)
        if self._store is not None:
            self._artifacts(content.artefacts(result, self._store))
        tables = Thread(target=self._tables, args=(result,), daemon=True)
        tables.start()
        # To log a table, wandb asks the server and waits for the answer
        tables.join(self._timeout_s)

    def _pictures(self, result: Result) -> None:
        with self._tolerant():
            import wandb

            found = {}
            for name, image in content.images(result, PICTURES).items():
                found[f"pictures/{clean(name)}"] = wandb.Image(image, caption=name)
            if found:
                self._run.log(found)

    def _artifacts(self, found: Sequence[content.Artefact]) -> None:
        """Mirror vectors and merged models: what the run made as its outputs, the rest as its inputs.

        Offline nothing can be looked up, so that inputs are outputs too; their content tells W&B that they are one.
        """
        with self._tolerant():
            import wandb

            for one in found:
                made = wandb.Artifact(one.name, one.type, metadata=one.metadata)
                made.add_dir(str(one.folder), policy="immutable")
                if one.made or self._run.offline:
                    self._run.log_artifact(made)
                else:
                    self._run.use_artifact(made)

    def _tables(self, result: Result) -> None:
        with self._tolerant():
            rows = []
            for row in result.rows:
                about = {"row": row.row, "selected_on": row.selected_on, "rule": row.rule}
                rows.append(about | row_metrics(row))
            tables = {
                "rows": rows,
                "alpha_curve": curve_points(result),
                "tasks": content.by_task(result),
                "metrics": content.described(result),
            }
            self._run.log({f"tables/{name}": table(found) for name, found in tables.items()})

    def _point(self, section: str, what: str, at: float, values: Mapping[str, Any]) -> None:
        point = {AXES[section]: at}
        for key, value in values.items():
            if isinstance(value, int | float):
                point[f"{section}/{clean(what)}/{key}"] = value
        self._run.log(point)

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
    return (
        "interrupted; the same command resumes it"
        if isinstance(error, KeyboardInterrupt)
        else describe(error)
    )


def criterion(result: Result) -> dict[str, float]:
    """Return the number that a sweep of W&B may optimise; a test figure is none."""
    return {"criterion": result.criterion.value} if result.criterion.ranks else {}


def clean(label: str) -> str:
    """Return a label as a part of a metric's key."""
    return re.sub(r"[^\w/+-]+", "_", label)


def curve_points(result: Result) -> list[dict[str, Any]]:
    """Return the points of all curves over coefficients, each with its curve's name."""
    found = []
    for name, curve in result.curves.items():
        for point in curve:
            if "alpha" in point:
                found.append({"curve": name} | flat(point))
    return found


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose mappings (one number per task) became keys of their own."""
    found = {}
    for key, value in record.items():
        if not isinstance(value, dict):
            found[key] = value
            continue
        for task, number in value.items():
            found[f"{key}/{task}"] = number
    return found


def table(records: Sequence[Mapping[str, Any]]) -> Any:
    """Return records as a W&B table with the union of their keys as columns."""
    import wandb

    columns = list(dict.fromkeys(chain.from_iterable(records)))
    made = wandb.Table(columns=columns, allow_mixed_types=True)
    for record in records:
        made.add_data(*(record.get(column) for column in columns))
    return made


def one_line(error: BaseException) -> str:
    """Return an error as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
