"""The rules by which papers choose the scaling coefficient, as pure functions of validation accuracies (spec 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec.errors import NoFeasibleCoefficientError
from taskvec.protocols.question import SELECTION, Answer, Cell

Accuracies = Mapping[float, Mapping[str, float]]


def highest_normalised(curve: Accuracies, denominators: Mapping[str, float]) -> float:
    """Return argmax_alpha mean_t acc_t(alpha) / acc_t(individual); ties go to the smallest alpha.

    Raises:
        NoFeasibleCoefficientError: if an individual model has accuracy zero, which leaves the ratio undefined.
    """
    _positive(denominators)

    def score(alpha: float) -> float:
        return sum(curve[alpha][task] / accuracy for task, accuracy in denominators.items()) / len(denominators)

    return max(sorted(curve), key=score)  # max keeps the first of equals


def lowest_target(curve: Accuracies, target: str, control: str, floor: float) -> float:
    """Return the alpha of lowest target accuracy among those with control >= floor; ties go to the smallest alpha.

    The rule of the tangent-space paper's code and of aTLAS.

    Raises:
        NoFeasibleCoefficientError: if no coefficient keeps the control.
    """
    return min(_feasible(curve, control, floor), key=lambda alpha: curve[alpha][target])


def largest_feasible(curve: Accuracies, target: str, control: str, floor: float) -> float:
    """Return the largest alpha with control >= floor, the rule of Ilharco et al. (2023).

    Raises:
        NoFeasibleCoefficientError: if no coefficient keeps the control.
    """
    return max(_feasible(curve, control, floor))


def highest_accuracy(curve: Accuracies, target: str) -> float:
    """Return the alpha of highest target accuracy; ties go to the smallest alpha (analogies)."""
    return max(sorted(curve), key=lambda alpha: curve[alpha][target])


def _feasible(curve: Accuracies, control: str, floor: float) -> list[float]:
    feasible = [alpha for alpha in sorted(curve) if curve[alpha][control] >= floor]
    if not feasible:
        best = max(at[control] for at in curve.values())
        raise NoFeasibleCoefficientError(
            f"no coefficient keeps the control accuracy on {control} at {floor:.4f} or more (best {best:.4f}); "
            "add 0 to protocol.grid or lower protocol.control_threshold"
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
        floor = settings["control_threshold"] * needs["zero_shot"].selection[0.0][cell.control]
        rule = lowest_target if cell.rule == "lowest_target" else largest_feasible
        return rule(curve, cell.targets[0], cell.control, floor)
    raise ValueError(f"unknown selection rule {cell.rule!r}")


def denominators(targets: tuple[str, ...], answers: Mapping[str, Answer], split: str) -> dict[str, float]:
    """Return each target's individually fine-tuned accuracy on a split.

    Raises:
        NoFeasibleCoefficientError: if one is zero, which leaves normalised accuracy undefined.
    """
    which = "selection" if split == SELECTION else "report"
    own = {task: getattr(answers[f"individual/{task}"], which)[1.0][task] for task in targets}
    _positive(own)
    return own


def _positive(denominators: Mapping[str, float]) -> None:
    zero = [task for task, accuracy in denominators.items() if accuracy == 0]
    if zero:
        raise NoFeasibleCoefficientError(
            f"normalised accuracy is undefined: {', '.join(zero)} has individual accuracy 0"
        )
