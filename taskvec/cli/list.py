"""``taskvec list``: what can be chosen."""

from __future__ import annotations

from itertools import takewhile

from tabulate import tabulate

from taskvec import registry
from taskvec.cli.options import Parser, write
from taskvec.runner import configs

GROUPS = ("method", *registry.PACKAGES, "experiment", "task")
EXAMPLES = """\
  taskvec list                  everything
  taskvec list merge backbone   two groups"""


def main(arguments: list[str]) -> int:
    """Print the options of each group: methods with stage and paper, components, presets, suites, experiments."""
    parser = Parser("list", "List what can be chosen in each group.", EXAMPLES)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    groups = parser.read(arguments).groups
    for group in groups:
        if group not in GROUPS:
            parser.error(f"unknown group {group!r}{registry.did_you_mean(group, list(GROUPS))}")
    configs.register_all()
    for group in groups or GROUPS:
        lines = [_line(group, option) for option in configs.options(group)]
        if lines:
            write(f"{group}\n{tabulate(lines, tablefmt='plain')}\n")
    return 0


def _line(group: str, option: str) -> list[str]:
    entry = next((e for e in registry.entries(group) if e.name == option), None)
    if group == "method":
        stages = [
            e for stage in registry.STAGES for e in registry.entries(stage) if e.name == option
        ]
        entry = stages[0] if stages else None
    about = next(iter(comments(group, option)), "")
    if entry and not about:
        about = entry.schema.__doc__.splitlines()[0]
    stage = entry.group if entry and group == "method" else ""
    return [
        f"  {option}",
        *([stage] if group == "method" else []),
        about,
        entry.paper if entry else "",
    ]


def comments(group: str, option: str) -> list[str]:
    """Return the comment lines that an option's YAML file begins with, which say what it is; none without a file."""
    for folder in configs.search_dirs():
        path = folder / group / f"{option}.yaml"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            head = takewhile(lambda line: line.startswith("#"), lines)
            return [line[1:].strip() for line in head if "@package" not in line]
    return []
