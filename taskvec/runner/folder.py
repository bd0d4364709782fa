"""A run's folder: config, status, result and log, each replaced atomically, guarded by a lock while the run works."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from taskvec import registry
from taskvec.data.files import sha256
from taskvec.errors import UserError
from taskvec.graph.artefact import fingerprint, read_json
from taskvec.graph.ground import ground_of
from taskvec.graph.locking import held, is_held
from taskvec.graph.plan import Plan
from taskvec.graph.result import SCHEMA_VERSION, Result, read_result
from taskvec.graph.run import RunConfig
from taskvec.graph.status import STATUS, State, exists, folders, read_status
from taskvec.runner.configs import included

log = logging.getLogger(__name__)
LABEL = 40  # characters of a label in a run's name; the hash tells runs apart
USUAL = {"finetune": "full", "merge": "task_arithmetic"}
ALWAYS_NAMED = ("backbone", "suite", "protocol")
KILLED = "the process was killed; the same command resumes it"


def run_id(config: RunConfig) -> str:
    """Return a run's name: what was chosen, the seed, and a hash of every setting that can change its result."""
    return "-".join([study(config), f"s{config.seed}", fingerprint(config.settings())[:8]])


def study(config: RunConfig) -> str:
    """Return what a run has in common with those of other seeds, in words.

    The recipe, the transforms and the merge are named where they are not the usual ones.
    """
    labels = [*unusual(config), *[choice(config, group) for group in ALWAYS_NAMED]]
    if config.source is not None:
        labels.append(f"from_{choice(config, 'source')}")
    return "-".join(word(label) for label in labels)


def unusual(config: RunConfig) -> list[str]:
    """Return the fine-tuning, the transforms and the merge of a run, without those that every run has by default."""
    recipe, merge = choice(config, "finetune"), choice(config, "merge")
    found = [] if recipe == USUAL["finetune"] else [recipe]
    found += config.transform
    return found if merge == USUAL["merge"] else [*found, merge]


def choice(config: RunConfig, group: str) -> str:
    """Return what a run takes of a group, as it was typed; else the component's own name."""
    return str(config.choices.get(group) or getattr(config, group).kind)


def word(label: str) -> str:
    """Return a label as a part of a file's name: letters, digits, ``_ . + -``, the slash of a subfolder as a dot."""
    plain = re.sub(r"[^\w.+-]+", "_", label.replace("/", "."))
    return plain.strip("._-")[:LABEL] or "_"


