"""``taskvec [run] key=value ...``: one run; with ``-m`` a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskvec.cli import VERBS
from taskvec.cli.options import write
from taskvec.errors import UserError

if TYPE_CHECKING:
    from taskvec.cli.flags import Flags

HELP = """\
taskvec: task arithmetic and model merging, composable, exact, resumable.

  taskvec method=task_arithmetic suite=mini8             one run on the embedded suite, on any laptop
  taskvec protocol=negation finetune.lr=3e-4 seed=1      any key of `taskvec show` can be set
  taskvec -m seed=0,1,2 backbone=mini_clip_s             a sweep; finished runs are skipped
  taskvec -m seed=0,1,2,3 sweep.jobs=4 'sweep.devices=[0,1,2,3]'
                                                         four jobs at once, one GPU each
  taskvec experiment=demo -m                             an experiment file
  taskvec -m seed=0,1 merge=ties,dare --dry-run          what it would compute and fetch; nothing is written
  taskvec merge=ties --cfg job                           Hydra's --cfg, --resolve, --package, --info, --config-dir
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
    asked = [word for word in arguments if word not in ("-h", "--help")]
    if len(asked) < len(arguments) or not arguments:
        return _help(asked)
    from taskvec.cli import flags
    from taskvec.runner import compose, sweep

    given = flags.read(arguments)
    if given.show == "version":
        from taskvec import __version__

        print(f"taskvec {__version__}")
        return 0
    compose.register_all()
    words = list(given.overrides)
    if given.show == "completion":
        return sweep.hydra([*given.hydra, *words])  # half a line, which no check fits
    _check_words(words)
    if given.show:
        return _shown(given)
    if given.dry_run:
        from taskvec.runner import dry

        return dry.run(words, multirun=given.multirun)
    if not given.multirun:
        return sweep.one(words)
    from taskvec.papers import tables

    status = sweep.many(words)
    return max(status, tables.beside(words))


def _help(asked: list[str]) -> int:
    """Print what the command takes, or explain the components that the line names."""
    if asked:
        from taskvec.cli import help as explaining

        return explaining.main([word for word in asked if not word.startswith("-")])
    verbs = [f"  {verb:<12}{text}" for verb, text in VERBS.items()]
    write(HELP.format(verbs="\n".join(verbs)).rstrip("\n"))
    return 0


def _check_words(overrides: list[str]) -> None:
    """Check that every word is an override.

    Raises:
        UserError: for one that is none, taken for a misspelt verb.
    """
    from taskvec.registry import did_you_mean

    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"unknown verb {word!r}{did_you_mean(word, list(VERBS))}, or an override that lacks '='"
            )


def _shown(given: Flags) -> int:
    """Let Hydra print what was asked for: its help, or the config of a run or of each job of a sweep."""
    from taskvec.runner import compose, expand, sweep

    if given.show == "hydra help":
        return sweep.hydra(given.hydra)
    jobs = [list(given.overrides)]
    if given.multirun:
        jobs = [job for words in expand.unions(jobs[0]) for job in expand.expand(words)]
    for number, words in enumerate(jobs):
        # an unknown key is told as everywhere, not as Hydra tells it
        compose.compose(words)
        if given.multirun:
            title = " ".join(words)
            print(f"# job {number}: {title}", flush=True)
        status = sweep.hydra([*given.hydra, *map(compose.grouped, words)])
        if status:
            return 2  # Hydra has said that there is no such package
    return 0
