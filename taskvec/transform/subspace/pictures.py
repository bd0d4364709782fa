"""Pictures of what PAVE keeps: spectra, ranks and errors by layer and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskvec.panel import Heat, Lines
from taskvec.transform.subspace.ranks import SMALLEST

POINTS = 33  # of a spectrum
FLOOR = 1e-16  # of a relative singular value: what lies below is rounding

Reports = Mapping[str, Mapping[str, Any]]  # by layer


def pictures(
    reports: Mapping[str, Reports], spectra: Mapping[str, Mapping[str, Tensor]], layers: Sequence
) -> dict[str, Any]:
    """Return the pictures of a fit as JSON values: each task's spectra, and by layer and task what is kept and lost.

    ``reports`` and ``spectra`` are by task and layer; a task without spectra has no picture of them.
    """
    roles = {layer.name: layer.role for layer in layers}
    found = {}
    for task, values in spectra.items():
        found[f"spectrum {task}"] = spectra_by_role(task, values, roles, reports[task]).data()
    titles = {"rank": "kept rank", "activated_error": "share of the outputs' energy lost"}
    for key, title in titles.items():
        if all(key in said for layers in reports.values() for said in layers.values()):
            found[key] = by_layer(reports, key, title).data()
    return found


def spectra_by_role(
    task: str, spectra: Mapping[str, Tensor], roles: Mapping[str, str], reports: Reports
) -> Lines:
    """Return sigma_j / sigma_1 of W_t C_t over j / R, the geometric mean over the layers of each role.

    The line marks the share of all directions that is kept.
    """
    shares = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    logarithms: dict[str, list[Tensor]] = {}
    for layer, values in spectra.items():
        relative = values.double() / values[0].clamp(min=SMALLEST)
        places = (shares * (len(values) - 1)).round().long().to(values.device)
        taken = relative[places].clamp(min=FLOOR).log10()
        logarithms.setdefault(roles[layer], []).append(taken.cpu())
    series = {}
    for role, lines in logarithms.items():
        means = torch.stack(lines).mean(0)
        heights = torch.pow(10.0, means)
        series[role] = tuple(zip(shares.tolist(), heights.tolist(), strict=True))
    full = sum(len(values) for values in spectra.values())
    kept = sum(reports[layer]["rank"] for layer in spectra)
    return Lines(
        title=f"spectra of WC, {task}",
        x="share of directions",
        y="relative singular value",
        scale="log",
        series=series,
        chosen=kept / full,
    )


def by_layer(reports: Mapping[str, Reports], key: str, title: str) -> Heat:
    """Return a number of each layer (rows) and task (columns)."""
    tasks = list(reports)
    layers = list(reports[tasks[0]])
    values = []
    for layer in layers:
        values.append(tuple(float(reports[task][layer][key]) for task in tasks))
    return Heat(title=title, rows=tuple(layers), columns=tuple(tasks), values=tuple(values))
