"""Shared fixtures: the tiny world, and the command in this process or in one of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import world

pytest_plugins = ["shown"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def registered_here():
    """Components that a file's tests register end with it: another file's may have their names."""
    from taskvec import registry

    before = set(registry._entries)
    yield
    for name, entry in list(registry._entries.items()):
        if name not in before and not entry.shipped:
            del registry._entries[name]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world's folder, built once."""
    return world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def warm_outputs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder in which the tiny world's addition run is done; copy it, do not change it."""
    outputs = tmp_path_factory.mktemp("warm") / "outputs"
    done = command(tiny, *world.FAST, f"outputs={outputs}")
    assert done.returncode == 0, done.stderr
    return outputs


@pytest.fixture
def outputs(warm_outputs: Path, tmp_path: Path) -> Path:
    """A fresh outputs folder that knows the tiny world's heads and images (which need open_clip, 5 s to import)."""
    fresh = tmp_path / "outputs"
    for kind in ("head", "decoded"):
        shutil.copytree(warm_outputs / "store" / kind, fresh / "store" / kind)
    return fresh


def command(
    include: Path | None,
    *arguments: str,
    environment: dict[str, str] | None = None,
    timeout: float = 120,
):
    """Run ``taskvec`` in a process of its own and return it finished, with its output as text."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("TASKVEC", "WANDB"))}
    own |= {"OMP_NUM_THREADS": "1"} | (environment or {})
    words = [
        sys.executable,
        "-m",
        "taskvec",
        *(["--include", str(include)] if include else []),
        *arguments,
    ]
    return subprocess.run(
        words, capture_output=True, text=True, env=own, timeout=timeout, cwd=own.get("PWD_FOR_TEST")
    )


def configs(experiment: str) -> list:
    """Return the runs of an experiment, resolved without network."""
    from taskvec.runner import compose
    from taskvec.runner.expand import expand, unions

    compose.register_all()
    found = []
    for sweep in unions([f"experiment={experiment}"]):
        found += [compose.resolve(compose.compose(job)) for job in expand(sweep)]
    return found
