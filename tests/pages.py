"""Pages of the documentation as scripts: the files that they show and the commands that they give, in order."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
# The ten jobs of a first day, in order
JOBS = (
    "images",
    "texts",
    "backbone",
    "exchange",
    "sweeps",
    "cluster",
    "wandb",
    "tables",
    "notebook",
    "method",
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FILES = ("python", "yaml", "csv", "json")


def page(topic: str) -> Path:
    """The file of a topic."""
    return DOCS / f"{topic}.md"


def steps(topic: str, folder: Path) -> list[str]:
    """Write a page's files below a folder, and return its commands: the lines of its `sh` blocks."""
    commands = []
    for language, text in BLOCK.findall(page(topic).read_text(encoding="utf-8")):
        if language == "sh":
            commands += [line for line in text.splitlines() if line and not line.startswith("#")]
        first, _, body = text.partition("\n")
        if language in FILES and first.startswith("# "):
            path = folder / first.removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
    return commands
