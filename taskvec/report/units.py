"""How numbers are shown: each unit's factor and digits, the same in tables, comparisons and pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SIGNIFICANT = 4  # digits of a number whose unit does not say how many


@dataclass(frozen=True)
class Unit:
    """A unit's ``factor`` when shown, its decimals (None: four significant digits), and the names of number and gap."""

    factor: float = 1
    digits: int | None = None
    name: str = ""
    gap: str = ""


UNITS = {
    "fraction": Unit(100, 1, "%", "points"),
    "coefficient": Unit(digits=2),
    "perplexity": Unit(digits=2, name="perplexity", gap="perplexity"),
    "bits": Unit(digits=3, name="bits", gap="bits"),
    "number": Unit(),
}


def unit_of(name: str) -> Unit:
    """Return a unit by the name that metrics give it; one that is not known here is shown as it is."""
    return UNITS.get(name) or Unit(name=name, gap=name)


def scaled(value: float, unit: str) -> float:
    """Return a value in its shown unit, fractions in percent."""
    return value * unit_of(unit).factor


def shown(value: float | None, unit: str, *, sign: bool = False) -> str:
    """Return a value as text, in percent where it is a fraction; empty for None."""
    if value is None:
        return ""
    return _text(scaled(value, unit), _digits(scaled(value, unit), unit), sign=sign)


def summarised(values: Sequence[float], unit: str) -> str:
    """Return "mean ± sample standard deviation" (n > 1), the value alone, or nothing."""
    centre, deviation = mean_and_deviation(values, unit)
    if centre is None:
        return ""
    digits = _digits(centre, unit)
    text = _text(centre, digits)
    return text if deviation is None else f"{text} ± {_text(deviation, digits)}"


def exactly(values: Sequence[float], unit: str) -> tuple[str, str]:
    """Return mean and sample standard deviation in full precision, empty where there is none."""
    centre, deviation = mean_and_deviation(values, unit)
    return "" if centre is None else repr(centre), "" if deviation is None else repr(deviation)


def mean_and_deviation(values: Sequence[float], unit: str) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation in the shown unit, None where there is none (one value, infinities)."""
    if not values:
        return None, None
    numbers = [scaled(value, unit) for value in values]
    centre = sum(numbers) / len(numbers)
    if not math.isfinite(centre):
        return (None if math.isnan(centre) else centre), None  # undefined where both infinities occur
    if len(numbers) == 1:
        return numbers[0], None
    return statistics.fmean(numbers), statistics.stdev(numbers)


def _digits(value: float, unit: str) -> int:
    digits = unit_of(unit).digits
    if digits is not None:
        return digits
    if value == 0 or not math.isfinite(value):
        return 1
    return max(1, SIGNIFICANT - 1 - math.floor(math.log10(abs(value))))


def _text(value: float, digits: int, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    tiny = digits > 2 * SIGNIFICANT
    if tiny or (abs(value) >= 1e7 and math.isfinite(value)):
        return f"{value:{plus}.{SIGNIFICANT}g}"
    return f"{value:{plus}.{digits}f}"
