"""The rules by which papers choose the scaling coefficient, as pure functions of validation metrics (spec 2.2).

An accuracy stands for the metric of its task, whichever that is; higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from taskvec.config import Config
from taskvec.errors import NoFeasibleCoefficientError
from taskvec.protocols.base import SELECTION, Answer

Curve = Mapping[float, Mapping[str, float]]  # alpha -> task -> accuracy
Named = Literal[
    "highest_normalised", "highest_accuracy", "early_stopping", "lowest_target", "largest_feasible"
]
BETTER = 1e-12  # by which an accuracy must exceed the best so far


class Rule(Config):
    """A selection rule by name, with the settings of those that keep a control.

    ``control_threshold`` is the share of the zero-shot control accuracy that must remain, ``perplexity_tolerance`` how
    far a control perplexity may rise instead.
    """

    kind: Named
    control_threshold: float | None = None
    perplexity_tolerance: float | None = None


class Patient(Rule):
    """The rule of a search that stops early: after more than ``patience`` coefficients below the best."""

    kind: Literal["early_stopping"] = "early_stopping"
    patience: int


def choose(
    rule: Rule,
    curve: Curve,
    targets: Sequence[str],
    control: str | None,
    answers: Mapping[str, Answer],
) -> float:
    """Return the coefficient that a rule picks from validation accuracies, given the answers it compares with.

    Raises:
        NoFeasibleCoefficientError: if the rule has no admissible coefficient.
    """
    if rule.kind == "highest_normalised":
        return highest_normalised(curve, denominators(targets, answers, SELECTION))
    if rule.kind == "highest_accuracy":
        return highest_accuracy(curve, targets)
    if isinstance(rule, Patient):
        return early_stopping(curve, targets, rule.patience)
    keeps = _keeps(rule, control, answers["zero_shot"])
    pick = lowest_target if rule.kind == "lowest_target" else largest_feasible
    return pick(curve, targets[0], keeps)


def highest_normalised(curve: Curve, denominators: Mapping[str, float]) -> float:
    """Return argmax_alpha mean_t acc_t(alpha) / acc_t(individual); ties go to the smallest alpha.

    Raises:
        NoFeasibleCoefficientError: if an individual model is at zero or below, which leaves the ratio without meaning.
    """
    _positive(denominators)

    def normalised(alpha: float) -> float:
        ratios = [curve[alpha][task] / accuracy for task, accuracy in denominators.items()]
        return sum(ratios) / len(ratios)

    return max(sorted(curve), key=normalised)  # max keeps the first of equals


def highest_accuracy(curve: Curve, targets: Sequence[str]) -> float:
    """Return the alpha of highest mean target accuracy; ties go to the smallest alpha (analogies, single vectors)."""

    def accuracy(alpha: float) -> float:
        return sum(curve[alpha][task] for task in targets) / len(targets)

    return max(sorted(curve), key=accuracy)


def early_stopping(curve: Curve, targets: Sequence[str], patience: int) -> float:
    """Return the best alpha up to where a search in ascending order stops (spec theseus 1.5).

    A lower mean target accuracy than the best so far counts one, an equal one takes the count back to zero, and the
    search stops when the count exceeds ``patience``.
    """
    best, chosen, worse = -1.0, min(curve), 0
    for alpha in sorted(curve):
        accuracy = sum(curve[alpha][task] for task in targets) / len(targets)
        if accuracy > best + BETTER:
            best, chosen, worse = accuracy, alpha, 0
        elif accuracy >= best - BETTER:
            worse = 0
        else:
            worse += 1
        if worse > patience:
            break
    return chosen


@dataclass(frozen=True)
class Keeps:
    """When an edit keeps the control: accuracy at ``bound`` or more, or perplexity (``below``) at ``bound`` or less."""

    control: str
    bound: float
    below: bool = False

    def admits(self, value: float) -> bool:
        """Return whether a control value is within the bound, which counts as within."""
        return value <= self.bound if self.below else value >= self.bound


def lowest_target(curve: Curve, target: str, keeps: Keeps) -> float:
    """Return the alpha of lowest target accuracy among those that keep the control; ties go to the smallest alpha.

    The rule of the tangent-space paper's code and of aTLAS.

    Raises:
        NoFeasibleCoefficientError: if no coefficient keeps the control.
    """
    return min(_feasible(curve, keeps), key=lambda alpha: curve[alpha][target])


def largest_feasible(curve: Curve, target: str, keeps: Keeps) -> float:
    """Return the largest alpha that keeps the control, the rule of Ilharco et al. (2023).

    Raises:
        NoFeasibleCoefficientError: if no coefficient keeps the control.
    """
    return max(_feasible(curve, keeps))


def denominators(
    targets: Sequence[str], answers: Mapping[str, Answer], split: str
) -> dict[str, float]:
    """Return each target's individually fine-tuned accuracy on a split.

    Raises:
        NoFeasibleCoefficientError: if one is zero or below, which leaves normalised accuracy without meaning.
    """
    own = {}
    for task in targets:
        answer = answers[f"individual/{task}"]
        scores = answer.selection if split == SELECTION else answer.report
        own[task] = scores[1.0][task]
    _positive(own)
    return own


def _keeps(rule: Rule, control: str, zero_shot: Answer) -> Keeps:
    start = zero_shot.selection[0.0][control]
    if rule.perplexity_tolerance is not None:
        return Keeps(control, start + rule.perplexity_tolerance, below=True)
    return Keeps(control, rule.control_threshold * start)


def _feasible(curve: Curve, keeps: Keeps) -> list[float]:
    feasible = [alpha for alpha in sorted(curve) if keeps.admits(curve[alpha][keeps.control])]
    if feasible:
        return feasible
    values = [at[keeps.control] for at in curve.values()]
    if keeps.below:
        metric, side, best, remedy = (
            "perplexity",
            "less",
            min(values),
            "raise protocol.perplexity_tolerance",
        )
    else:
        metric, side, best, remedy = (
            "accuracy",
            "more",
            max(values),
            "lower protocol.control_threshold",
        )
    raise NoFeasibleCoefficientError(
        f"no coefficient keeps the control {metric} on {keeps.control} at {keeps.bound:.4f} or {side} "
        f"(best {best:.4f}); add 0 to protocol.grid or {remedy}"
    )


def _positive(denominators: Mapping[str, float]) -> None:
    for task, accuracy in denominators.items():
        if accuracy <= 0:  # correlations can be negative
            raise NoFeasibleCoefficientError(
                f"normalised accuracy is undefined: {task} has individual accuracy {accuracy:.3g}; "
                "fine-tune it better, or leave it out of suite.tasks"
            )
