"""``taskvec transform``: vectors on disk, purified or carried over."""

from __future__ import annotations

from pathlib import Path

from taskvec.cli.options import Parser, write

EXAMPLES = """\
  taskvec transform pave suite=mini8 --vector mnist=a.safetensors --vector emoji=b.safetensors -o purified
  taskvec transform pave transform.pave.ratio=0.9 backbone=clip_vit_b32 suite=vision8 --vector svhn=tuned/ -o purified
  taskvec transform pave,theseus source=mini_clip_s backbone=mini_clip_m --vector mnist=a.safetensors -o carried

A vector is a task vector's file, or the weights of a fine-tuned model: a folder or a weight file."""


def main(arguments: list[str]) -> int:
    """Apply transforms to vectors on disk; statistics are collected on the tasks' training data."""
    from taskvec.exchange.transforming import carry_out, request_of

    parser = Parser(
        "transform", "Purify vectors on disk, or carry them to another model.", EXAMPLES
    )
    parser.add_argument("transforms", metavar="NAME[,NAME]", help="in order: pave, theseus ...")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="backbone, suite, transform.NAME.KEY ..."
    )
    parser.add_argument(
        "--vector", action="append", required=True, metavar="TASK=PLACE", help="once for each task"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    options = parser.read(arguments)
    places = parser.conditions(options.vector)
    if len(places) < len(options.vector):
        parser.error("--vector names a task twice")
    request = request_of(options.transforms, places, options.overrides, options.output)
    for path in carry_out(request):
        write(str(path))
    return 0
