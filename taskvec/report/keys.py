"""Which keys tell runs apart, so that a table never averages what is not the same but for its seed."""

from __future__ import annotations

from collections.abc import Sequence

from taskvec.report.records import LABELS, Names, Record, Records
from taskvec.report.runs import DONE

# Names of a run and of groups of runs: they say nothing about what was computed.
NAMES = ("run", "row", "experiment", "fingerprint", "state")
READABLE = ("method", *LABELS, "transform")


def row_keys(records: Records, rows: Names, columns: Names) -> list[str]:
    """Return the keys of a table's rows: those asked for, and those that tell apart what must not be averaged."""
    keys = list(rows)

    def declare(key: str) -> None:
        if key not in keys and key not in columns:
            keys.append(key)

    # Rows of one run are different models.
    if differ(records, "row"):
        declare("row")
    # Results of older code and stale ones are marked, even if no other is beside them.
    if any(record.get("state") != DONE for record in records):
        declare("state")
    # The same settings on other inputs: an earlier copy of a run, or the run of another machine.
    if refined(records, ("run",), "fingerprint"):
        declare("fingerprint")
    for key in undeclared(records, (*keys, *columns)):
        declare(key)
    return keys


def undeclared(records: Records, declared: Names) -> list[str]:
    """Return the keys by which runs differ although they share every declared key, the fewest that tell them apart."""
    shared = (*declared, "row")
    extra: list[str] = []
    for key in telling(records):
        if key in declared:
            continue
        if refined(records, (*shared, *extra), key):
            extra.append(key)
    return extra


def telling(records: Records) -> list[str]:
    """Return the keys that differ and can change a result, seeds aside, readable names first."""
    immaterial: set[str] = set()
    every: dict[str, None] = {}
    for record in records:
        immaterial |= record.immaterial
        every |= dict.fromkeys(record.keys)
    left_out = immaterial.union(NAMES).difference(READABLE)
    keys = []
    for key in every:
        if key not in left_out and not is_seed(key) and differ(records, key):
            keys.append(key)
    return sorted(keys, key=rank)


def rank(key: str) -> tuple[bool, bool]:
    """Return the order of a key: readable names, then settings of the whole run, then those of a component."""
    return key not in READABLE, "." in key


def differ(records: Records, key: str) -> bool:
    """Return whether records have different values of a key."""
    return len({record.text(key) for record in records}) > 1


def refined(records: Records, keys: Names, key: str) -> bool:
    """Return whether a key tells records apart that agree in some other keys."""
    first: dict[Sequence[str], Record] = {}
    for record in records:
        other = first.setdefault(record.texts(keys), record)
        if other.text(key) != record.text(key):
            return True
    return False


def is_seed(key: str) -> bool:
    """Return whether a key is the run's seed or a component's."""
    return key == "seed" or key.endswith(".seed")
