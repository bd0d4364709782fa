"""The demo as one picture: the merged models' gain over zero-shot with 95 % intervals, by method and backbone.

Usage: python experiments/demo/picture.py [OUTPUTS] [PICTURE], by default outputs and outputs/demo.png.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskvec.report.intervals import Interval, paired_difference
from taskvec.report.outcomes import outcomes
from taskvec.report.runs import Run, find_results

USUAL_MERGE = "task_arithmetic"


def main(arguments: Sequence[str]) -> int:
    """Draw the demo's runs."""
    places = [Path(argument) for argument in arguments]
    outputs = places[0] if places else Path("outputs")
    target = places[1] if len(places) > 1 else outputs / "demo.png"
    gains: dict[tuple[str, str], Interval] = {}
    for run in find_results([outputs]):
        config = run.result.config
        if config["experiment"] == "demo":
            gains[name_of(config), config["choices"]["backbone"]] = gain(run)
    draw(gains, target)
    print(target)
    return 0


def name_of(config: Mapping) -> str:
    """Return a run's method, with the merge and the transforms that it is combined with."""
    parts = [config["method"]]
    merge = config["merge"]["kind"]
    if merge not in (USUAL_MERGE, config["method"]):
        parts.append(merge)
    parts += [name for name in config["transform"] if name != config["method"]]
    return " + ".join(parts)


def gain(run: Run) -> Interval:
    """Return the merged model's mean accuracy over tasks minus zero-shot's, on the same test examples."""
    rows = {row.row: row for row in run.result.rows}
    merged, zero_shot = (outcomes(run, rows[name], "accuracy") for name in ("merged", "zero_shot"))
    return paired_difference([merged], [zero_shot], resamples=2000)


def draw(gains: Mapping[tuple[str, str], Interval], target: Path) -> None:
    """Draw grouped bars, one group a method and one colour a backbone."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for name, _ in sorted(gains)))
    backbones = sorted({backbone for _, backbone in gains})
    height = 0.8 / len(backbones)
    figure = Figure(figsize=(8, 1.5 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, backbone in enumerate(backbones):
        shown = [number for number, name in enumerate(names) if (name, backbone) in gains]
        found = [gains[names[number], backbone] for number in shown]
        centres = [number + (place - (len(backbones) - 1) / 2) * height for number in shown]
        below = [100 * (interval.mean - interval.low) for interval in found]
        above = [100 * (interval.high - interval.mean) for interval in found]
        widths = [100 * interval.mean for interval in found]
        axes.barh(centres, widths, height, xerr=[below, above], label=backbone, capsize=2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(
        "points of accuracy over zero-shot, mean over tasks, 95 % interval over test examples"
    )
    axes.legend()
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
