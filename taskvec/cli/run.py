"""``taskvec [run] key=value ...``: one run; with ``-m`` a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskvec.cli import VERBS
from taskvec.errors import UserError

if TYPE_CHECKING:
    from taskvec.cli.flags import Flags


def main(arguments: list[str]) -> int:
    """Compose, validate and run; the exit status says how it went.

    Raises:
        UserError: for an unknown verb or option, and all that a run's input can be wrong in.
    """
    asked = [word for word in arguments if word not in ("-h", "--help")]
    if len(asked) < len(arguments) or not arguments:
        from taskvec.cli import help as explaining

        return explaining.main([word for word in asked if not word.startswith("-")])
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
