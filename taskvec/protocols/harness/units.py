"""What the harness's metrics are measured in, and which way is better."""

from __future__ import annotations

import re
from typing import NamedTuple

from taskvec.protocols.rows import Better

PERPLEXITY = ("perplexity", "word_perplexity", "byte_perplexity")
# what is a share of examples, or an overlap between 0 and 1, by the names that tasks give it
FRACTION = re.compile(
    r"(^|_)(acc|accuracy|exact_match|em|f1|mcc|pass@\d+|pass_at_\d+|likelihood)(_|$)"
)


class Measure(NamedTuple):
    """The unit of a metric and its direction."""

    unit: str
    better: Better


def measure(name: str, higher: bool | None) -> Measure:
    """Return how a metric counts: ``name`` with or without its filter, ``higher`` as its task declares it.

    Perplexities and bits have units of their own; accuracies and overlaps are fractions; whatever else a task
    calls a metric (BLEU, chrF, TER, scores of a judge) is a plain number. Only fractions of which more is better are
    accuracies.
    """
    base = name.partition(",")[0]
    better: Better = "neither"
    if higher is not None:
        better = "higher" if higher else "lower"
    if base in PERPLEXITY:
        return Measure("perplexity", "lower")
    if base == "bits_per_byte":
        return Measure("bits", "lower")
    if FRACTION.search(base):
        return Measure("fraction", better)
    return Measure("number", better)


def is_accuracy(found: Measure) -> bool:
    """Return whether a metric may stand among accuracies, and be averaged with them."""
    return found == Measure("fraction", "higher")
