"""The cells a protocol asks for: which vectors, which coefficients, chosen how and on what, reported where."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from taskvec.config import Component, Config
from taskvec.errors import UserError

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite

Source = Literal["finetune", "ascent", "random"]
SELECTION, REPORT = "val", "test"


@dataclass(frozen=True)
class VectorRef:
    """A vector by what it was trained on; several tasks mean joint training on their union.

    ``source`` is ``finetune`` (descent), ``ascent`` (gradient ascent) or ``random`` (Gaussian, with the norms of the
    fine-tuned vector tensor by tensor). Reference rows use vectors as fine-tuned, before any transform.
    """

    tasks: tuple[str, ...]
    source: Source = "finetune"
    transformed: bool = True

    @property
    def label(self) -> str:
        """A short name for people."""
        name = "+".join(self.tasks) if len(self.tasks) < 3 else f"{len(self.tasks)} tasks"
        return name if self.source == "finetune" else f"{self.source} {name}"


@dataclass(frozen=True)
class Cell:
    """One question: compose ``vectors`` (with signs), search a coefficient, report accuracies.

    The coefficients of ``grid`` are evaluated on the validation split of ``targets`` and ``control``; ``rule`` picks
    one of them with the help of the cells in ``needs``; it and those of ``fixed`` are evaluated on the test split.
    A ``measure`` asks for another quantity of the vectors on the test split, by its name in
    :data:`taskvec.protocols.measures.MEASURES`, with ``measure_settings``; those of ``COMPOSED`` there look at the
    merged model at the first of ``fixed``. ``places`` are paths that a measure needs but that do not shape its answer.
    ``merge`` False means the plain sum, whatever the run's merge is. Fixed coefficients are evaluated on validation
    too where ``on_selection`` asks for it (denominators and zero-shot controls of selection rules).
    """

    name: str
    vectors: tuple[tuple[float, VectorRef], ...]
    targets: tuple[str, ...]
    control: str | None = None
    grid: tuple[float, ...] = ()
    rule: str | None = None
    rule_settings: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, Cell] = field(default_factory=dict)
    fixed: tuple[float, ...] = ()
    on_selection: bool = False
    merge: bool = True
    measure: str | None = None
    measure_settings: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task whose accuracy is measured."""
        return self.targets + ((self.control,) if self.control else ())

    def settings(self) -> dict[str, Any]:
        """Return all that shapes the answer besides inputs, as JSON values."""
        measured = {"measure": self.measure, "measure_settings": dict(self.measure_settings)} if self.measure else {}
        return measured | {
            "vectors": [[sign, list(ref.tasks), ref.source, ref.transformed] for sign, ref in self.vectors],
            "targets": list(self.targets),
            "control": self.control,
            "grid": list(self.grid),
            "rule": self.rule,
            "rule_settings": dict(self.rule_settings),
            "fixed": list(self.fixed),
            "on_selection": self.on_selection,
        }


class Answer(Config):
    """A cell's result: metrics as ``{alpha: {task: value}}`` per split and the coefficient chosen, or a measure's
    ``values``.
    """

    alpha: float | None = None
    rule: str | None = None
    selection: dict[float, dict[str, float]] = {}
    report: dict[float, dict[str, float]] = {}
    values: dict[str, Any] = {}


class Row(Config):
    """One line of a result: a named model, its coefficient, its accuracy per task and on average.

    ``accuracy`` holds the metric of each task: accuracy where its definition names no other.
    ``alphas`` holds each task's coefficient where tasks have models of their own (individual models, negations);
    ``alpha`` is their mean. ``normalised`` divides by ``denominators``, the individually fine-tuned model's accuracy on
    the same split. ``control`` is the accuracy on the control task, ``perplexity`` stands in its place for a corpus.
    ``validation`` is ``accuracy`` on the validation split, to choose recipes by, where the coefficient was evaluated
    there.
    """

    row: str
    alpha: float | None = None
    alphas: dict[str, float] = {}
    selected_on: str | None = None
    rule: str | None = None
    accuracy: dict[str, float]
    mean: float
    normalised: dict[str, float] = {}
    normalised_mean: float | None = None
    denominators: dict[str, float] = {}
    validation: dict[str, float] = {}
    control: float | None = None
    perplexity: float | None = None


class Report(Config):
    """What a protocol makes of its answers: rows, coefficient curves, matrices and maps by name, and the one number
    that sweeps optimise.
    """

    rows: tuple[Row, ...]
    curves: dict[str, list[dict[str, Any]]] = {}
    maps: dict[str, dict[str, Any]] = {}
    primary: float


