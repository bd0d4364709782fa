"""``taskvec figure``: what a run measured, as a picture."""

from __future__ import annotations

from pathlib import Path

from taskvec.cli.options import Parser, write

EXAMPLES = """\
  taskvec figure outputs/runs/RUN              writes figure.svg into the run's folder
  taskvec figure outputs/runs/RUN -o map.png   svg, pdf or png, by the file's name
  taskvec figure RUN --only mnist+emoji        one map, matrix or curve; the name is looked up in outputs/runs
  taskvec figure RUN --only pave/spectrum      a picture out of a stage's report"""


def main(arguments: list[str]) -> int:
    """Draw what a run measured over coefficients or pairs of tasks, and the pictures in its stages' reports."""
    from taskvec.report.figures import draw
    from taskvec.report.runs import RESULT, find_results

    parser = Parser(
        "figure", "Draw a run's maps, matrices, coefficient curves and stages' reports.", EXAMPLES
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run's name or folder, or its result.json"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: figure.svg in the run's folder"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these maps, matrices, curves and pictures only"
    )
    parser.outputs()
    options = parser.read(arguments)
    named = options.outputs / "runs" / options.run
    place = named if not options.run.exists() and named.is_dir() else options.run
    if place.is_dir() and not (place / RESULT).is_file():
        parser.error(f"{place} holds no result.json; give one finished run")
    (run,) = find_results([place])
    target = options.output or run.folder / "figure.svg"
    draw(run.result, target, options.only)
    write(str(target))
    return 0
