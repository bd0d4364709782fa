"""``taskvec figure``: what a run measured, as a picture, or how runs move with a setting."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.cli.options import Parser, write

if TYPE_CHECKING:
    from taskvec.report.paper import Paper

EXAMPLES = """\
  taskvec figure outputs/runs/RUN              writes figure.svg into the run's folder
  taskvec figure outputs/runs/RUN -o map.png   svg, pdf or png, by the file's name
  taskvec figure RUN --only mnist+emoji        one map, matrix or curve; RUN may be the beginning of a run's name
  taskvec figure RUN --only "fit of pave on mnist/ranks"       a picture out of a stage's report
  taskvec figure --over transform.theseus.examples --metrics gain --where row=transported -o gain.svg
                                               the mean over seeds of any runs, along a setting
  taskvec figure --of bars -o bars.pdf --width column --serif  compares all runs, in the size of a paper's column
  taskvec figure --of radar --where row=merged backbone=mini_clip_s -o radar.pdf --width 5.5"""
KINDS = ("bars", "radar", "curves", "tasks", "seconds", "memory")


def main(arguments: list[str]) -> int:
    """Draw what a run measured, or with ``--over`` a metric of any runs along a setting."""
    parser = Parser(
        "figure",
        "Draw a run's maps, matrices, coefficient curves and stages' reports, or runs along a setting.",
        EXAMPLES,
    )
    parser.add_argument(
        "places",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="a run's folder, its name or what begins it, or its result.json; with --over any outputs and runs",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: figure.svg in the run's folder"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these maps, matrices, curves and pictures only"
    )
    parser.add_argument("--over", metavar="KEY", help="the number on the x axis")
    parser.add_argument(
        "--lines", nargs="+", default=["row"], metavar="KEY", help="a line each; default: row"
    )
    parser.add_argument(
        "--of", choices=KINDS, help="compare any runs, those that differ in their seeds as one"
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="default: accuracy")
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="only these records"
    )
    parser.add_argument(
        "--width", metavar="WIDTH", help="for a paper: column, text, or a number of inches"
    )
    parser.add_argument("--serif", action="store_true", help="with --width: letters like LaTeX's")
    parser.stale()
    parser.outputs()
    options = parser.read(arguments)
    if options.of:
        target = _compared(parser, options)
    else:
        target = _over_runs(parser, options) if options.over else _of_one_run(parser, options)
    write(str(target))
    return 0


def _of_one_run(parser: Parser, options: Namespace) -> Path:
    from taskvec.report.figures import chosen_of, paint
    from taskvec.report.runs import RESULT, find_results
    from taskvec.runner.folder import looked_up

    if len(options.places) != 1:
        parser.error("give one RUN, or --of or --over KEY for several")
    place = looked_up(options.places[0], options.outputs)
    if place.is_dir() and not (place / RESULT).is_file():
        parser.error(f"{place} holds no result.json; give one finished run")
    (run,) = find_results([place])
    target = options.output or run.folder / "figure.svg"
    paint(chosen_of(run.result, options.only), run.result.run_id, target, _paper(options))
    return target


def _over_runs(parser: Parser, options: Namespace) -> Path:
    from taskvec.report.figures import paint
    from taskvec.report.runs import find_results
    from taskvec.report.trend import trends
    from taskvec.runner.survey import standing

    if options.output is None:
        parser.error("--over wants -o FILE")
    where = parser.conditions(options.where)
    runs = find_results(options.places or [options.outputs], standing(), stale=options.stale)
    pictures = trends(runs, options.over, options.lines, options.metrics, where)
    paint(pictures, "", options.output, _paper(options))
    return options.output


def _compared(parser: Parser, options: Namespace) -> Path:
    from taskvec.report.figures import paint
    from taskvec.report.leaderboard import leaderboard
    from taskvec.report.runs import find_results
    from taskvec.report.summary import picture
    from taskvec.runner.survey import standing

    where = parser.conditions(options.where)
    runs = find_results(options.places or [options.outputs], standing(), stale=options.stale)
    lines = leaderboard(runs, where)
    names = options.metrics or ["accuracy"]
    pictures = [picture(lines, options.of, name) for name in names]
    target = options.output or Path(f"{options.of}.svg")
    paint(pictures, "", target, _paper(options))
    return target


def _paper(options: Namespace) -> Paper | None:
    from taskvec.report.paper import Paper

    return Paper.of(options.width, serif=options.serif) if options.width else None
