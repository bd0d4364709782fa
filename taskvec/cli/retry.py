"""``taskvec retry``: run again what failed."""

from __future__ import annotations

import sys

from taskvec.cli.options import Parser, write
from taskvec.text import printable

EXAMPLES = """\
  taskvec retry              every failed or interrupted run below outputs/, resumed where it was
  taskvec retry --stale      and those whose code, data or weights changed"""


def main(arguments: list[str]) -> int:
    """Run failed and interrupted runs again, each with the config it was started with, and sum up."""
    from taskvec.errors import UserError
    from taskvec.runner import compose
    from taskvec.runner.configs import include
    from taskvec.runner.execute import execute
    from taskvec.runner.folder import run_folders
    from taskvec.runner.survey import Survey, config_of, trusted

    parser = Parser("retry", "Run again what failed or was interrupted.", EXAMPLES)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="only these run ids")
    parser.add_argument("--stale", action="store_true", help="run stale runs again too")
    parser.outputs()
    options = parser.read(arguments)
    compose.register_all()
    wanted = {"failed", "interrupted"} | ({"stale", "older"} if options.stale else set())
    folders = {folder.name: folder for folder in run_folders(options.outputs)}
    for name in options.runs:
        if name not in folders:
            parser.error(f"no run {name!r} in {options.outputs}")
    survey = Survey()
    again = [
        folders[name]
        for name in options.runs or folders
        if survey.state(folders[name])[0] in wanted
    ]
    failed = 0
    for folder in again:
        try:
            include(trusted(folder))
            config = config_of(folder).model_copy(update={"outputs": str(options.outputs)})
            outcome = execute(
                config, tuple(folder.status_on_disk().get("overrides", ())), refuse=False
            )
            state, reason = outcome.state, outcome.reason
        except UserError as error:
            state, reason = "failed", str(error)
        failed += state == "failed"
        write(printable(f"{state:<12}{folder.name}  {reason or ''}".rstrip()))
    print(f"{len(again)} run again, {failed} failed", file=sys.stderr)
    return 1 if failed else 0
