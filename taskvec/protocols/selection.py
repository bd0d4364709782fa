"""The rules by which papers choose the scaling coefficient, as pure functions of validation metrics (spec 2.2).

An accuracy stands for the metric of its task, whichever that is; higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskvec.errors import NoFeasibleCoefficientError
from taskvec.protocols.question import SELECTION, Answer, Cell

Accuracies = Mapping[float, Mapping[str, float]]


def highest_normalised(curve: Accuracies, denominators: Mapping[str, float]) -> float:
    """Return argmax_alpha mean_t acc_t(alpha) / acc_t(individual); ties go to the smallest alpha.

    Raises:
        NoFeasibleCoefficientError: if an individual model is at zero or below, which leaves the ratio without meaning.
    """
    _positive(denominators)

    def score(alpha: float) -> float:
        return sum(curve[alpha][task] / accuracy for task, accuracy in denominators.items()) / len(denominators)

    return max(sorted(curve), key=score)  # max keeps the first of equals


@dataclass(frozen=True)
class Keeps:
    """When an edit keeps the control: accuracy at ``bound`` or more, or perplexity (``below``) at ``bound`` or less."""

    control: str
    bound: float
    below: bool = False

    def admits(self, value: float) -> bool:
        """Return whether a control value is within the bound, which counts as within."""
        return value <= self.bound if self.below else value >= self.bound


def lowest_target(curve: Accuracies, target: str, keeps: Keeps) -> float:
    """Return the alpha of lowest target accuracy among those that keep the control; ties go to the smallest alpha.

    The rule of the tangent-space paper's code and of aTLAS.

    Raises:
        NoFeasibleCoefficientError: if no coefficient keeps the control.
    """
    return min(_feasible(curve, keeps), key=lambda alpha: curve[alpha][target])


def largest_feasible(curve: Accuracies, target: str, keeps: Keeps) -> float:
    """Return the largest alpha that keeps the control, the rule of Ilharco et al. (2023).

    Raises:
        NoFeasibleCoefficientError: if no coefficient keeps the control.
    """
    return max(_feasible(curve, keeps))


def highest_accuracy(curve: Accuracies, target: str) -> float:
    """Return the alpha of highest target accuracy; ties go to the smallest alpha (analogies)."""
    return max(sorted(curve), key=lambda alpha: curve[alpha][target])


def _feasible(curve: Accuracies, keeps: Keeps) -> list[float]:
    feasible = [alpha for alpha in sorted(curve) if keeps.admits(curve[alpha][keeps.control])]
    if not feasible:
        best = (min if keeps.below else max)(at[keeps.control] for at in curve.values())
        metric, side, remedy = (
            ("perplexity", "less", "raise protocol.perplexity_tolerance")
            if keeps.below
            else ("accuracy", "more", "lower protocol.control_threshold")
        )
        raise NoFeasibleCoefficientError(
            f"no coefficient keeps the control {metric} on {keeps.control} at {keeps.bound:.4f} or {side} "
            f"(best {best:.4f}); add 0 to protocol.grid or {remedy}"
        )
    return feasible


def choose(cell: Cell, curve: Accuracies, needs: Mapping[str, Answer]) -> float:
    """Return the coefficient that the cell's rule picks from its validation accuracies.

    Raises:
        NoFeasibleCoefficientError: if the rule has no admissible coefficient.
        ValueError: for an unknown rule.
    """
    settings: Mapping[str, Any] = cell.rule_settings
    if cell.rule == "highest_normalised":
        return highest_normalised(curve, denominators(cell.targets, needs, SELECTION))
    if cell.rule == "highest_accuracy":
        return highest_accuracy(curve, cell.targets[0])
    if cell.rule in ("lowest_target", "largest_feasible"):
        start = needs["zero_shot"].selection[0.0][cell.control]
        if "perplexity_tolerance" in settings:
            keeps = Keeps(cell.control, start + settings["perplexity_tolerance"], below=True)
        else:
            keeps = Keeps(cell.control, settings["control_threshold"] * start)
        rule = lowest_target if cell.rule == "lowest_target" else largest_feasible
        return rule(curve, cell.targets[0], keeps)
    raise ValueError(f"unknown selection rule {cell.rule!r}")


def denominators(targets: tuple[str, ...], answers: Mapping[str, Answer], split: str) -> dict[str, float]:
    """Return each target's individually fine-tuned accuracy on a split.

    Raises:
        NoFeasibleCoefficientError: if one is zero or below, which leaves normalised accuracy without meaning.
    """
    which = "selection" if split == SELECTION else "report"
    own = {task: getattr(answers[f"individual/{task}"], which)[1.0][task] for task in targets}
    _positive(own)
    return own


def _positive(denominators: Mapping[str, float]) -> None:
    for task, accuracy in denominators.items():
        if accuracy <= 0:  # correlations can be negative
            raise NoFeasibleCoefficientError(
                f"normalised accuracy is undefined: {task} has individual accuracy {accuracy:.3g}; "
                "fine-tune it better, or leave it out of suite.tasks"
            )
