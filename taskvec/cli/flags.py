"""The options of a run: this command's own, and Hydra's, alone and together."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from taskvec.cli.options import Parser
from taskvec.errors import UserError
from taskvec.registry import did_you_mean

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
KNOWN = (
    "--multirun", "--dry-run", "--include", "--config-dir", "--cfg", "--resolve", "--package", "--info", "--run",
    "--hydra-help", "--version", "--help",
)  # fmt: skip
# What Hydra's users may look for, and what says it here
REPLACED = {
    "config_name": ("--config-name", "experiment=NAME chooses a file of settings"),
    "config_path": ("--config-path", "--include FOLDER adds a folder of configs"),
    "experimental_rerun": (
        "--experimental-rerun",
        "the command in a run's status.json, or `taskvec retry`",
    ),
}

Show = Literal["version", "hydra help", "completion", "info", "config"]


@dataclass(frozen=True)
class Flags:
    """A run's options and overrides; ``show`` asks for something to be printed and nothing run.

    ``hydra`` are the words that Hydra takes for it.
    """

    overrides: tuple[str, ...]
    multirun: bool = False
    dry_run: bool = False
    show: Show | None = None
    hydra: tuple[str, ...] = ()


def read(arguments: Sequence[str]) -> Flags:
    """Sort a command line into options and overrides.

    Raises:
        UserError: for an unknown option, one that lacks its value, and options that contradict each other.
    """
    # argparse would take its own view of a help with a value
    unknown = [word for word in arguments if word.partition("=")[0] in ("-h", "--help")]
    found, rest = Namespace(), []
    if not unknown:
        found, rest = _parser().parse_known_args(_with_values(arguments))
        unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        hint = did_you_mean(unknown[0], list(KNOWN))
        raise UserError(f"unknown option {unknown[0]!r}{hint}")
    for key, (option, remedy) in REPLACED.items():
        if getattr(found, key) is not None:
            raise UserError(f"{option}: {remedy}")
    if found.shell_completion and not any(word.startswith("query=") for word in rest):
        raise UserError("--shell-completion: `taskvec completion bash` prints the shell's script")
    _consistent(found)
    show, words = _shown(found)
    return Flags(tuple(rest), found.multirun, found.dry_run, show, words)


def _parser() -> Parser:
    parser = Parser("run", "Run an experiment or a sweep.", "  taskvec -m seed=0,1")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-r", "--run", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("-i", "--info", choices=INFO)
    parser.add_argument("-p", "--package")
    parser.add_argument("-sc", "--shell-completion", action="store_true")
    for short, key in (
        ("-cn", "config_name"),
        ("-cp", "config_path"),
        (None, "experimental_rerun"),
    ):
        names = [name for name in (short, REPLACED[key][0]) if name]
        parser.add_argument(*names, dest=key, nargs="?", const="", help=SUPPRESS)
    return parser


def _with_values(arguments: Sequence[str]) -> list[str]:
    """Return the words with the value of ``--info`` written out, which Hydra lets one leave out."""
    words = list(arguments)
    for place, word in enumerate(arguments):
        following = arguments[place + 1 : place + 2]
        if word in ("--info", "-i") and (not following or following[0] not in INFO):
            words[place] = "--info=all"
    return words


def _consistent(found: Namespace) -> None:
    """Check that options go together.

    Raises:
        UserError: naming two that do not.
    """
    if found.run and found.multirun:
        raise UserError("--run and --multirun: one run or a sweep; give one of them")
    asked = {"--cfg": found.cfg, "--info": found.info, "--dry-run": found.dry_run}
    given = [option for option, value in asked.items() if value]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]}: give one of them")
    if found.info and found.multirun:
        raise UserError("--info explains one composition; leave --multirun out")
    for option, value in (("--resolve", found.resolve), ("--package", found.package)):
        if value and not found.cfg:
            raise UserError(f"{option} says how --cfg prints; add --cfg job")


def _shown(found: Namespace) -> tuple[Show | None, tuple[str, ...]]:
    """Return what is to be printed in place of a run, and Hydra's words for it."""
    if found.version:
        return "version", ()
    if found.hydra_help:
        return "hydra help", ("--hydra-help",)
    if found.shell_completion:
        return "completion", ("--shell-completion",)
    if found.info:
        return "info", ("--info", found.info)
    if found.cfg:
        words = ["--cfg", found.cfg]
        if found.resolve:
            words.append("--resolve")
        if found.package:
            words += ["--package", found.package]
        return "config", tuple(words)
    return None, ()
