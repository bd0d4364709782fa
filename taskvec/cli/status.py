"""``taskvec status``: how all runs stand."""

from __future__ import annotations

import json

from taskvec.cli.options import Parser, write
from taskvec.text import printable

EXAMPLES = """\
  taskvec status                       every run below outputs/
  taskvec status --outputs DIR --json  for programs"""


def main(arguments: list[str]) -> int:
    """Print each run's state: done, running, failed, interrupted, stale (what it stands on has changed) or older."""
    from taskvec.runner import compose
    from taskvec.runner.folder import run_folders
    from taskvec.runner.survey import Survey

    parser = Parser("status", "Say which runs are done, running, failed or stale.", EXAMPLES)
    parser.outputs()
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.read(arguments)
    compose.register_all()
    survey = Survey()
    states = {folder.name: survey.state(folder) for folder in run_folders(options.outputs)}
    if options.json:
        write(
            json.dumps(
                {
                    name: {"state": state, "reason": reason}
                    for name, (state, reason) in states.items()
                }
            )
        )
        return 0
    for name, (state, reason) in sorted(states.items(), key=lambda item: item[1][0]):
        # A newline would look like another run
        write(printable(f"{state:<12}{name}  {reason or ''}".rstrip()))
    counts = [state for state, _ in states.values()]
    total = ", ".join(f"{counts.count(state)} {state}" for state in sorted(set(counts)))
    write(total or f"no runs in {options.outputs}")
    return 0
