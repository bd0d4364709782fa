"""Ours against the papers': accuracy of each merge here and with ViT-B/32 on eight tasks, and their rank correlation.

Usage: python experiments/merging/picture.py [TABLE] [PICTURE], by default the committed table and
experiments/merging/order.png.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import spearmanr

HERE = Path(__file__).parent


def main(arguments: Sequence[str]) -> int:
    """Draw the merges that have both numbers, and print the correlation by backbone."""
    places = [Path(argument) for argument in arguments]
    table = places[0] if places else HERE / "table.csv"
    target = places[1] if len(places) > 1 else HERE / "order.png"
    papers = published()
    by_backbone: dict[str, dict[str, float]] = {}
    for line in rows(table):
        if line["merge"] in papers:
            own = by_backbone.setdefault(line["backbone"], {})
            own[line["merge"]] = float(line["accuracy"])
    for backbone, own in by_backbone.items():
        theirs = [papers[merge] for merge in own]
        found = spearmanr(theirs, list(own.values()))
        print(f"{backbone}: {len(own)} merges, rank correlation {found.statistic:.2f}")
    draw(by_backbone, papers, target)
    print(target)
    return 0


def published() -> dict[str, float]:
    """Return the papers' accuracy by merge, in percent."""
    return {line["merge"]: float(line["percent"]) for line in rows(HERE / "published.csv")}


def rows(place: Path) -> list[dict[str, str]]:
    """Return the lines of a table as dicts."""
    with open(place, newline="") as file:
        return list(csv.DictReader(file))


def draw(by_backbone: dict[str, dict[str, float]], papers: dict[str, float], target: Path) -> None:
    """Draw one panel for each backbone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(by_backbone), 5), layout="constrained")
    panels = figure.subplots(1, len(by_backbone), squeeze=False)[0]
    for axes, (backbone, own) in zip(panels, by_backbone.items(), strict=True):
        axes.scatter([papers[merge] for merge in own], list(own.values()), s=14)
        for merge, accuracy in own.items():
            axes.annotate(
                merge, (papers[merge], accuracy), (3, 3), textcoords="offset points", fontsize=7
            )
        axes.set_title(backbone)
        axes.set_xlabel("papers: ViT-B/32, eight tasks, percent")
        axes.set_ylabel("here: test accuracy, mean over tasks, percent")
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
