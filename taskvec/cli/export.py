"""``taskvec export``: a run's model for other libraries."""

from __future__ import annotations

from pathlib import Path

from taskvec.cli.options import Parser, write
from taskvec.text import printable

EXAMPLES = """\
  taskvec export outputs/runs/my_run --out merged       the row "merged", for open_clip or transformers
  taskvec export ties-mini_clip_s --out ties            a run by the beginning of its name
  taskvec export outputs/runs/my_run --out m --row individual"""


def main(arguments: list[str]) -> int:
    """Write the model of a row of a run's result as a folder with tokenizer, description and model card.

    Raises:
        UserError: if there is no such run or row, or its model is none that a folder can hold.
    """
    parser = Parser(
        "export", "Write a run's model as a folder for open_clip or transformers.", EXAMPLES
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a finished run: its folder, its name or what begins it",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--row", default="merged", help="the row of the result (default: merged)")
    parser.add_argument("--task", help="of a merge that makes a model for each task")
    parser.outputs()
    options = parser.read(arguments)
    from taskvec.exchange.exporting import export
    from taskvec.runner import compose
    from taskvec.runner.folder import looked_up

    compose.register_all()
    run = looked_up(options.run, options.outputs)
    write(printable(str(export(run, options.out, options.row, options.task))))
    return 0
