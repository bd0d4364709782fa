"""Version numbers of the code behind each artefact, and the record of the sources they were decided for.

``stages.json`` holds, per stage, its version, the files whose code determines its results, and a hash of those files
without comments, docstrings and layout. When the hash no longer fits, somebody has to decide: the results change
(``--bump``) or they do not (``--keep``). A test fails until the decision is recorded.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).with_name("stages.json")


@cache
def record() -> dict[str, dict]:
    """Return the record of all stages."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def version(stage: str) -> int:
    """Return the version of a stage's code, the number that enters fingerprints.

    Raises:
        KeyError: if the record does not know the stage.
    """
    return record()[stage]["version"]


def code_hash(files: list[str]) -> str:
    """Return the SHA-256 of what the files do: their syntax trees without docstrings.

    Raises:
        FileNotFoundError: if a pattern matches no file.
    """
    digest = hashlib.sha256()
    for pattern in files:
        paths = sorted(PACKAGE.glob(pattern))
        if not paths:
            raise FileNotFoundError(f"stages.json names {pattern}, which does not exist")
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                    first = body[0].value
                    if isinstance(first, ast.Constant) and isinstance(first.value, str):
                        node.body = body[1:]
            digest.update(f"{path.relative_to(PACKAGE)}\n{ast.dump(tree)}".encode())
    return digest.hexdigest()


def changed() -> list[str]:
    """Return the stages whose sources changed since their version was decided."""
    return [stage for stage, entry in record().items() if code_hash(entry["sources"]) != entry["hash"]]


def main() -> None:
    """Record a decision: ``python -m taskvec.runner.stages --bump STAGE ... --keep STAGE ...``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bump", nargs="*", default=[], metavar="STAGE", help="the results change: next version")
    parser.add_argument("--keep", nargs="*", default=[], metavar="STAGE", help="the results are the same")
    arguments = parser.parse_args()
    entries = record()
    for stage in [*arguments.bump, *arguments.keep]:
        entries[stage]["version"] += stage in arguments.bump
        entries[stage]["hash"] = code_hash(entries[stage]["sources"])
    RECORD.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    record.cache_clear()
    print("undecided:", ", ".join(changed()) or "none")


if __name__ == "__main__":
    main()
