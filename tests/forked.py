"""The ``taskvec`` command in forks of one warm process: real exit codes in a tenth of the start-up time, and accidents.

A child can be counted (``events``), killed at a chosen event, stopped there until it is killed, or told that the disk
is full from there on. Events are the boundaries of training steps, compositions, evaluations and of every operation
that changes a file below ``outputs``.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finished:
    """An ended child."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Child:
    """A running child; its output goes to files."""

    pid: int
    folder: Path

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Finished:
        """Return its exit code (negative: the signal) and output."""
        code = _request({"wait": self.pid})
        return Finished(code, (self.folder / "stdout").read_text(), self.stderr)


def start(include: Path | None, *arguments: str, folder: Path, **accident: Any) -> Child:
    """Start ``taskvec`` in a fork; its output, and the log of its events, are kept in ``folder``.

    ``accident`` is one of ``events=True`` (only log), ``kill_at=N``, ``stop_at=N`` or a phase, ``full_at=N``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [*(["--include", str(include)] if include else []), *map(str, arguments)]
    return Child(
        _request({"arguments": words, "folder": str(folder), "accident": accident}), folder
    )


def run(include: Path | None, *arguments: str, folder: Path, **accident: Any) -> Finished:
    """Run ``taskvec`` in a fork to its end."""
    return start(include, *arguments, folder=folder, **accident).wait()


def events(folder: Path) -> list[str]:
    """Return the events of a finished child, each as ``phase name``."""
    return (folder / "events").read_text().splitlines()


@cache
def _server() -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TASKVEC", "WANDB"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    atexit.register(server.kill)
    return server


def _request(message: dict[str, Any]) -> int:
    server = _server()
    server.stdin.write(json.dumps(message) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


# The server's side.

PRELOADED = (
    "torch",
    "open_clip",
    "pyarrow.parquet",
    "safetensors.torch",
    "taskvec.cli.run",
    "taskvec.models.clip.vit",
    "taskvec.training.evaluator",
    "taskvec.report.table",
    "taskvec.runner.compose",
    "taskvec.graph.workspace",
    "taskvec.finetune.recipe",
)


def serve() -> None:
    """Import what runs need, then fork a child per request."""
    for module in PRELOADED:
        importlib.import_module(module)
    sys.modules["torch"].set_num_threads(1)
    compose = sys.modules["taskvec.runner.compose"]
    compose.register_all()
    compose.resolve(compose.compose([]))  # warms the parsers
    gc.freeze()
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        message = json.loads(line)
        reply = _wait(message["wait"]) if "wait" in message else _fork(message)
        print(reply, file=replies, flush=True)


def _wait(pid: int, timeout: float = 300) -> int:
    deadline = time.monotonic() + timeout
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


def _fork(message: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    folder = Path(message["folder"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = 70
    try:
        from taskvec.cli import main
        from taskvec.runner import signals

        # As the command itself does it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if message["accident"]:
            Accident(folder, **message["accident"]).install()
        code = main(message["arguments"])
        signals.end_in_silence()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Accident:
    """Counts the events of this process, and lets something happen at one of them."""

    def __init__(
        self,
        folder: Path,
        events: bool = True,
        kill_at: int = 0,
        stop_at: int | str = 0,
        full_at: int = 0,
    ):
        self.kill_at, self.stop_at, self.full_at, self.count = kill_at, stop_at, full_at, 0
        self.log = (folder / "events").open("w", buffering=1)

    def install(self) -> None:
        """Put an event before and after every function that does a part of the work."""
        import safetensors.torch
        import torch

        from taskvec.graph.store import Store
        from taskvec.merge.task_arithmetic import TaskArithmetic
        from taskvec.models.clip.backbone import ClipModel
        from taskvec.training import checkpoint
        from taskvec.vectors.composition import Scaled

        self.wrap(torch.optim.AdamW, "step", "finetune")
        self.wrap(checkpoint.Checkpoint, "save_if_due", "finetune")
        self.wrap(TaskArithmetic, "compose", "merge")
        self.wrap(Scaled, "parameters", "merge")
        self.wrap(ClipModel, "logits", "evaluate", lambda *_, **__: not torch.is_grad_enabled())
        self.wrap(
            Store,
            "_compute",
            "compute",
            detail=lambda store, node, _: f"{node.label} {node.fingerprint}",
        )
        for name in ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink"):
            self.wrap(os, name, "write", _in_outputs)
        self.wrap(safetensors.torch, "save_file", "write", torn=True)
        self.wrap(checkpoint, "save_tensors", "write", torn=True)

    def wrap(self, owner: Any, name: str, phase: str, counts: Callable = lambda *_, **__: True, *, torn: bool = False,
             detail: Callable | None = None) -> None:  # fmt: skip
        """Replace ``owner.name`` by itself between two events; ``torn`` adds one at which half a file is written."""
        original = getattr(owner, name)

        @wraps(original)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not counts(*arguments, **named):
                return original(*arguments, **named)
            what = detail(*arguments, **named) if detail else name
            self.event(phase, f"before {what}")
            if torn:
                self.event(phase, f"within {what}", lambda: half(original, *arguments, **named))
            result = original(*arguments, **named)
            self.event(phase, f"after {what}")
            return result

        setattr(owner, name, wrapped)

    def event(self, phase: str, name: str, last: Callable[[], None] = lambda: None) -> None:
        """Log an event and do what is planned for it."""
        self.count += 1
        self.log.write(f"{phase} {name}\n")
        if self.count == self.kill_at:
            last()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.stop_at in (self.count, phase):
            while True:
                time.sleep(1)
        if (
            phase == "write"
            and self.full_at
            and self.count >= self.full_at
            and name.startswith("before")
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(save: Callable, *arguments: Any, **named: Any) -> None:
    """Write the first half of a file, whose path is among the arguments."""
    (path,) = [argument for argument in arguments if isinstance(argument, Path)]
    save(*arguments, **named)
    os.truncate(path, os.path.getsize(path) // 2)


def _in_outputs(path: Any, *_: Any, **__: Any) -> bool:
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        return "/outputs" in path and ".lock" not in path
    return False


def damaged(content: bytes, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield a file's content emptied, cut in half and with one bit flipped."""
    position = (seed * 7919 + len(content) // 3) % len(content)
    flipped = bytearray(content)
    flipped[position] ^= 1 << seed % 8
    yield from (("empty", b""), ("half", content[: len(content) // 2]), ("bit", bytes(flipped)))


if __name__ == "__main__":
    serve()
