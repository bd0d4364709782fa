"""What a protocol is: which models are asked which questions, and what it makes of the answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from typing import Protocol as Typed

from pydantic import Field

from taskvec.config import Component, Config, Seeded
from taskvec.needs import (
    AnswerOf,
    Examples,
    ForwardMode,
    Given,
    Grant,
    Needs,
    Scope,
    Signed,
    Vector,
)
from taskvec.protocols.rows import Metric, Report

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite
    from taskvec.vectors.composition import Composition

SELECTION, REPORT = "val", "test"


@dataclass(frozen=True)
class Learning:
    """What a learned merge learns on: the examples, the objective, and how the best step is chosen.

    A protocol names its objective; the plan puts the component in its place, or the merge's own. ``select`` is a
    :class:`taskvec.protocols.selection.Rule` that looks at the scores on the examples of ``selection`` after each
    epoch; None keeps the last step. ``needs`` are the cells that the rule compares with.
    """

    objective: Any
    examples: tuple[Examples, ...]
    select: Any = None
    selection: tuple[Examples, ...] = ()
    needs: tuple[tuple[str, Cell], ...] = ()

    @property
    def unselected(self) -> Learning:
        """The same learning, of which the last step is kept."""
        return replace(self, select=None, selection=(), needs=())


@dataclass(frozen=True)
class Composed:
    """A model to ask: signed vectors under the run's merge, or as their plain sum where ``merge`` is False.

    ``coefficients`` says whether one coefficient scales all vectors or each has its own. ``apart`` names the tasks that
    the vectors answer for, each in a model of its own. ``forward`` overrides the vectors' forward mode (post hoc
    linearisation).
    """

    vectors: tuple[tuple[float, Vector], ...] = ()
    merge: bool = False
    coefficients: Literal["shared", "per_task"] = "shared"
    apart: tuple[str, ...] = ()
    forward: ForwardMode | None = None
    learning: Learning | None = None


class Answer(Config):
    """A question's result.

    Scores: metrics as ``{alpha: {task: value}}`` per split, and the coefficient that the rule chose (``alphas`` by task
    where each vector has its own). Other questions: ``values``. ``excluded`` lists coefficients at which something was
    not finite, with the reason.
    """

    alpha: float | None = None
    alphas: dict[str, float] = {}
    rule: str | None = None
    selection: dict[float, dict[str, float]] = {}
    report: dict[float, dict[str, float]] = {}
    values: dict[str, Any] = {}
    excluded: dict[float, str] = {}


class Question(Component):
    """Something that can be asked of a composition or of vectors; one file, registered under "question".

    ``models`` are the kinds of composition that it can be asked of; ``of_vectors`` ones look at the vectors too, and
    those with ``looks`` at files of their own. ``as_held`` ones ask what the model predicts with weights in the dtype
    of ``compute.weights``, the others look at it in float32.
    ``summary`` turns an answer into the rows of an analysis: row name -> its quantity, with unit and direction.
    """

    models: ClassVar[frozenset[str]] = frozenset({"one", "per_task"})
    looks: ClassVar[bool] = False
    of_vectors: ClassVar[bool] = False
    as_held: ClassVar[bool] = False
    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard", "tangent"})
    capabilities: ClassVar[frozenset[str]] = frozenset()  # what a backbone must give

    def needs(self, scope: Scope) -> Needs:
        """Return the examples and other cells' answers that :meth:`answer` wants to be given."""
        return ()

    @abstractmethod
    def answer(
        self, given: Given, composition: Composition, vectors: Sequence[Signed]
    ) -> tuple[Answer, dict]:
        """Return the answer and tensors to keep beside it (outcomes per test example)."""

    def summary(self, answer: Answer) -> dict[str, Metric]:
        """Return the rows of an analysis."""
        return {}


@dataclass(frozen=True)
class Cell:
    """One model asked one question; ``needs`` are other cells whose answers the question compares with."""

    name: str
    composed: Composed
    question: Question
    needs: tuple[tuple[str, Cell], ...] = field(default=())

    def answers(self) -> dict[str, AnswerOf]:
        """Return the needs for the other cells' answers, by the name that the question knows them under."""
        return {name: AnswerOf(cell) for name, cell in self.needs}


class Ask(Typed):
    """What a protocol builds its cells with: the suite, the grid of coefficients, and vectors by expression.

    ``learns`` says whether the run's merge is learned, ``late`` names the transforms that stand after it.
    """

    suite: Suite
    grid: tuple[float, ...]
    backbone: Any
    learns: bool
    late: tuple[str, ...]

    def vector(
        self, task: str, among: Sequence[str] | None = None, without: tuple[str, ...] = ()
    ) -> Vector:
        """Return a task's vector after the run's transforms; a joint one is fitted over ``among`` (None: the suite).

        Neither fine-tuning nor transforms look at the tasks of ``without``.
        """

    def tuned(self, *tasks: str, ascend: bool = False) -> Vector:
        """Return the vector tuned on the evaluated backbone, before any transform: a reference row's."""

    def drawn(self, like: Vector) -> Vector:
        """Return a random vector with the norms of another."""


class Protocol(Seeded):
    """Asks cells and sums up their answers; ``grid`` None takes the transform's or the merge's own.

    ``uses_control``: the suite's control is measured. ``unseen_targets``: labels of some tasks that are reported on
    must not be learned from, not even by a head. ``post_hoc`` evaluates vectors of standard fine-tuning in the model
    linearised at theta_0, denominators too. ``transductive`` grants unlabelled test examples for calibration and
    learning.
    """

    grid: tuple[float, ...] | None = Field(None, min_length=1)
    post_hoc: bool = False
    transductive: bool = False

    uses_control: ClassVar[bool] = False
    unseen_targets: ClassVar[bool] = False
    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard", "tangent"})

    @property
    def forward(self) -> ForwardMode | None:
        """The forward mode that the protocol evaluates every model in; None leaves each vector's own."""
        return "tangent" if self.post_hoc else None

    def grants(self, suite: Suite) -> Sequence[Grant]:
        """Return what components may see: train to learn from, val to learn and select on, test to report.

        Statistics without labels are calibrated on unlabelled training examples.
        """
        test = [Grant(use, REPORT, labels=False) for use in ("calibration", "learning")]
        return (
            Grant("learning", "train", labels=True),
            Grant("calibration", "train", labels=False),
            Grant("learning", SELECTION, labels=True),
            Grant("calibration", SELECTION, labels=False),
            Grant("selection", SELECTION, labels=True),
            Grant("report", REPORT, labels=True),
            *(test if self.transductive else ()),
        )

    def shared(self, suite: Suite) -> tuple[str, ...]:
        """Return the tasks that a component may see beside its own: all of the suite unless a protocol keeps some."""
        return suite.tasks

    @abstractmethod
    def check(self, suite: Suite) -> None:
        """Raise UserError where the suite lacks what the protocol needs."""

    @abstractmethod
    def cells(self, ask: Ask) -> list[Cell]:
        """Return the cells the protocol asks for."""

    @abstractmethod
    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return rows and curves from the answers by cell name."""
