"""``taskvec report``: results of any runs as one page that needs no network."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from taskvec.cli.options import Parser, write

EXAMPLES = """\
  taskvec report                                  all runs below outputs/ as report.html
  taskvec report -o ties.html --where merge=ties  some rows only
  taskvec report outputs/runs/RUN other/outputs   some runs only
  taskvec report --serve                          on http://127.0.0.1:8765/, follows a sweep while it runs"""
PORT = 8765


def main(arguments: list[str]) -> int:
    """Write the page, or serve it on this machine until it is interrupted."""
    from taskvec.report.page.content import content
    from taskvec.report.page.render import page
    from taskvec.report.runs import find_results
    from taskvec.runner.folder import write_atomically
    from taskvec.runner.survey import standing

    parser = options_parser()
    options = parser.read(arguments)
    places = options.places or [options.outputs]
    where = parser.conditions(options.where)
    title = options.title or f"taskvec: {', '.join(place.name for place in places)}"
    if options.serve:
        return serve(parser, places, where, title, options.port)
    judge = standing() if options.check else None
    runs = find_results(places, judge, stale=True)
    note = "Checked against code and data." if options.check else "As recorded."
    text = page(content(runs, where), title, note)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, text)
    write(str(options.output))
    return 0


def options_parser() -> Parser:
    """Return the parser of the verb's options."""
    parser = Parser("report", "Write one self-contained page of results.", EXAMPLES)
    parser.add_argument(
        "places", nargs="*", type=Path, metavar="PLACE", help="outputs, runs, result.json files"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="default: report.html",
    )
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="only these rows"
    )
    parser.add_argument("--title", help="default: the places")
    parser.add_argument(
        "--check",
        action="store_true",
        help="mark runs whose code or data changed since, as `taskvec status` does (0.1 s a run)",
    )
    parser.add_argument("--serve", action="store_true", help="show it on 127.0.0.1, read-only")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"default: {PORT}; 0 takes one that is free"
    )
    parser.outputs()
    return parser


def serve(
    parser: argparse.ArgumentParser,
    places: list[Path],
    where: dict[str, str],
    title: str,
    port: int,
) -> int:
    """Show the page on this machine until it is interrupted."""
    from taskvec.report.page.follow import Follower
    from taskvec.report.page.render import environment, plotly
    from taskvec.report.page.serve import server

    for place in places:
        if place.exists() and not place.is_dir():
            parser.error(f"--serve follows outputs folders; {place} is a file")
    environment(), plotly()  # before anybody asks
    site = server(Follower(places, where), title, port)
    host, bound = site.server_address[:2]
    write(f"http://{host}:{bound}/ (Ctrl-C ends)")
    with site, contextlib.suppress(KeyboardInterrupt):
        site.serve_forever()
    return 0
