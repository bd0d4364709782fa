"""How much is packed into a line: syntax nodes per line of code, by package. `python tests/density.py` prints it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path


def density(places: Iterable[Path]) -> float:
    """Return syntax nodes per code line over the files and folders."""
    counts = [measure(path) for place in places for path in files(place)]
    lines = sum(count for _, count in counts)
    return sum(nodes for nodes, _ in counts) / max(1, lines)


def files(place: Path) -> list[Path]:
    """Return a file, or all Python files of a folder."""
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def measure(path: Path) -> tuple[int, int]:
    """Return a file's syntax nodes and code lines; docstrings, comments and blank lines are not counted."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    docstrings = [found for node in ast.walk(tree) if (found := docstring(node))]
    left_out = {id(part) for doc in docstrings for part in ast.walk(doc)}
    nodes = sum(id(node) not in left_out for node in ast.walk(tree))
    documented = {line for doc in docstrings for line in range(doc.lineno, doc.end_lineno + 1)}
    lines = 0
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip()
        lines += bool(words) and not words.startswith("#") and number not in documented
    return nodes, lines


def docstring(node: ast.AST) -> ast.Expr | None:
    """Return the statement that is a node's docstring."""
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return first
    return None


def table(package: Path) -> str:
    """Return the density of each sub-package and of the whole, one line each."""
    folders = [path for path in sorted(package.iterdir()) if path.is_dir() and files(path)]
    lines = [f"{density([folder]):6.2f}  {folder.name}" for folder in folders]
    return "\n".join([*lines, f"{density([package]):6.2f}  all"])


if __name__ == "__main__":
    print(table(Path(__file__).resolve().parent.parent / "taskvec"))
