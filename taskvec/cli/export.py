"""``taskvec export``: a run's model for other libraries."""

from __future__ import annotations

from pathlib import Path

from taskvec.cli.options import Parser, write
from taskvec.text import printable

EXAMPLES = """\
  taskvec export outputs/runs/my_run --out merged       the row "merged", for open_clip or transformers
  taskvec export outputs/runs/my_run --out m --row individual"""


def main(arguments: list[str]) -> int:
    """Write the model of a row of a run's result as a folder with tokenizer, description and model card.

    Raises:
        UserError: if there is no such run or row, or its model is none that a folder can hold.
    """
    parser = Parser(
        "export", "Write a run's model as a folder for open_clip or transformers.", EXAMPLES
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--row", default="merged", help="the row of the result (default: merged)")
    parser.add_argument("--task", help="of a merge that makes a model for each task")
    options = parser.read(arguments)
    from taskvec.exchange.exporting import export
    from taskvec.runner import compose

    compose.register_all()
    write(printable(str(export(options.run, options.out, options.row, options.task))))
    return 0
