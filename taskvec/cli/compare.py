"""``taskvec compare``: the difference between two rows, with its interval."""

from __future__ import annotations

from pathlib import Path

from taskvec.cli.options import Parser, write

EXAMPLES = """\
  taskvec compare merged zero_shot --by backbone finetune
  taskvec compare merged@finetune=kfac merged@finetune=tangent --where suite=mini8 --by backbone
  taskvec compare negated zero_shot other/outputs --metrics accuracy perplexity"""


def main(arguments: list[str]) -> int:
    """Print the paired difference of each metric with a 95 % bootstrap interval over test items and seeds."""
    from taskvec.report.render import STYLES

    parser = Parser("compare", "Compare two rows, paired by seed and test item.", EXAMPLES)
    parser.add_argument("first", metavar="ROW[@KEY=VALUE...]")
    parser.add_argument("second", metavar="ROW[@KEY=VALUE...]")
    parser.add_argument(
        "places", nargs="*", type=Path, metavar="PLACE", help="outputs, runs (default: outputs)"
    )
    parser.add_argument(
        "--by", nargs="+", default=[], metavar="KEY", help="one line for each value of these keys"
    )
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="only these runs"
    )
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="default: those measured on the test split"
    )
    parser.add_argument("--format", choices=list(STYLES), default="md")
    parser.stale()
    parser.outputs()
    options = parser.read(arguments)
    where = parser.conditions(options.where)
    from taskvec.report.compare import compare
    from taskvec.report.runs import find_results
    from taskvec.runner.survey import standing

    runs = find_results(options.places or [options.outputs], standing(), stale=options.stale)
    write(
        compare(
            runs, options.first, options.second, options.by, where, options.metrics, options.format
        )
    )
    return 0
