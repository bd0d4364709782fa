"""What the verbs' command lines share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from taskvec.errors import UserError
from taskvec.text import printable_lines

LISTING = "--list-options"  # for the shell's completion


class _ListOptions(argparse.Action):
    """Prints each option of a verb with the words that it takes, then those of its arguments, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for action in parser._actions:
            if action.help != argparse.SUPPRESS:
                print(" ".join([*action.option_strings, *(action.choices or ())]))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def __init__(self, verb: str, description: str, examples: str):
        super().__init__(
            prog=f"taskvec {verb}",
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(LISTING, action=_ListOptions, nargs=0, help=argparse.SUPPRESS)

    def error(self, message: str) -> None:
        """Turn argparse's complaint into the command's own kind of error.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.prog.removeprefix('taskvec ')}: {message}; see `{self.prog} --help`"
        )

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """Parse arguments; options may stand before, between and after the other words."""
        return self.parse_intermixed_args(arguments)

    def conditions(self, words: list[str]) -> dict[str, str]:
        """Return the pairs that an option took, each of the form key=value."""
        for word in words:
            if "=" not in word:
                self.error(f"{word!r} is not of the form key=value")
        return dict(word.split("=", 1) for word in words)

    def outputs(self) -> None:
        """Add the option for the outputs folder."""
        self.add_argument(
            "--outputs",
            type=Path,
            default=Path("outputs"),
            help="the outputs folder (default: outputs)",
        )

    def stale(self) -> None:
        """Add the option for runs whose inputs have changed."""
        self.add_argument(
            "--stale", action="store_true", help="show runs too whose inputs have changed since"
        )


def write(text: str) -> None:
    """Print text to standard output, control characters spelt out."""
    sys.stdout.write(printable_lines(text) + "\n")
