"""What a label may be: the one rule by which integers, Booleans, floats and strings become classes or scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BOOLEANS = {"false": False, "true": True}
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
    def scores(self) -> bool:
        """Whether labels are scores."""
        return self.highest is not None

    @property
    def wanted(self) -> str:
        """What a label must be, for errors."""
        return f"scores from 0 to {self.highest}" if self.scores else f"{len(self.names)} classes"


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Return the number of each name."""
    return {name: number for number, name in enumerate(names)}


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
        if label is not None and self._left_out(label):
            return None
        number = self._number(label)
        if number is None:
            raise ValueError(f"label {label!r}, but the task has {self.classes.wanted}")
        return number

    def _left_out(self, label: Any) -> bool:
        if self.no_label is None or isinstance(label, bool):
            return False
        return label == self.no_label if self.typed else label == str(self.no_label)

    def _number(self, label: Any) -> float | int | None:
        if isinstance(label, str):
            if label in self.classes.numbers:
                return self.classes.numbers[label]
            label = None if self.typed else parsed(label)
        if self.classes.scores:
            return self._score(label)
        return self._boolean(label) if isinstance(label, bool) else self._class(label)

    def _score(self, label: Any) -> float | None:
        if isinstance(label, bool) or not isinstance(label, int | float):
            return None
        return float(label) if 0 <= label <= self.classes.highest else None

    def _boolean(self, label: bool) -> int | None:
        for name, number in self.classes.numbers.items():
            if BOOLEANS.get(name.lower()) is label:
                return number
        return int(label) if len(self.classes.names) == 2 else None

    def _class(self, label: Any) -> int | None:
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        known = isinstance(label, int) and 0 <= label < len(self.classes.names)
        return label if known else None


def parsed(text: str) -> float | int | bool | None:
    """Return the Boolean or the finite number that a cell of text spells, None if it spells neither."""
    word = text.strip()
    if word.lower() in BOOLEANS:
        return BOOLEANS[word.lower()]
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read_labels(
    column: pa.ChunkedArray, rule: LabelRule, owner: str, place: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes (int64) or scores (float32) of a label column, and which rows have one [N] bool.

    Raises:
        UserError: if a label is neither a class nor a score; it names ``place`` and the row.
    """
    import numpy as np

    _check_type(column.type, f"{owner}: {place}")
    distinct = _coded(column)
    # not ``to_numpy``, which imports pandas: that takes longer than all of planning
    codes = np.concatenate([np.from_dlpack(chunk.indices) for chunk in distinct.chunks])
    values = distinct.chunk(0).dictionary.to_pylist()
    numbers = np.zeros(len(values), np.float64)
    present = np.ones(len(values), bool)
    for code, value in enumerate(values):
        try:
            number = rule.read(value)
        except ValueError as error:
            row = int(np.argmax(codes == code))
            raise UserError(f"{owner}: {place} has {error} (row {row})") from error
        if number is None:
            present[code] = False
        else:
            numbers[code] = number
    kind = np.float32 if rule.classes.scores else np.int64
    return numbers[codes].astype(kind), present[codes]


def _check_type(kind: pa.DataType, where: str) -> None:
    from pyarrow import types

    from taskvec.data.tables.base import is_text

    if types.is_dictionary(kind):
        kind = kind.value_type
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if not number and not is_text(kind) and not types.is_null(kind):
        raise UserError(
            f"{where}: labels are {kind}; a label is a class's number, a Boolean, or its name"
        )


def _coded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as a dictionary in which a missing value is one of the values."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.dictionary_encode(null_encoding="encode")
