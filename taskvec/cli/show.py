"""``taskvec show``: the resolved config of a command."""

from __future__ import annotations

import yaml

from taskvec.cli.options import Parser, write
from taskvec.runner import compose

EXAMPLES = """\
  taskvec show method=task_arithmetic finetune.lr=3e-4
  taskvec show experiment=demo"""


def main(arguments: list[str]) -> int:
    """Compose, validate and print a config as YAML, without running it."""
    parser = Parser("show", "Print the resolved config of a command, without running it.", EXAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    overrides = parser.read(arguments).overrides
    compose.register_all()
    config = compose.resolve(compose.compose(overrides))
    text = yaml.safe_dump(config.recorded(), sort_keys=False, allow_unicode=True)
    write(text.rstrip("\n"))
    return 0
