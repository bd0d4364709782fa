"""The full matrix: ``plan`` records which pairs are refused and why, ``run`` runs a set that covers the others.

``plan`` writes ``tests/fixtures/matrix.json`` and ``docs/matrix.md`` (a few minutes of one core); ``run`` runs every
combination of the covering set in one process and one outputs folder, and exits 1 if one fails (ten minutes or more).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from matrix_choices import STAGES, USUAL, Assembly, Combination, Tables  # noqa: E402 (the tests' folder first)

RECORD = HERE.parent / "fixtures" / "matrix.json"
PAGE = HERE.parent.parent / "docs" / "matrix.md"
INTRODUCTION = """# Which combinations run

Made from the registries by `make matrix-plan`; do not edit. A run chooses a fine-tuning method, a forward mode, a list
of transforms, a merge, a protocol and, with its backbone, a family. Two choices go together, in the right company,
unless a table below says why not: such a run exits with 2 and that reason before any work. The reasons are what a run
says, with NAME for the choice and TASK for a task. `X on merged` is `transform=X transform.X.on=merged`. `make matrix`
runs a set of combinations that holds every allowed pair of choices, on suites of two tasks.
"""
Refused = Mapping[tuple[str, str, str, str], str]  # (stage, choice, stage, choice) -> reason


def plan(assembly: Assembly) -> tuple[dict[tuple[str, str, str, str], str], list[list[str]]]:
    """Return the refused pairs with their reasons, and the covering combinations by their choices' names."""
    tables, refused = Tables(assembly), {}
    for first, second in combinations(STAGES, 2):
        for one, other in product(assembly.options[first], assembly.options[second]):
            reason = tables.refused(**{first: one, second: other})
            if reason is not None:
                refused[first, one.name, second, other.name] = generic(
                    reason, (one.name, other.name)
                )
    cells = [[choice.name for choice in combination.choices] for combination in tables.covering()]
    return refused, cells


def generic(reason: str, names: Iterable[str]) -> str:
    """Return a reason without the names of the choices and of the tiny worlds."""
    words = {word for name in names for word in re.split(r"[+()\s]| on merged", name) if word}
    usual = {word for word in USUAL.values() if word not in ("none", "full")}
    for word in sorted(
        (words | usual)
        - {"none", "full", "tangent", "standard", "LoRA", "as", "tuned", "causal", "on", "merged"}
    ):
        reason = re.sub(rf"(?<=[=.]){re.escape(word)}(?![\w])", "NAME", reason)
    reason = re.sub(r"\btiny\w*", "NAME", reason)
    return re.sub(r"\b(stripes|corners|colours|fine_or_not|held(?=/))\b", "TASK", reason)


def page(refused: Refused, options: Mapping[str, Sequence[str]]) -> str:
    """Return the text of the page."""
    parts = [INTRODUCTION]
    for stage in STAGES:
        parts.append(f"- **{stage}**: {', '.join(options[stage])}")
    for first, second in combinations(STAGES, 2):
        found = {
            (key[1], key[3]): why
            for key, why in refused.items()
            if (key[0], key[2]) == (first, second)
        }
        total = len(options[first]) * len(options[second])
        parts.append(f"\n## {first} x {second}\n\n{total - len(found)} of {total} pairs run.")
        if found:
            parts.append(f"\n| {first} | {second} | reason |\n|---|---|---|")
            parts += _lines(found, options[second])
    return "\n".join(parts) + "\n"


def _lines(found: Mapping[tuple[str, str], str], columns: Sequence[str]) -> list[str]:
    """Return table lines: for each reason, the first choices that share their second ones."""
    by_reason: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (one, other), why in found.items():
        by_reason[why][one].append(other)
    lines = []
    for why, rows in by_reason.items():
        groups = defaultdict(list)
        for one, others in rows.items():
            groups[tuple(others)].append(one)
        for others, ones in groups.items():
            named = "all" if len(others) == len(columns) else ", ".join(others)
            lines.append(f"| {', '.join(ones)} | {named} | {why.replace('|', '/')} |")
    return lines


def write(
    refused: Refused, cells: Sequence[Sequence[str]], options: Mapping[str, Sequence[str]]
) -> None:
    """Write record and page, one entry a line."""
    record = {
        "options": [[stage, *names] for stage, names in options.items()],
        "refused": [[*key, why] for key, why in refused.items()],
        "cells": list(cells),
    }
    parts = []
    for name, entries in record.items():
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        parts.append(f'"{name}": [\n{lines}\n]')
    RECORD.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(refused, options), encoding="utf-8")


def read() -> tuple[dict[tuple[str, str, str, str], str], list[list[str]], dict[str, list[str]]]:
    """Return the recorded refusals, covering combinations and options."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    refused = {tuple(entry[:4]): entry[4] for entry in record["refused"]}
    options = {entry[0]: entry[1:] for entry in record["options"]}
    return refused, record["cells"], options


def ended(words: Sequence[str], outputs: Path) -> str | None:
    """Run a command in this process and return what is wrong with how it ended, None if nothing is."""
    from taskvec.cli import main

    before = set(outputs.glob("runs/*/result.json"))
    status = main([*words, f"outputs={outputs}"])
    if status:
        return f"it ended with {status}"
    for path in set(outputs.glob("runs/*/result.json")) - before:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        if not all(row["metrics"] for row in numbers["rows"]):
            return f"{path}: a row without numbers"
        if re.search(r"\bNaN\b|\bInfinity\b", path.read_text(encoding="utf-8")):
            return f"{path}: a number that is not finite"
    return None


def run(assembly: Assembly, outputs: Path, part: int, parts: int) -> int:
    """Run the covering set, or every ``parts``-th of it, and print what fails; return how many."""
    _, cells, _ = read()
    cells = cells[part - 1 :: parts]
    failed = 0
    for number, names in enumerate(cells, start=1):
        combination = named(assembly, names)
        refused = assembly.reason(combination)
        wrong = None if refused else ended(combination.words(assembly.root), outputs)
        state = f"refused: {refused}" if refused else wrong or "runs"
        print(f"{number}/{len(cells)} {combination.name}: {state}", flush=True)
        failed += wrong is not None
    print(f"{failed} of {len(cells)} failed")
    return failed


def named(assembly: Assembly, names: Sequence[str]) -> Combination:
    """Return a combination by the names of its choices."""
    chosen = [assembly.choice(stage, name) for stage, name in zip(STAGES, names, strict=True)]
    return Combination(tuple(chosen))


def main() -> int:
    """Plan or run."""
    from taskvec.runner import compose

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["plan", "run"])
    parser.add_argument("--part", default="1/1", metavar="K/N", help="the K-th of N shares")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    with tempfile.TemporaryDirectory() as folder:
        import matrix_world

        root = matrix_world.build(Path(folder) / "world")
        os.environ["TASKVEC_INCLUDE"] = str(root)
        compose.register_all()
        assembly = Assembly(root)
        if options.verb == "run":
            outputs = Path(folder) / "outputs"
            return 1 if run(assembly, outputs, part, parts) else 0
        refused, cells = plan(assembly)
        known = {stage: [choice.name for choice in assembly.options[stage]] for stage in STAGES}
        write(refused, cells, known)
    return 0


if __name__ == "__main__":
    sys.exit(main())
