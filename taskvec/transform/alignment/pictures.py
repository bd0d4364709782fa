"""Pictures of the maps between two models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taskvec.panel import Lines

BLOCK = re.compile(r"(?P<stack>.*?)\.?blocks\.(?P<number>\d+)\.(?P<role>.+)")
RANDOM = "random maps, 3 s.d. below 1"
DEVIATIONS = 3


def alignment_by_layer(maps: Mapping[str, Mapping[str, Any]]) -> Lines | None:
    """Return the held-out error of each block's maps, a line for each role; None where nothing was held out.

    ``maps`` are the reports of :func:`taskvec.transform.alignment.maps.described` by space. The dotted line lies three
    standard deviations below the error 1 of random maps, at the role where that is lowest.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    bounds: dict[int, float] = {}
    for space, report in maps.items():
        found = BLOCK.fullmatch(space)
        error = report.get("held_out_error")
        if found is None or error is None:
            continue
        block = int(found["number"])
        role = f"{found['stack']} {found['role']}".strip()
        series.setdefault(role, []).append((block, error))
        bound = 1 - DEVIATIONS * report["random_spread"]
        bounds[block] = min(bound, bounds.get(block, bound))
    if not series:
        return None
    series[RANDOM] = sorted(bounds.items())
    return Lines(
        x="block",
        y="1 - tr(TᵀC) / |A||B|, held out",
        series={role: tuple(points) for role, points in series.items()},
        dotted=(RANDOM,),
    )
