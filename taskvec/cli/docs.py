"""``taskvec docs TOPIC``: a page of the documentation."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from taskvec.cli.options import Parser, write
from taskvec.registry import did_you_mean

EXAMPLES = """\
  taskvec docs                  the pages there are
  taskvec docs sweeps           one of them"""


def main(arguments: list[str]) -> int:
    """List the pages, or print one."""
    parser = Parser("docs", "Print a page of the documentation.", EXAMPLES)
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="without one, all are listed")
    topic = parser.read(arguments).topic
    found = pages()
    if topic is None:
        lines = [[f"  {name}", title(path)] for name, path in found.items()]
        write(tabulate(lines, tablefmt="plain"))
        return 0
    if topic not in found:
        parser.error(f"no page {topic!r}{did_you_mean(topic, list(found))}")
    write(found[topic].read_text(encoding="utf-8").rstrip("\n"))
    return 0


def pages() -> dict[str, Path]:
    """Return the pages by topic: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "docs"
    folder = inside if inside.is_dir() else package.parent / "docs"
    return {path.stem: path for path in sorted(folder.glob("*.md"))}


def title(page: Path) -> str:
    """Return a page's heading."""
    with page.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
