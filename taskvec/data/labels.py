"""What a label may be: the one rule by which integers, Booleans, floats and strings become classes or scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

WORDS = {"false": False, "true": True}
SCORE = ("score",)  # the one "class" of a regression


@dataclass(frozen=True)
class Classes:
    """The classes of a task: their ``names`` in prompts, and the ``numbers`` of the words that stand in label columns.

    A regression has one name and no numbers; its labels are scores from 0 to ``highest``.
    """

    names: tuple[str, ...]
    numbers: Mapping[str, int]
    highest: int | None = None

    @property
    def wanted(self) -> str:
        """What a label must be, for errors."""
        return f"{len(self.names)} classes" if self.highest is None else f"scores from 0 to {self.highest}"


@dataclass(frozen=True)
class LabelRule:
    """How the values of one label column are read.

    A string that names a class is that class. Any other label numbers its class from 0: an integer, a float without a
    fraction, or a Boolean where there are two classes (False 0, True 1; where the classes are called false and true, by
    name). ``typed`` False, of files in which every cell is text, reads such numbers from strings too. ``no_label``
    marks rows that are left out. Scores are numbers, never Booleans.
    """

    classes: Classes
    no_label: int | str | None = None
    typed: bool = True

    def read(self, label: Any) -> float | int | None:
        """Return a label's class or score, None for a row without a label.

        Raises:
            ValueError: if it is neither; the message says what the task has.
        """
        if self.no_label is not None and label is not None and self._same(label, self.no_label):
            return None
        number = self._score(label) if self.classes.highest is not None else self._class(label)
        if number is None:
            raise ValueError(f"label {label!r}, but the task has {self.classes.wanted}")
        return number

    def _same(self, label: Any, marker: int | str) -> bool:
        if isinstance(label, bool):
            return False
        return label == marker or not self.typed and str(label) == str(marker)

    def _class(self, label: Any) -> int | None:
        numbers = self.classes.numbers
        if isinstance(label, str):
            if label in numbers:
                return numbers[label]
            label = None if self.typed else _parsed(label)
        if isinstance(label, bool):
            named = {name.lower(): number for name, number in numbers.items()}
            if str(label).lower() in named:
                return named[str(label).lower()]
            return int(label) if len(self.classes.names) == 2 else None
        if isinstance(label, float):
            label = int(label) if label.is_integer() else None
        known = isinstance(label, int) and 0 <= label < len(self.classes.names)
        return label if known else None

    def _score(self, label: Any) -> float | None:
        if isinstance(label, str) and not self.typed:
            label = _parsed(label)
        number = isinstance(label, int | float) and not isinstance(label, bool)
        return float(label) if number and 0 <= label <= self.classes.highest else None


def _parsed(text: str) -> float | int | bool | None:
    """Return the Boolean or the finite number that a cell of text spells."""
    word = text.strip()
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read_labels(column: pa.ChunkedArray, rule: LabelRule, owner: str, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes (int64) or scores (float32) of a label column, and which rows have one [N] bool.

    Raises:
        UserError: if a label is neither a class nor a score; it names ``place`` and the row.
    """
    import numpy as np
    from pyarrow import types

    from taskvec.data.tables.base import coded

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    text = types.is_string(kind) or types.is_large_string(kind)
    if not (text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise UserError(f"{owner}: {place}: labels are {kind}; a label is a class's number, a Boolean, or its name")
    distinct = coded(column)
    codes = np.concatenate([_codes(chunk) for chunk in distinct.chunks]) if len(column) else np.empty(0, np.int64)
    values = [*distinct.chunk(0).dictionary.to_pylist(), None] if len(column) else [None]  # -1: no value
    read = np.zeros(len(values), np.float64)
    present = np.ones(len(values), bool)
    for code in np.unique(codes).tolist():
        try:
            number = rule.read(values[code])
        except ValueError as error:
            row = int(np.argmax(codes == code))
            raise UserError(f"{owner}: {place} has {error} (row {row})") from error
        present[code] = number is not None
        read[code] = 0 if number is None else number
    kind = np.int64 if rule.classes.highest is None else np.float32
    return read[codes].astype(kind), present[codes]


def _codes(chunk: pa.DictionaryArray) -> np.ndarray:
    """Return the positions [n] of a chunk's values in its dictionary, -1 where there is none."""
    import pyarrow.compute as compute

    return compute.fill_null(chunk.indices.cast("int64"), -1).to_numpy()
