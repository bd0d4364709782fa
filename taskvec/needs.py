"""What a component may ask for, and what it is given. Needs are declared when planning, so nothing here imports torch.

A need is a frozen record and serves as its own key: what a component asked for with ``need`` it reads as
``given[need]``. ``use`` and ``labels`` of examples are permissions; they say what a component may do with the rows and
appear under the result's ``data_seen``, but do not change the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from taskvec.config import Component

if TYPE_CHECKING:
    from torch import Tensor

Use = Literal["learning", "calibration", "selection", "report"]
Side = Literal["source", "target"]
ForwardMode = Literal["standard", "tangent"]

# Needs


@dataclass(frozen=True)
class Budget:
    """How many rows of a split: ``count``, a ``fraction``, or ``shots`` per class; drawn by ``seed``, in file order."""

    count: int | None = None
    fraction: float | None = None
    shots: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Beyond(Budget):
    """``count`` rows that the same draw takes after its first ``after`` ones."""

    after: int = 0


@dataclass(frozen=True)
class Examples:
    """Rows of one split of a task, for a use, with labels or without."""

    task: str
    split: str
    use: Use
    labels: bool = False
    budget: Budget | None = None

    def within(self, budget: Budget | None) -> Examples:
        """Return the same examples under another budget."""
        return replace(self, budget=budget)


@dataclass(frozen=True)
class Tuned:
    """The vector that the run's fine-tuning method learns: one task, or several jointly.

    ``ascend`` turns the loss's sign; ``start`` is a vector to start from instead of theta_0. ``without`` are tasks that
    the method must not look at beside its own (the target of a few-shot protocol).
    """

    on: tuple[Examples, ...]
    side: Side = "target"
    ascend: bool = False
    start: Vector | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Imported:
    """The vector of one task that a checkpoint or adapter on disk holds."""

    task: str
    place: str
    side: Side = "target"


@dataclass(frozen=True)
class Drawn:
    """A random vector, Gaussian, with the norm of ``like`` in every tensor."""

    like: Vector
    seed: int


@dataclass(frozen=True)
class Changed:
    """A vector after the run's transform of the name ``by``; ``among``: the vectors that a joint one is fitted over.

    ``without`` are tasks that the transform must not look at.
    """

    of: Vector
    by: str
    among: tuple[Vector, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Merged:
    """The vector that the run's merge makes of signed vectors."""

    parts: tuple[tuple[float, Vector], ...]


@dataclass(frozen=True)
class Selected:
    """What the model of a cell, at the coefficient that its answer chose, adds to theta_0 for a task."""

    cell: Any
    task: str


@dataclass(frozen=True)
class Snapshot:
    """A vector after a share ``at`` of its training; ``kept`` are all shares at which that training is kept."""

    of: Tuned
    at: float
    kept: tuple[float, ...]


Vector: TypeAlias = Tuned | Imported | Drawn | Changed | Merged | Selected | Snapshot


def tasks_of(vector: Vector) -> tuple[str, ...]:
    """Return the tasks that a vector was made for, in order."""
    if isinstance(vector, Tuned):
        return tuple(examples.task for examples in vector.on)
    if isinstance(vector, Imported):
        return (vector.task,)
    if isinstance(vector, Selected):
        return (vector.task,)
    if isinstance(vector, Merged):
        found = [task for _, part in vector.parts for task in tasks_of(part)]
        return tuple(dict.fromkeys(found))
    inner = vector.like if isinstance(vector, Drawn) else vector.of
    return tasks_of(inner)


def all_tasks_of(vectors: Iterable[Vector]) -> tuple[str, ...]:
    """Return the tasks that several vectors were made for, each once, in order."""
    found: dict[str, None] = {}
    for vector in vectors:
        found.update(dict.fromkeys(tasks_of(vector)))
    return tuple(found)


def label_of(vector: Vector) -> str:
    """Return a short name of a vector, for people only."""
    tasks = tasks_of(vector)
    name = "+".join(tasks) if len(tasks) < 3 else f"{len(tasks)} tasks"
    if isinstance(vector, Tuned):
        name = f"ascent {name}" if vector.ascend else name
        return name if vector.start is None else f"{name} from {label_of(vector.start)}"
    if isinstance(vector, Drawn):
        return f"random {name}"
    if isinstance(vector, Changed):
        return f"{label_of(vector.of)}, {vector.by}"
    if isinstance(vector, Selected):
        return f"{vector.cell.name} at its coefficient"
    if isinstance(vector, Snapshot):
        return f"{label_of(vector.of)} at {vector.at:g}"
    return f"merged {name}" if isinstance(vector, Merged) else name


