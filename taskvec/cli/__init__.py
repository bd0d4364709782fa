"""The ``taskvec`` command: one file per verb, nothing heavy imported before a run starts."""

from __future__ import annotations

import importlib
import logging
import os
import sys

from taskvec.errors import UserError
from taskvec.text import printable

VERBS = {
    "run": "run an experiment or sweep (the default: `taskvec key=value ...`)",
    "list": "list methods, components, suites, tasks and experiments",
    "show": "print the resolved config of a command, without running it",
    "table": "print results as a table: any rows and columns, mean and deviation over seeds",
    "compare": "print the difference between two rows with its 95 % interval",
    "figure": "draw a run's maps, matrices and coefficient curves",
    "status": "say which runs are done, running, failed or stale",
    "retry": "run again what failed",
    "store": "list, verify, explain and prune stored artefacts",
    "doctor": "check versions, devices, caches and tracker, and say what is missing",
    "completion": "print the shell completion script",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 well, 1 a run failed, 2 input that cannot be worked with."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]  # once imported, ``list`` here is the verb's module
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("taskvec").setLevel(os.environ.get("TASKVEC_LOG", "INFO").upper())
    try:
        arguments = _take_includes(arguments)
        verb = arguments.pop(0) if arguments and arguments[0] in VERBS else "run"
        return importlib.import_module(f"taskvec.cli.{verb}").main(arguments)
    except UserError as error:
        print(printable(f"taskvec: error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("taskvec: interrupted; the same command resumes", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _take_includes(arguments: list[str]) -> list[str]:
    """Move ``--include PATH`` (a user's folder or Python file) into the environment, for child processes too.

    Raises:
        UserError: if the path is missing.
    """
    rest, paths = [], []
    queue = iter(arguments)
    for argument in queue:
        if argument == "--include":
            path = next(queue, None)
            if path is None:
                raise UserError("--include needs a folder or a Python file")
            paths.append(os.path.abspath(path))
        elif argument.startswith("--include="):
            paths.append(os.path.abspath(argument.partition("=")[2]))
        else:
            rest.append(argument)
    if paths:
        known = os.environ.get("TASKVEC_INCLUDE")
        os.environ["TASKVEC_INCLUDE"] = os.pathsep.join([*paths, *([known] if known else [])])
    return rest
