"""``taskvec compare``: the difference between two rows, with its interval."""

from __future__ import annotations

from pathlib import Path

from taskvec.cli.options import Parser, write

EXAMPLES = """\
  taskvec compare merged zero_shot --by backbone finetune
  taskvec compare merged@finetune=kfac merged@finetune=tangent --where suite=mini8 --by backbone
  taskvec compare merged merged_alpha_1 other/outputs"""


def main(arguments: list[str]) -> int:
    """Print the paired difference of mean accuracy with a 95 % bootstrap interval over test items and seeds."""
    parser = Parser("compare", "Compare two rows, paired by seed and test item.", EXAMPLES)
    parser.add_argument("first", metavar="ROW[@KEY=VALUE...]")
    parser.add_argument("second", metavar="ROW[@KEY=VALUE...]")
    parser.add_argument("place", nargs="?", type=Path, help="an outputs folder (default: outputs)")
    parser.add_argument("--by", nargs="+", default=[], metavar="KEY", help="one line for each value of these keys")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE", help="only these runs")
    parser.add_argument("--format", choices=["md", "latex", "csv"], default="md")
    parser.outputs()
    options = parser.read(arguments)
    where = parser.conditions(options.where)
    from taskvec.report.compare import compare
    from taskvec.report.records import find_results

    outputs = options.place or options.outputs
    write(compare(find_results([outputs]), outputs, options.first, options.second, options.by, where, options.format))
    return 0