class Protocol(Component):
    """Asks cells and sums up their answers; ``grid`` None takes the merge's own.

    ``uses_control`` says whether the suite's control is measured, ``unseen_targets`` whether the labels of targets must
    not be learned from, not even by a head, ``generates`` whether the model writes texts. ``post_hoc`` evaluates
    vectors of standard fine-tuning in the model linearised at theta_0, denominators too.
    """

    grid: tuple[float, ...] | None = Field(None, min_length=1)
    post_hoc: bool = False

    uses_control: ClassVar[bool] = False
    unseen_targets: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard", "tangent"})

    @abstractmethod
    def check(self, suite: Suite) -> None:
        """Raise UserError where the suite lacks what the protocol needs."""

    @abstractmethod
    def cells(self, suite: Suite, grid: Sequence[float]) -> list[Cell]:
        """Return the cells the protocol asks for."""

    @abstractmethod
    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return rows and curves from the answers by cell name."""


def only_classes(suite: Suite, what: str) -> None:
    """Check that every task is a classification.

    Raises:
        UserError: naming the tasks whose labels are scores; ``what`` compares predicted classes.
    """
    scored = [task for task in suite.tasks if getattr(suite.definitions.get(task), "regression", False)]
    if scored:
        raise UserError(f"{what} compares predicted classes; leave {', '.join(scored)} out of suite.tasks")


def individual(task: str, control: str | None = None) -> Cell:
    """Return the cell of a task's own fine-tuned model, theta_0 + tau_t: the denominator of normalised accuracy."""
    vector = ((1.0, VectorRef((task,), transformed=False)),)
    return Cell(f"individual/{task}", vector, (task,), control, fixed=(1.0,), on_selection=True, merge=False)


def zero_shot(targets: tuple[str, ...], control: str | None = None) -> Cell:
    """Return the cell of the pre-trained model."""
    return Cell("zero_shot", (), targets, control, fixed=(0.0,), on_selection=True, merge=False)


def row(
    name: str, answer: Answer, alpha: float | None, targets: Sequence[str], *,
    control: str | None = None, denominators: Mapping[str, float] | None = None, searched: bool = True,
) -> Row:  # fmt: skip
    """Return an answer's line at ``alpha`` on the test split; ``searched`` False says that alpha was given."""
    alpha_at = alpha if alpha is not None else next(iter(answer.report))
    at, before = answer.report[alpha_at], answer.selection.get(alpha_at, {})
    accuracy = {task: at[task] for task in targets}
    chosen = searched and answer.rule is not None
    normalised = {task: value / denominators[task] for task, value in accuracy.items()} if denominators else {}
    return Row(
        row=name, alpha=alpha, accuracy=accuracy, mean=mean(accuracy.values()),
        selected_on=SELECTION if chosen else None, rule=answer.rule if chosen else None,
        normalised=normalised, normalised_mean=mean(normalised.values()) if normalised else None,
        denominators=dict(denominators or {}), validation={task: before[task] for task in targets if before},
        control=at[control] if control else None,
    )  # fmt: skip


def joined(name: str, parts: Mapping[str, Row]) -> Row:
    """Return the line that holds one target from each of several rows (individual models, negations)."""
    accuracy = {task: part.accuracy[task] for task, part in parts.items()}
    normalised = {task: part.normalised[task] for task, part in parts.items() if part.normalised}
    controls = [part.control for part in parts.values() if part.control is not None]
    first = next(iter(parts.values()))
    alphas = {task: part.alpha for task, part in parts.items()}
    return Row(
        row=name, alpha=mean(alphas.values()), alphas=alphas,
        selected_on=first.selected_on, rule=first.rule, accuracy=accuracy, mean=mean(accuracy.values()),
        normalised=normalised, normalised_mean=mean(normalised.values()) if normalised else None,
        denominators={t: v for part in parts.values() for t, v in part.denominators.items()},
        validation={t: v for part in parts.values() for t, v in part.validation.items()},
        control=mean(controls) if controls else None,
    )  # fmt: skip


def mean(values: Any) -> float:
    """Return the arithmetic mean."""
    values = list(values)
    return sum(values) / len(values)


def curve(answer: Answer, targets: Sequence[str], control: str | None = None) -> list[dict[str, Any]]:
    """Return an answer's selection curve: one point per coefficient of the grid."""
    points = []
    for alpha, at in sorted(answer.selection.items()):
        point = {"alpha": alpha, "mean": mean(at[t] for t in targets), "accuracy": {t: at[t] for t in targets}}
        points.append(point | ({"control": at[control]} if control else {}))
    return points
