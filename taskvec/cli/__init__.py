"""The ``taskvec`` command: one file per verb, nothing heavy imported before a run starts."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import tempfile

from taskvec.errors import UserError, describe, details, disk_is_full
from taskvec.runner import signals
from taskvec.text import printable, printable_lines

SIGNALLED = 128
INCLUDES = {
    "--include": "TASKVEC_INCLUDE",
    "--config-dir": "TASKVEC_CONFIG_DIR",
    "-cd": "TASKVEC_CONFIG_DIR",
}

VERBS = {
    "run": "run an experiment or sweep (the default: `taskvec key=value ...`)",
    "list": "list methods, components, suites, tasks and experiments",
    "show": "print the resolved config of a command, without running it",
    "import": "store a fine-tuned model or adapter as a task vector, for finetune=stored",
    "export": "write a run's merged model as a folder that open_clip or transformers loads",
    "merge": "merge checkpoints on disk: folders, weight files, task vectors, adapters",
    "prefetch": "fetch what a command reads from the hub, and say how large it is",
    "transform": "purify vectors on disk, or carry them to another model",
    "table": "print results as a table: any rows and columns, mean and deviation over seeds",
    "papers": "list published tables: command, what each needs and has, runs done, cost",
    "compare": "print the difference between two rows with its 95 % interval",
    "figure": "draw a run's maps, matrices and coefficient curves",
    "report": "write all results as one page, or show it while a sweep runs",
    "status": "say which runs are done, running, failed or stale",
    "retry": "run again what failed",
    "store": "list, verify, explain and prune stored artefacts",
    "doctor": "check versions, devices, caches and tracker, and say what is missing",
    "completion": "print the shell completion script",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status.

    0 well, 1 a run failed, 2 input that cannot be worked with, 70 a mistake in this program, 128 + N ended by signal N.
    Here and nowhere else an error becomes what a person reads.
    """
    # Once imported, ``list`` here is the verb's module
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    try:
        signals.install()
        _set_up_logging()
        signals.die_with_sweep()
        arguments = _take_includes(arguments)
        verb = arguments.pop(0) if arguments and arguments[0] in VERBS else "run"
        status = importlib.import_module(f"taskvec.cli.{verb}").main(arguments)
        sys.stdout.flush()
    except UserError as error:
        say(f"taskvec: error: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        say("taskvec: interrupted; the same command resumes")
        return SIGNALLED + getattr(interrupt, "number", signal.SIGINT)
    except BrokenPipeError:
        _drop_output()
        return 0
    except Exception as error:
        say(f"taskvec: error: {_unexpected(error)}")
        return 2 if disk_is_full(error) else 70
    return status


def say(text: str) -> None:
    """Print one line to standard error, control characters spelt out; nobody reads a closed or a full one."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)


def _unexpected(error: Exception) -> str:
    """Return an error that nobody foresaw as one line, and keep its traceback in a file."""
    if disk_is_full(error):
        _drop_output()
        return describe(error)
    try:
        number, place = tempfile.mkstemp(prefix="taskvec-", suffix=".log")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(details(error))
        kept = f"the traceback is in {place}"
    except OSError as problem:
        kept = f"and its traceback cannot be written: {problem.strerror}"
    return f"a mistake in taskvec: {describe(error)}; {kept}"


def _drop_output() -> None:
    """Let what is still to be printed go nowhere, so that leaving does not fail on it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())


class _Printable(logging.Formatter):
    """Formats messages as lines that cannot steer a terminal; tracebacks stay in log files."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message alone."""
        return printable_lines(record.getMessage())


def _set_up_logging() -> None:
    # A full disk is told once, not with a traceback for each line of the log
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    level = os.environ.get("TASKVEC_LOG", "INFO").upper()
    known = level in logging.getLevelNamesMapping()
    logging.getLogger("taskvec").setLevel(level if known else "INFO")


def _take_includes(arguments: list[str]) -> list[str]:
    """Move ``--include PATH`` (a user's folder or Python file) into the environment, for child processes too.

    ``--config-dir PATH`` is Hydra's: a folder of configs, whose Python files are not run.

    Raises:
        UserError: if the path is missing.
    """
    rest: list[str] = []
    paths: dict[str, list[str]] = {variable: [] for variable in INCLUDES.values()}
    queue = iter(arguments)
    for argument in queue:
        option, given, path = argument.partition("=")
        if option not in INCLUDES:
            rest.append(argument)
            continue
        if not given:
            path = next(queue, "")
        if not path:
            raise UserError(f"{option} needs a path")
        paths[INCLUDES[option]].append(os.path.abspath(path))
    for variable, added in paths.items():
        known = os.environ.get(variable)
        if added:
            os.environ[variable] = os.pathsep.join([*added, *([known] if known else [])])
    return rest
