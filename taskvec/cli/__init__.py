"""The ``taskvec`` command: one file per verb, nothing heavy imported before a run starts."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import tempfile
import warnings

from taskvec.errors import UserError, describe, details, disk_is_full
from taskvec.runner import signals
from taskvec.runner.progress import to_standard_error
from taskvec.text import printable

SIGNALLED = 128
INCLUDES = ("--include", "--config-dir", "-cd")
VALUED = ("--package", "-p", "--cfg", "-c", "--info", "-i")

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
    "wandb": "build a report of mirrored runs in W&B, or send what ran offline",
    "doctor": "check versions, devices, caches and tracker, and say what is missing",
    "help": "explain a method, a component or a key: types, ranges, defaults, paper",
    "docs": "print a page of the documentation",
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
        to_standard_error()
        # torch scripts rules of its own for forward-mode derivatives, and warns of it
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        signals.die_with_sweep()
        arguments = _take_includes(arguments)
        verb = _take_verb(arguments)
        status = importlib.import_module(f"taskvec.cli.{verb}").main(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        return _interrupted(getattr(interrupt, "number", signal.SIGINT))
    except BrokenPipeError:
        _drop_output()
        return 0
    except Exception as error:
        number = signals.arrived()
        return _told(error) if number is None else _interrupted(number)
    return status


def _interrupted(number: int) -> int:
    say("taskvec: interrupted; the same command resumes")
    return SIGNALLED + number


def _told(error: Exception) -> int:
    """Print an error and return the exit status."""
    if isinstance(error, UserError):
        say(f"taskvec: error: {error}")
        return 2
    say(f"taskvec: error: {_unexpected(error)}")
    return 2 if disk_is_full(error) else 70


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


def _take_verb(arguments: list[str]) -> str:
    """Take the verb out of a command line, wherever it stands; without one the command runs an experiment.

    A word that follows an option may be its value: it is the verb only where no other word is one, and never after an
    option of a run that takes a value.
    """
    before = ["", *arguments]
    places = [place for place, word in enumerate(arguments) if word in VERBS]
    places = [place for place in places if before[place] not in VALUED]
    free = [place for place in places if not before[place].startswith("-")]
    if not places:
        return "run"
    return arguments.pop((free or places)[0])


def _take_includes(arguments: list[str]) -> list[str]:
    """Move ``--include PATH`` (a user's folder or Python file) into the environment, for child processes too.

    Hydra's own name of the option, ``--config-dir``, means the same.

    Raises:
        UserError: if the path is missing.
    """
    rest, paths = [], []
    queue = iter(arguments)
    for argument in queue:
        option, equals, path = argument.partition("=")
        if option not in INCLUDES:
            rest.append(argument)
            continue
        if not equals:
            path = next(queue, "")
        if not path:
            raise UserError(f"{option} needs a folder or a Python file")
        paths.append(os.path.abspath(os.path.expanduser(path)))
    if paths:
        known = os.environ.get("TASKVEC_INCLUDE")
        os.environ["TASKVEC_INCLUDE"] = os.pathsep.join([*paths, *([known] if known else [])])
    return rest
