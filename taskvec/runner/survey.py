"""How runs stand: whether they are done, and whether what they stand on still holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import UserError, describe
from taskvec.graph.ground import given_of, leaves_of, program
from taskvec.graph.plan import Plan
from taskvec.graph.run import RunConfig
from taskvec.graph.status import STATUS, State
from taskvec.runner import compose, explain, signals
from taskvec.runner.configs import included
from taskvec.runner.folder import RunFolder
from taskvec.runner.yaml_files import read_yaml

LENGTH = 200  # of what is said about a file


def config_of(folder: RunFolder) -> RunConfig:
    """Return the config a run was started with.

    Raises:
        UserError: if it is missing or no longer fits this program.
    """
    path = folder.path / "config.yaml"
    data = read_yaml(path)
    try:
        return compose.from_data(data)
    except (explain.InvalidError, UserError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path}: not a config of this program: {message[:LENGTH]}") from error
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a config of this program: {describe(error)[:LENGTH]}"
        ) from error


def without(folder: RunFolder) -> str | None:
    """Return which of a run's own ``--include`` this command lacks, None if it has them all."""
    lacking = [path for path in folder.included() if path not in included()]
    gone = [path for path in lacking if not path.exists()]
    if gone:
        return f"made with --include {gone[0]}, which is no longer there"
    options = " ".join(f"--include {path}" for path in lacking)
    return f"made with {options}; give it here too" if lacking else None


def trusted(folder: RunFolder) -> list[Path]:
    """Return the includes of a run, for code that is about to be run again.

    Raises:
        UserError: if the run's status belongs to somebody else, whose word would make this process load any file.
    """
    paths = folder.included()
    owner = (folder.path / STATUS).stat().st_uid if paths else None
    if paths and hasattr(os, "getuid") and owner != os.getuid():
        raise UserError(
            f"{folder.path}/{STATUS} is another user's: give --include {paths[0]} yourself"
        )
    return paths


class Survey:
    """How runs stand, with one plan for all runs that stand on the same files."""

    def __init__(self):
        self._standing: dict[
            str, set[str]
        ] = {}  # of what configs name, the nodes that look at files

    def state(self, folder: RunFolder) -> tuple[State, str | None]:
        """Return a run's state and the reason; a done run is stale once code, data or weights below it differ."""
        status = folder.status()
        state = status.get("state", "missing")
        if state != "done":
            return state, status.get("reason")
        if self._still_stands(folder, status.get("ground")):
            return "done", None
        result = folder.result()
        if result is None:
            return "stale", "result.json or config.yaml is not as it was written"
        if result.migrated_from is not None:
            return (
                "older",
                f"written in schema {result.migrated_from}; the same command computes it again",
            )
        try:
            found = self._planned(folder)
        except UserError as error:
            lacking = without(folder)
            return ("unchecked", lacking) if lacking else ("stale", str(error))
        except Exception as error:  # one run that cannot be looked at hides no other
            signals.require_none(error)
            return "stale", f"cannot be checked: {describe(error)}"
        if found != result.fingerprint:
            return (
                "stale",
                "code, data or weights below it changed; the same command computes it again",
            )
        return "done", None

    def _still_stands(self, folder: RunFolder, ground: Mapping[str, Any] | None) -> bool:
        """Return whether all that a run stands on was seen as it was, so that planning would find the same."""
        if not ground or ground["program"] != program():
            return False
        seen = self._standing.get(ground["given"], set())
        return seen.issuperset(ground["leaves"]) and folder.intact()

    def _planned(self, folder: RunFolder) -> str:
        """Return the fingerprint that planning finds, and remember what the plan looked at."""
        config = config_of(folder)
        plan = Plan(config)
        self._standing.setdefault(given_of(config), set()).update(leaves_of(plan))
        return plan.fingerprint


def standing() -> Callable[[Path], State]:
    """Return the function that says how a finished run stands, by its folder: done, stale, older or unchecked."""
    compose.register_all()
    survey = Survey()

    def state(folder: Path) -> State:
        found, _ = survey.state(RunFolder(folder))
        return found

    return state