@dataclass(frozen=True)
class Statistics:
    """A statistic of a model on examples: of theta_0, or with ``at`` of theta_0 + that vector.

    ``pair`` sees rows of the source and of the target model together, the same examples in both.
    """

    what: Component
    on: Examples
    at: Vector | None = None
    side: Side = "target"
    pair: bool = False


@dataclass(frozen=True)
class AnswerOf:
    """Another cell's answer, by the cell."""

    cell: Any


Need: TypeAlias = Examples | Statistics | Vector | AnswerOf

# Permissions


@dataclass(frozen=True)
class Grant:
    """A split that a protocol lets components see for a use; ``tasks`` None means every task of the suite."""

    use: Use
    split: str
    labels: bool
    tasks: tuple[str, ...] | None = None

    def covers(self, need: Examples) -> bool:
        """Return whether a need stays within the grant."""
        known = self.tasks is None or need.task in self.tasks
        return (
            known
            and self.use == need.use
            and self.split == need.split
            and (self.labels or not need.labels)
        )


# What is known when planning, and what is given when computing


class Scope(Protocol):
    """What a component knows when it declares its needs.

    ``tasks`` are those of the component's own work: the tasks a vector is tuned on, the task of the vector that a
    transform changes (a joint one: of all vectors it is fitted over), the tasks of a merge's vectors. ``side`` is
    "source" for all that stands before the transform that moves vectors, else "target". ``backbone`` is that of the
    side, ``source`` the one that vectors come from. ``learning`` are the granted examples to learn from.
    """

    tasks: tuple[str, ...]
    side: Side
    backbone: Any
    source: Any
    learning: tuple[Examples, ...]

    def others(self, *tasks: str) -> tuple[str, ...]:
        """Return the suite's tasks without these and without those that the protocol keeps back."""

    def vector(self, task: str) -> Vector:
        """Return the vector of a task at this point of the chain of transforms (for a merge, after it)."""


class View(Protocol):
    """The rows of one need: decoded inputs, labels where they were granted, and the task's head.

    Inputs are uint8 images [N, 3, H, W] or int32 token ids [N, L] padded with -1; labels are int64 classes or float32
    scores [N].
    """

    head: Tensor | None
    regression: bool

    def __len__(self) -> int: ...

    def take(self, rows: Tensor | slice) -> Tensor:
        """Return the inputs of some rows, on the device."""

    def labels(self, rows: Tensor | slice | None = None) -> Tensor:
        """Return labels; an error that names task and split where they were not granted."""

    def lengths(self) -> Tensor | None:
        """Return the number of tokens of each text [N]; None for images."""

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor | slice]:
        """Yield the row numbers of each batch."""


class Checkpointed(Protocol):
    """Where an unfinished computation keeps its state."""

    def restore(self) -> Mapping[str, Any] | None:
        """Return the last state saved, None if there is none."""

    def save_if_due(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save a state (tensors and JSON values, nested in mappings) if enough time has passed since the last."""


Observe: TypeAlias = Callable[[int, int, Mapping[str, float]], None]  # step, total, metrics


class Signed(NamedTuple):
    """A task vector as a merge gets it: what it is, its sign, and its deltas without the sign."""

    expression: Vector
    sign: float
    vector: Any

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the vector was made for."""
        return tasks_of(self.expression)

    @property
    def delta(self) -> Any:
        """The task vector times its sign."""
        return self.vector if self.sign == 1 else self.vector * self.sign


class Given(Protocol):
    """What a computation is given: ``given[need]`` for each declared need, lazily, and the models it works on.

    A need gives: Examples a :class:`View`, Statistics what the statistic's ``unpack`` returns (memory-mapped), a
    vector a ``TaskVector``, AnswerOf an ``Answer``. ``model`` is the model of the result, ``source`` the model that the
    vector belongs to (the same unless a transform moves it); both have ``parameters`` (theta_0 by name), ``layers``
    (LinearLayer), ``spaces`` (per parameter, the space of each axis) and ``module``. ``views`` (by task), ``start``,
    ``ascend`` and ``kept`` (shares of the training to keep) are for fine-tuning; ``answers`` are those of the cells
    that a question, or the selection of a learned merge, compares with, by name. ``learning`` and ``objective`` are
    what a learned merge learns on and by.
    """

    scope: Scope
    model: Any
    source: Any
    evaluator: Any
    seed: int
    device: str
    checkpoint: Checkpointed | None
    observe: Observe
    views: Mapping[str, View]
    start: Any
    ascend: bool
    kept: tuple[float, ...]
    answers: Mapping[str, Any]
    learning: Any
    objective: Any

    def __getitem__(self, need: Need) -> Any: ...


Needs: TypeAlias = Sequence[Need]
