"""``taskvec prefetch``: bring what a command reads from the hub into its cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from taskvec.cli.options import Parser, write
from taskvec.text import printable

EXAMPLES = """\
  taskvec prefetch backbone=clip_vit_b32 suite=glue8      weights and data of a command
  taskvec prefetch task_arithmetic/addition               of an experiment, all parts of it
  taskvec prefetch -m backbone=t5_small,t5_base --list    what would be fetched, and how large it is

Planning reads the cards that are written here, so that `run`, `status` and `--dry-run` need no network. A branch of
the hub means the commit that it had then; the same command again brings it up to date."""


def main(arguments: list[str]) -> int:
    """Fetch weights, tokenizers and data, and write the cards that planning reads.

    Raises:
        UserError: for a config that is wrong, and if something is missing and the hub cannot be reached.
    """
    from taskvec.data.remote import reachable
    from taskvec.errors import UserError
    from taskvec.runner import compose
    from taskvec.runner.remotes import remotes, total

    parser = Parser(
        "prefetch", "Fetch what a command reads from the hub, and say how large it is.", EXAMPLES
    )
    parser.add_argument("words", nargs="*", metavar="EXPERIMENT|KEY=VALUE")
    parser.add_argument("-m", "--multirun", action="store_true", help="of every job of a sweep")
    parser.add_argument("--list", action="store_true", help="say what is wanted; fetch nothing")
    options = parser.read(arguments)
    compose.register_all()
    found = {}
    for job in _jobs(options.words, multirun=options.multirun):
        config = compose.resolve(compose.compose(job))
        for remote in remotes(config):
            found.setdefault(remote.title, remote)
    wanted = list(found.values())
    missing = [remote for remote in wanted if not remote.here()]
    if missing and not options.list and not reachable():
        named = ", ".join(map(str, missing))
        raise UserError(f"the hub cannot be reached; missing here: {named}")
    for remote in wanted:
        state = "missing" if remote in missing else "here"
        if not options.list and reachable():
            remote.fetch()
            state = "fetched"
        write(printable(f"{state:<12}{remote}"))
    size = f", {total(missing)}" if missing else ""
    print(f"{len(wanted)} of the hub, {len(missing)} were missing{size}", file=sys.stderr)
    return 0


def _jobs(words: Sequence[str], *, multirun: bool) -> list[list[str]]:
    """Return the overrides of each job; a word without ``=`` names an experiment."""
    from taskvec.runner.expand import expand, unions

    overrides = [word if "=" in word else f"experiment={word}" for word in words]
    several = multirun or any(word.startswith("experiment=") for word in overrides)
    if not several:
        return [overrides]
    return [job for sweep in unions(overrides) for job in expand(sweep)]
