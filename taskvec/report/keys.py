"""Which keys tell runs apart, so that a table never averages what is not the same but for its seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from taskvec.report.records import LABELS, Record
from taskvec.report.runs import DONE

# Names of a run and of groups of runs: they say nothing about what was computed.
NAMES = {"run", "row", "experiment", "fingerprint", "state"}


def row_keys(records: Sequence[Record], rows: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the keys of a table's rows: those asked for, and those that tell apart what must not be averaged."""
    keys = list(rows)

    def declare(key: str) -> None:
        if key not in (*keys, *columns):
            keys.append(key)

    # Rows of one run are different models.
    if len({record.get("row") for record in records}) > 1:
        declare("row")
    # Results of older code or stale ones are marked, even if no other is beside them.
    if any(record.get("state") != DONE for record in records):
        declare("state")
    # The same settings on other inputs: an earlier copy of a run, or the run of another machine.
    results = {(record.get("run"), record.get("fingerprint")) for record in records}
    if len({run for run, _ in results}) < len(results):
        declare("fingerprint")
    for key in undeclared(records, (*keys, *columns)):
        declare(key)
    return keys


def undeclared(records: Sequence[Record], declared: Sequence[str]) -> list[str]:
    """Return the keys by which runs differ although they share every declared key, the fewest that tell them apart."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        shared = tuple(text_of(record.get(key)) for key in (*declared, "row"))
        groups.setdefault(shared, []).append(record)
    extra: list[str] = []
    for key in telling(records):
        if key not in declared and any(refines(members, extra, key) for members in groups.values()):
            extra.append(key)
    return extra


def telling(records: Sequence[Record]) -> list[str]:
    """Return the keys that differ and can change a result, seeds aside, readable names first."""
    immaterial: set[str] = set()
    found: dict[str, set[str]] = {}
    for record in records:
        immaterial |= record.immaterial - {"method"}
        for key in record.keys:
            found.setdefault(key, set())
    for key, values in found.items():
        values |= {text_of(record.get(key)) for record in records}
    keys = [key for key, values in found.items() if len(values) > 1]
    keys = [key for key in keys if key not in NAMES and key not in immaterial and not is_seed(key)]
    names = ("method", *LABELS, "transform")
    return sorted(keys, key=lambda key: (key not in names, "." in key))


def refines(members: Iterable[Record], extra: Sequence[str], key: str) -> bool:
    """Return whether a key tells members apart that the keys in ``extra`` do not."""
    values: dict[tuple[str, ...], str] = {}
    for member in members:
        told = tuple(text_of(member.get(name)) for name in extra)
        if values.setdefault(told, text_of(member.get(key))) != text_of(member.get(key)):
            return True
    return False


def is_seed(key: str) -> bool:
    """Return whether a key is the run's seed or a component's."""
    return key == "seed" or key.endswith(".seed")


def text_of(value: Any) -> str:
    """Return a key's value as it stands in a table, None as nothing."""
    return "" if value is None else str(value)
