"""The difference that purification makes, against the share of directions kept and the examples looked at.

Usage: python experiments/pave/picture.py [OUTPUTS] [PICTURE], by default outputs and experiments/pave/difference.png.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskvec.report.compare import Line, difference, lines_of
from taskvec.report.intervals import Interval
from taskvec.report.runs import find_results

# Of the experiment that varies it: key, label of the axis, whether the axis is logarithmic
VARIED = {
    "pave/ratio": ("transform.pave.ratio", "share of directions kept", False),
    "pave/samples": ("transform.pave.examples", "training images looked at, ratio 0.75", True),
}
COLOURS = {"task_arithmetic": "#0072b2", "emr": "#d55e00"}
LINES = {"mini_clip_s": "-", "mini_clip_m": "--"}
Curve = dict[float, Interval]


def main(arguments: Sequence[str]) -> int:
    """Draw one panel for each thing that is varied."""
    places = [Path(argument) for argument in arguments]
    outputs = places[0] if places else Path("outputs")
    target = places[1] if len(places) > 1 else Path(__file__).parent / "difference.png"
    lines = [line for line in lines_of(find_results([outputs])) if line.row.row == "merged"]
    plain = without(lines)
    curves = {name: curves_of(lines, plain, name) for name in VARIED}
    draw(curves, target)
    print(target)
    return 0


def without(lines: Sequence[Line]) -> dict[tuple[str, ...], Line]:
    """Return the rows without purification by backbone, merge and seed."""
    found = {}
    for line in lines:
        if line.says({"experiment": "merging/images"}) or line.says(
            {"experiment": "merging/width"}
        ):
            found[line.record.texts(("backbone", "merge", "seed"))] = line
    return found


def curves_of(
    lines: Sequence[Line], plain: Mapping[tuple[str, ...], Line], experiment: str
) -> dict[tuple[str, str], Curve]:
    """Return the differences of an experiment by backbone and merge, and by what it varies."""
    key = VARIED[experiment][0]
    found: dict[tuple[str, str], Curve] = {}
    for line in lines:
        backbone, merge, seed = line.record.texts(("backbone", "merge", "seed"))
        peer = plain.get((backbone, merge, seed))
        if peer is None or not line.says({"experiment": experiment}):
            continue
        curve = found.setdefault((backbone, merge), {})
        curve[float(line.record.text(key))] = difference((), [(line, peer)], "accuracy").interval
    return found


def draw(curves: Mapping[str, Mapping[tuple[str, str], Curve]], target: Path) -> None:
    """Draw the curves with their intervals, in points."""
    from matplotlib.figure import Figure

    shown = [name for name in curves if curves[name]]
    figure = Figure(figsize=(5.2 * len(shown), 4), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, shown, strict=True):
        _, label, logarithmic = VARIED[name]
        for (backbone, merge), curve in curves[name].items():
            places = sorted(curve)
            means = [100 * curve[place].mean for place in places]
            below = [100 * (curve[place].mean - curve[place].low) for place in places]
            above = [100 * (curve[place].high - curve[place].mean) for place in places]
            text = f"{merge}, {backbone}"
            style = {"marker": "o", "capsize": 2, "color": COLOURS[merge], "ls": LINES[backbone]}
            axes.errorbar(places, means, [below, above], label=text, **style)
        if logarithmic:
            axes.set_xscale("log")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlabel(label)
    panels[0].set_ylabel("accuracy gained, points (95 % interval)")
    panels[0].legend()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
