"""``taskvec [run] key=value ...``: one run; with ``-m`` a sweep."""

from __future__ import annotations

from taskvec import __version__
from taskvec.cli import VERBS
from taskvec.cli.options import write
from taskvec.errors import UserError

HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")
FLAGS = ("-m", "--multirun")

HELP = """\
taskvec: task arithmetic and model merging, composable, exact, resumable.

  taskvec method=task_arithmetic suite=mini8             one run on the embedded suite, on any laptop
  taskvec protocol=negation finetune.lr=3e-4 seed=1      any key of `taskvec show` can be set
  taskvec -m seed=0,1,2 backbone=mini_clip_s             a sweep; finished runs are skipped
  taskvec -m seed=0,1,2,3 sweep.jobs=4 'sweep.devices=[0,1,2,3]'
                                                         four jobs at once, one GPU each
  taskvec experiment=demo -m                             an experiment file
  taskvec --include my_folder merge=mine                 your own configs (*.yaml) and components (*.py)
  taskvec help merge=ties                                what a component is, and its keys

verbs:
{verbs}

`taskvec VERB --help` explains a verb, `taskvec docs` lists the pages of the documentation. Exit status: 0 well, 1 a run
failed, 2 input that cannot be worked with.
"""


def main(arguments: list[str]) -> int:
    """Compose, validate and run; the exit status says how it went.

    Raises:
        UserError: for an unknown verb or option, and all that a run's input can be wrong in.
    """
    if "--version" in arguments:
        write(f"taskvec {__version__}")
        return 0
    asked = [word for word in arguments if word not in ("-h", "--help")]
    if len(asked) < len(arguments) or not arguments:
        return _help(asked)
    from taskvec.runner import compose, sweep

    compose.register_all()
    if any(argument.split("=")[0] in HYDRA_FLAGS for argument in arguments):
        compose.compose([word for word in arguments if "=" in word and not word.startswith("-")])
        return sweep.hydra(arguments)
    flags = [word for word in arguments if word.startswith("-")]
    overrides = [word for word in arguments if not word.startswith("-")]
    _check(flags, overrides)
    return sweep.many(overrides) if flags else sweep.one(overrides)


def _help(asked: list[str]) -> int:
    """Print what the command takes, or explain the components that the line names."""
    if asked:
        from taskvec.cli import help as explaining

        return explaining.main([word for word in asked if word not in FLAGS])
    verbs = [f"  {verb:<12}{text}" for verb, text in VERBS.items()]
    write(HELP.format(verbs="\n".join(verbs)).rstrip("\n"))
    return 0


def _check(flags: list[str], overrides: list[str]) -> None:
    """Check that all words of a line are options or overrides.

    Raises:
        UserError: naming the nearest option or verb.
    """
    from taskvec.registry import did_you_mean

    for flag in flags:
        if flag not in FLAGS:
            hint = did_you_mean(flag, ["--multirun", "--include", "--help", "--version"])
            raise UserError(f"unknown option {flag!r}{hint}")
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            hint = did_you_mean(word, list(VERBS))
            raise UserError(f"unknown verb {word!r}{hint}, or an override that lacks '='")