class RunFolder:
    """``outputs/runs/<run id>/`` with ``config.yaml``, ``status.json``, ``result.json`` and ``log.txt``."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """Return the folder of a config's run."""
        return cls(config.root / "runs" / run_id(config))

    @property
    def name(self) -> str:
        """The run's id."""
        return self.path.name

    def status(self) -> dict[str, Any]:
        """Return the last recorded status; a run whose process is gone was interrupted."""
        try:
            status = self._recorded()
            if status.get("state") == "running" and not self.locked():
                status = self._recorded()  # it may have ended between the two looks
                if status.get("state") == "running":
                    status |= {"state": "interrupted", "reason": KILLED}
        except UserError as error:
            return {"state": "unreadable", "reason": str(error)}
        return status

    def status_on_disk(self) -> dict[str, Any]:
        """Return the status as it was last written, nothing if it cannot be read."""
        with contextlib.suppress(UserError):
            return self._recorded()
        return {}

    def _recorded(self) -> dict[str, Any]:
        status = read_status(self.path)
        return {} if status is None else status.model_dump(mode="json")

    def locked(self) -> bool:
        """Return whether a living process works on the run."""
        return is_held(self.path / "run.lock")

    def result(self, expected: str | None = None) -> Result | None:
        """Return the intact result, of the expected fingerprint where one is given; otherwise None."""
        if not self.intact():
            return None
        try:
            result = read_result(self.path / "result.json")
        except UserError:
            return None
        return result if expected in (None, result.fingerprint) else None

    def intact(self) -> bool:
        """Return whether the run is done, and config and result are as they were written."""
        status = self.status_on_disk()
        if status.get("state") != "done":
            return False
        files = {"config.yaml": "config_sha256", "result.json": "result_sha256"}
        try:
            return all(sha256(self.path / name) == status.get(key) for name, key in files.items())
        except UserError:
            return False

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run's lock; other processes that start the same run wait here."""
        return held(self.path / "run.lock", f"works on {self.name}")

    def start(
        self, config: RunConfig, overrides: tuple[str, ...], plan: Plan | None = None
    ) -> None:
        """Record the run as running, with its resolved config, its command and what it will stand on.

        Raises:
            UserError: if it cannot be written, or would overwrite the result of a newer program.
        """
        found = read_json(self.path / "result.json")
        newer = found.get("schema_version") if isinstance(found, dict) else None
        if isinstance(newer, int) and newer > SCHEMA_VERSION:
            written = (
                f"{self.path}/result.json was written by a newer program (schema version {newer}"
            )
            raise UserError(
                f"{written}, this one writes {SCHEMA_VERSION}); update taskvec or set outputs=FOLDER"
            )
        for leftover in self.path.glob(".*.tmp"):  # of a process that died: this one holds the lock
            leftover.unlink(missing_ok=True)
        artefacts = [node.fingerprint for node in plan.nodes] if plan else []
        ground = ground_of(config, plan) if plan else None
        text = config.to_yaml()
        write_atomically(self.path / "config.yaml", text)
        self._set(
            "running",
            overrides=list(overrides),
            command=command(overrides),
            include=[str(path) for path in included()],
            started=time.time(),
            experiments=self._experiments(config),
            artefacts=sorted({*artefacts, *self._left_behind()}),
            ground=ground and ground.model_dump(mode="json"),
            config_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )

    def set_aside(self) -> None:
        """Keep the result that a new one is about to replace, and say so: its code, data or weights are others.

        Two projects with one outputs folder can ask for a run of one name.

        Raises:
            UserError: if it cannot be written.
        """
        earlier = self.result()
        if earlier is None:
            return
        kept = self.path / f"result-{earlier.fingerprint[:8]}.json"
        write_atomically(kept, earlier.to_json())
        log.warning(
            "%s: code, data or weights are not those of the earlier result, kept as %s",
            self.name,
            kept.name,
        )

    def _left_behind(self) -> list[str]:
        """Return the artefacts of earlier attempts, which no result lists."""
        earlier = self.status_on_disk()
        return [] if earlier.get("state") == "done" else earlier.get("artefacts", [])

    def finish(self, result: Result, mirrored_to: str) -> None:
        """Record the result, then the run as done, and which tracker mirrors it."""
        text = result.to_json()
        write_atomically(self.path / "result.json", text)
        self._set(
            "done",
            mirrored_to=mirrored_to,
            result_sha256=hashlib.sha256(text.encode()).hexdigest(),
            reason=None,
        )

    def experiments(self) -> list[str]:
        """Return the names of the experiments that asked for the run, the first one first."""
        return self.status_on_disk().get("experiments", [])

    def asked_by(self, config: RunConfig) -> None:
        """Remember another experiment that the finished run is part of, so that its table finds it."""
        if self._experiments(config) != self.experiments():
            with self.working():
                self._set(self.status_on_disk()["state"], experiments=self._experiments(config))

    def included(self) -> list[Path]:
        """Return the user's folders and files that the run was started with."""
        return [Path(place) for place in self.status_on_disk().get("include", [])]

    def _experiments(self, config: RunConfig) -> list[str]:
        return list(
            dict.fromkeys(
                [*self.experiments(), *([config.experiment] if config.experiment else [])]
            )
        )

    def fail(self, reason: str, state: State = "failed") -> None:
        """Record how the run ended; where even that cannot be written, the killed-process rule still says so."""
        with contextlib.suppress(OSError, UserError):
            self._set(state, reason=reason)

    def _set(self, state: State, **more: Any) -> None:
        status = self.status_on_disk() if state != "running" else {}
        status |= {
            "state": state,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "updated": time.time(),
        } | more
        write_atomically(self.path / STATUS, json.dumps(status, indent=1) + "\n")


def command(overrides: Iterable[str]) -> str:
    """Return the shell command that starts a run with these overrides and the user's folders of this process."""
    import shlex

    words = ["taskvec"]
    for path in included():
        words += ["--include", str(path)]
    return shlex.join([*words, *overrides])


def run_folders(root: Path) -> list[RunFolder]:
    """Return the folders of all runs below an outputs folder, those that cannot be looked into among them.

    Raises:
        UserError: if the folder cannot be read.
    """
    return [RunFolder(path) for path in folders(root / "runs") if _is_run(path)]


def looked_up(named: Path, outputs: Path) -> Path:
    """Return a run's folder by its path, or by the name, or its beginning, of one run below an outputs folder.

    Raises:
        UserError: if no run is called so, or several are.
    """
    if named.exists():
        return named
    names = [path.name for path in folders(outputs / "runs")]
    if str(named) in names:
        return outputs / "runs" / named
    alike = [name for name in names if name.startswith(str(named))]
    if len(alike) != 1:
        hint = f"{len(alike)} runs are called so: {', '.join(alike)}" if alike else "no run"
        raise UserError(f"{named}: {hint}; `taskvec status` lists the runs below {outputs}")
    return outputs / "runs" / alike[0]


def _is_run(path: Path) -> bool:
    try:
        return exists(path / STATUS)
    except UserError:
        return True


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new content, whatever happens.

    Raises:
        UserError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def environment() -> dict[str, Any]:
    """Return software and hardware of this process."""
    import platform
    from importlib.metadata import version

    import torch

    packages = ("taskvec", "torch", "open_clip_torch", "hydra-core", "safetensors", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(ImportError):
            found[package] = version(package)
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": found,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "threads": torch.get_num_threads(),
        "devices": devices,
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "argv": sys.argv,
        "user_files": sorted(
            {e.source.name for e in registry.entries() if "taskvec_user_" in e.schema.__module__}
        ),
    }
