"""``taskvec [run] key=value ...``: one run; with ``-m`` a sweep."""

from __future__ import annotations

import logging

from taskvec.cli import VERBS
from taskvec.errors import UserError

log = logging.getLogger(__name__)

HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")

HELP = """\
taskvec: task arithmetic and model merging, composable, exact, resumable.

  taskvec method=task_arithmetic suite=mini8             one run on the embedded suite, on any laptop
  taskvec protocol=negation finetune.lr=3e-4 seed=1      any key of `taskvec show` can be set
  taskvec -m seed=0,1,2 backbone=mini_clip_s             a sweep; finished runs are skipped
  taskvec -m seed=0,1,2,3 sweep.jobs=4 'sweep.devices=[0,1,2,3]'
                                                         four jobs at once, one GPU each
  taskvec experiment=demo -m                             an experiment file
  taskvec --include my_folder merge=mine                 your own configs (*.yaml) and components (*.py)

verbs:
{verbs}

`taskvec VERB --help` explains a verb. Exit status: 0 well, 1 a run failed, 2 input that cannot be worked with.
"""


def main(arguments: list[str]) -> int:
    """Compose, validate and run; the exit status says how it went.

    Raises:
        UserError: for an unknown verb or option, and all that a run's input can be wrong in.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(
            HELP.format(verbs="\n".join(f"  {verb:<12}{text}" for verb, text in VERBS.items())),
            end="",
        )
        return 0
    from taskvec.registry import did_you_mean
    from taskvec.runner import compose, sweep

    compose.register_all()
    if any(argument.split("=")[0] in HYDRA_FLAGS for argument in arguments):
        return sweep.hydra(arguments)
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    unknown = [flag for flag in flags if flag not in ("-m", "--multirun")]
    if unknown:
        raise UserError(
            f"unknown option {unknown[0]!r}{did_you_mean(unknown[0], ['--multirun', '--include', '--help'])}"
        )
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"unknown verb {word!r}{did_you_mean(word, list(VERBS))}, or an override that lacks '='"
            )
    return sweep.many(overrides) if flags else sweep.one(overrides)
