"""The picture of accuracy along fine-tuning, one line for each start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskvec.panel import Lines
from taskvec.protocols.rows import Row

PERCENT = 100.0


def pictured(
    rows: Mapping[str, Row], starts: Sequence[str], shares: Sequence[float]
) -> dict[str, Any]:
    """Return mean test accuracy in percent over the share of the training, from before its first step."""
    series = {}
    for name in starts:
        before = rows["zero_shot" if name == "scratch" else name]
        points = [(0.0, PERCENT * before.mean("accuracy"))]
        for share in shares:
            then = rows[f"{name}_start/{share:g}"]
            points.append((share, PERCENT * then.mean("accuracy")))
        series[name] = tuple(points)
    picture = Lines(
        title="fine-tuning from each start",
        x="share of the training",
        y="accuracy, %",
        unit="fraction",
        series=series,
        strong=tuple(starts[:1]),
    )
    return picture.data()
