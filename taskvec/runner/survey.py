"""How runs stand: whether they are done, and whether what they stand on still holds."""

from __future__ import annotations

import yaml

from taskvec.errors import UserError
from taskvec.graph.plan import Plan
from taskvec.graph.run import RunConfig
from taskvec.runner import compose
from taskvec.runner.folder import RunFolder, State


def config_of(folder: RunFolder) -> RunConfig:
    """Return the config a run was started with.

    Raises:
        UserError: if it is missing or no longer fits this program.
    """
    path = folder.path / "config.yaml"
    try:
        return compose.from_data(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a config of this program: {' '.join(str(error).split())[:160]}") from error


def state_of(folder: RunFolder) -> tuple[State, str | None]:
    """Return a run's state and the reason for it; a done run is stale once code, data or weights below it differ."""
    status = folder.status()
    state = status.get("state", "missing")
    if state != "done":
        return state, status.get("reason")
    result = folder.result()
    if result is None:
        return "stale", "result.json or config.yaml is not as it was written"
    try:
        expected = Plan(config_of(folder)).fingerprint
    except UserError as error:
        return "stale", str(error)
    if expected != result.fingerprint:
        return "stale", "code, data or weights below it changed; the same command computes it again"
    return "done", None
