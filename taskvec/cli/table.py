"""``taskvec table``: results of any runs as a table."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from taskvec.cli.options import Parser, write

EXAMPLES = """\
  taskvec table                                       all runs: method x row, mean over seeds
  taskvec table --rows row --columns backbone         backbones side by side
  taskvec table --rows row --metrics accuracy/mnist accuracy/emoji --format latex
  taskvec table --where row=merged --columns backbone --metrics accuracy --format latex --best --interval
  taskvec table --where protocol=negation --metrics accuracy control
  taskvec table outputs/runs/RUN other/outputs        some runs only
  taskvec table --against tak/addition                ours beside the published numbers, cell by cell
  taskvec table --against tak/addition seed=0,1,2     the same of three seeds"""


def main(arguments: list[str]) -> int:
    """Print mean and standard deviation over seeds, rows and columns by any config key."""
    from taskvec.report.render import STYLES
    from taskvec.report.runs import find_results
    from taskvec.report.table import table
    from taskvec.runner.survey import standing

    parser = Parser("table", "Print results as a table.", EXAMPLES)
    parser.add_argument(
        "places", nargs="*", type=Path, metavar="PLACE", help="outputs, runs, result.json files"
    )
    parser.add_argument(
        "--rows", nargs="+", default=["method", "row"], metavar="KEY", help="default: method row"
    )
    parser.add_argument(
        "--columns", nargs="+", default=["metric"], metavar="KEY", help="default: metric"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="accuracy, accuracy/TASK, validation, control ...",
    )
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="only these records"
    )
    parser.add_argument(
        "--against",
        metavar="PAPER/TABLE",
        help="beside a published table; KEY=VALUE words change its jobs (`taskvec papers` lists them)",
    )
    parser.add_argument("--format", choices=list(STYLES), default="md")
    parser.add_argument(
        "--best", action="store_true", help="each column's best number bold, the second underlined"
    )
    parser.add_argument(
        "--interval",
        action="store_true",
        help="± half of the 95 %% interval over seeds (Student's t), not the deviation",
    )
    parser.add_argument("--output", type=Path, help="write to a file instead")
    parser.stale()
    parser.outputs()
    options = parser.read(arguments)
    if options.against:
        return beside_published(options)
    where = parser.conditions(options.where)
    runs = find_results(options.places or [options.outputs], standing(), stale=options.stale)
    text = table(
        runs,
        options.rows,
        options.columns,
        options.metrics,
        options.format,
        where,
        best=options.best,
        interval=options.interval,
    )
    tell(text, options.output)
    return 0


def beside_published(options: Namespace) -> int:
    """Print a published table with ours beside it; exit 1 if a table that is a check does not hold.

    Raises:
        UserError: if there is no such table, or no finished run.
    """
    from taskvec.papers import tables
    from taskvec.report.runs import find_results
    from taskvec.runner import compose
    from taskvec.runner.survey import standing

    compose.register_all()
    words = [str(place) for place in options.places if "=" in str(place)]
    places = [place for place in options.places if "=" not in str(place)]
    table = tables.paper_table(options.against, words)
    runs = find_results(places or [options.outputs], standing(), stale=options.stale)
    found = tables.comparison(table, runs)
    plain = options.format == "csv"
    lines = [found.text("csv")] if plain else tables.told(table, found, options.format)
    tell("\n".join(lines), options.output)
    return int(bool(tables.outside(table, found)))


def tell(text: str, output: Path | None) -> None:
    """Print a table, or write it to a file."""
    if output is None:
        write(text)
        return
    from taskvec.runner.folder import write_atomically

    write_atomically(output, f"{text}\n")
