"""How numbers are shown: each unit's factor and digits, the same in tables, comparisons and pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

SIGNIFICANT = 4  # digits of a number whose unit does not say how many
HUGE = 1e7  # what is larger is written with an exponent

Numbers: TypeAlias = Sequence[float]


@dataclass(frozen=True)
class Unit:
    """How a unit is shown: numbers times ``factor``, with ``digits`` decimals (None: four significant digits).

    ``gap`` is the unit of a difference.
    """

    factor: float = 1
    digits: int | None = None
    gap: str = ""


UNITS = {
    "fraction": Unit(100, 1, "points"),
    "coefficient": Unit(1, 2),
    "perplexity": Unit(1, 2, "perplexity"),
    "bits": Unit(1, 3, "bits"),
    "number": Unit(),
}


def unit_of(name: str) -> Unit:
    """Return a unit by the name that metrics give it; one that is not known here is shown as it is."""
    return UNITS.get(name, Unit(gap=name))


def scaled(value: float, unit: str) -> float:
    """Return a value in its shown unit, fractions in percent."""
    return value * unit_of(unit).factor


def shown(value: float | None, unit: str, *, sign: bool = False) -> str:
    """Return a value as text, in percent where it is a fraction; empty for None."""
    if value is None:
        return ""
    number = scaled(value, unit)
    return _text(number, _digits(number, unit), sign=sign)


def summarised(values: Numbers, unit: str) -> str:
    """Return "mean ± sample standard deviation" (n > 1), the value alone, or nothing."""
    centre, deviation = mean_and_deviation(values, unit)
    return "" if centre is None else summed_up(centre, deviation, unit)


def summed_up(centre: float, deviation: float | None, unit: str) -> str:
    """Return "mean ± deviation" of numbers in their shown unit, both in the digits of the mean."""
    digits = _digits(centre, unit)
    text = _text(centre, digits)
    if deviation is not None:
        text += f" ± {_text(deviation, digits)}"
    return text


def exactly(values: Numbers, unit: str) -> list[str]:
    """Return mean and sample standard deviation in full precision, empty where there is none."""
    parts = mean_and_deviation(values, unit)
    return ["" if part is None else repr(part) for part in parts]


def mean_and_deviation(values: Numbers, unit: str) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation in the shown unit, None where there is none (one value, infinities)."""
    if not values:
        return None, None
    numbers = [scaled(value, unit) for value in values]
    centre = sum(numbers) / len(numbers)
    if math.isnan(centre):
        return None, None  # both infinities
    if math.isinf(centre):
        return centre, None
    if len(numbers) == 1:
        return numbers[0], None
    return statistics.fmean(numbers), statistics.stdev(numbers)


def _digits(value: float, unit: str) -> int:
    digits = unit_of(unit).digits
    if digits is not None:
        return digits
    if value == 0 or not math.isfinite(value):
        return 1
    leading = math.floor(math.log10(abs(value)))
    return max(1, SIGNIFICANT - 1 - leading)


def _text(value: float, digits: int, *, sign: bool = False) -> str:
    form = f".{digits}f"
    if digits > 2 * SIGNIFICANT or HUGE <= abs(value) < math.inf:
        form = f".{SIGNIFICANT}g"
    if sign:
        form = f"+{form}"
    return format(value, form)
