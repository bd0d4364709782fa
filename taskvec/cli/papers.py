"""``taskvec papers``: the published tables that ship as experiments, and what each needs."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from taskvec.cli.options import Parser, write
from taskvec.text import printable

if TYPE_CHECKING:
    from taskvec.papers.listing import Outlay

EXAMPLES = """\
  taskvec papers                              every table: its command, what it needs, what is done
  taskvec papers tak/addition                 one table in full: every weight file and data set
  taskvec -m experiment=papers/tak/addition   run a table; `table --against` is printed at its end
  taskvec -m experiment=papers/tak/addition scale=mini    the same rows and columns on a laptop"""


def main(arguments: list[str]) -> int:
    """List published tables: command, data and weights with their size, what is here, runs done, estimated cost.

    Raises:
        UserError: if there is no table of a name.
    """
    parser = Parser("papers", "List the published tables that are one command each.", EXAMPLES)
    parser.add_argument("tables", nargs="*", metavar="PAPER/TABLE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.outputs()
    options = parser.read(arguments)
    from taskvec.papers import tables
    from taskvec.papers.listing import outlays
    from taskvec.runner import compose

    compose.register_all()
    names = [name.removeprefix(tables.FOLDER) for name in options.tables]
    published = {name: tables.published_of(name) for name in names}
    found = outlays(names or tables.names(), options.outputs)
    if options.json:
        write(json.dumps([_record(outlay) for outlay in found]))
    elif names:
        for outlay in found:
            _in_full(outlay, published[outlay.name].title, published[outlay.name].source)
    else:
        _list(list(found), options)
    return 0


def _list(found: list[Outlay], options: Namespace) -> None:
    from tabulate import tabulate

    from taskvec.runner.remotes import total

    lines = []
    for outlay in found:
        missing = outlay.missing
        here = f"{len(outlay.wanted) - len(missing)} of {len(outlay.wanted)}"
        needs = total(list(outlay.wanted.values()))
        if outlay.by_hand:
            needs += f", {len(outlay.by_hand)} by hand"
        done = f"{outlay.done} of {outlay.jobs}"
        lines.append([f"papers/{outlay.name}", needs, here, done, _time(outlay.seconds)])
    heads = ["experiment", "weights and data", "here", "runs done", "estimate"]
    write(tabulate(lines, headers=heads, disable_numparse=True))
    write(
        "\n`taskvec -m experiment=papers/PAPER/TABLE` runs one, with scale=mini on the embedded suites;"
    )
    write(
        "`taskvec prefetch papers/PAPER/TABLE` fetches what it needs; `taskvec papers PAPER/TABLE` names it"
    )


def _in_full(outlay: Outlay, title: str, source: str) -> None:
    command = f"experiment=papers/{outlay.name}"
    write(printable(f"{outlay.name}: {title}"))
    write(printable(f"source    {source}"))
    write(f"run       taskvec -m {command}")
    write(f"mini      taskvec -m {command} scale=mini")
    write(f"table     taskvec table --against {outlay.name}")
    write(f"fetch     taskvec prefetch papers/{outlay.name}")
    write(f"runs      {outlay.done} of {outlay.jobs} done, {_time(outlay.seconds)}")
    for remote in outlay.wanted.values():
        state = "here" if remote.here() else "missing"
        write(printable(f"{state:<10}{remote}"))
    for task in outlay.by_hand:
        write(printable(f"by hand   {task}: its card says from what; suite.data_dir=FOLDER"))


def _record(outlay: Outlay) -> dict[str, Any]:
    """Return what is said of a table as JSON values."""
    wanted = [
        {"title": remote.title, "bytes": remote.size(), "here": remote.here()}
        for remote in outlay.wanted.values()
    ]
    return {
        "table": outlay.name,
        "command": f"taskvec -m experiment=papers/{outlay.name}",
        "wanted": wanted,
        "by_hand": outlay.by_hand,
        "jobs": outlay.jobs,
        "done": outlay.done,
        "seconds": outlay.seconds,
    }


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "no runs like it yet"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours} h {minutes} min" if hours else f"about {max(minutes, 1)} min"
