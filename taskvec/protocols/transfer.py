"""Transfer: what a carried vector gives the target at once, and as a start for fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from taskvec.errors import UserError
from taskvec.needs import Examples, Selected, Snapshot, Tuned, Vector
from taskvec.protocols.base import (
    SELECTION,
    Answer,
    Ask,
    Cell,
    Composed,
    Learning,
    Protocol,
)
from taskvec.protocols.course import pictured
from taskvec.protocols.questions.scores import scores
from taskvec.protocols.rows import Criterion, Metric, Report, Row, mean
from taskvec.protocols.selection import Patient, Rule
from taskvec.protocols.summing import Rows, curve, individual, zero_shot
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite

Model = Literal["transported", "merged", "others", "drawn"]
SINGLE = ("transported", "drawn")  # models of one vector, which there is none of after a merge
HIGHEST = Rule(kind="highest_accuracy")


@register("protocol", "transfer", paper="Theseus, 2026; spec theseus 1.5 and 2")
class Transfer(Protocol):
    """theta_0 + alpha tau on the evaluated backbone, for vectors as the run's transforms leave them.

    ``models`` are asked about: ``transported`` (a task's own vector), ``merged`` (those of all tasks under the run's
    merge, one model), ``others`` (a target's model of the other tasks' vectors, made without a look at the target) and
    ``drawn`` (a random vector of the norms of the task's own). Each coefficient is that of highest validation accuracy:
    one for each task and model, or with ``alpha`` shared one for all tasks of a model. Zero is among them only where
    ``grid`` says so. ``patience`` chooses among those up to which the authors' early stopping searches.

    ``gain`` is (a - z) / (f - z) for accuracy a, zero-shot z and the model fine-tuned on the task, f (row
    ``individual``); its mean is that of the mean accuracies. Baselines are other transforms of a sweep; each searches
    coefficients of its own.

    ``starts`` names models that fine-tuning starts from, at their coefficients, beside ``scratch`` from theta_0; the
    rows START_start/SHARE are the models after each share ``course`` of the training.
    """

    kind: Literal["transfer"] = "transfer"
    models: tuple[Model, ...] = Field(("transported",), min_length=1)
    alpha: Literal["per_task", "shared"] = "per_task"
    patience: int | None = Field(None, ge=0)
    individual: bool = True
    starts: tuple[Model, ...] = ()
    course: tuple[float, ...] = Field((0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0), min_length=1)

    @field_validator("models", "starts")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("names a model twice")
        return names

    @field_validator("course")
    @classmethod
    def _shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
            raise ValueError("takes shares of the training in (0, 1], in ascending order")
        return shares

    def asked(self) -> tuple[Model, ...]:
        """Return the models that are asked about, those to start from among them."""
        return tuple(dict.fromkeys((*self.models, *self.starts)))

    def check(self, suite: Suite) -> None:
        """Check that there are other tasks where models are made of them.

        Raises:
            UserError: if there is one task only.
        """
        if "others" in self.asked() and len(suite.tasks) < 2:
            raise UserError(
                "protocol.models: others is made of the other tasks' vectors; give the suite two or more tasks"
            )

    # Cells

    def cells(self, ask: Ask) -> list[Cell]:
        """Return zero-shot, individual, each model's and each start's cells.

        Raises:
            UserError: if a model of single vectors is asked about, and a transform stands after the merge.
        """
        single = [name for name in self.asked() if name in SINGLE]
        if ask.late and single:
            raise UserError(
                f"transform.{ask.late[0]}.on=merged: no single vectors come out of it, and protocol.models or starts "
                f"asks about {single[0]}; use protocol.models=[merged]"
            )
        suite = ask.suite
        cells = [zero_shot(self, suite, suite.tasks)]
        if self.individual:
            cells += [individual(self, suite, task, ask.tuned(task)) for task in suite.tasks]
        for name in self.asked():
            cells += self._model(ask, name).values()
        return [*cells, *self._courses(ask)]

    def _model(self, ask: Ask, name: Model) -> dict[str, Cell]:
        """Return the cell that answers for each task: one for each, or the same for all."""
        tasks = ask.suite.tasks
        if name == "merged":
            vectors = {task: ask.vector(task) for task in tasks}
            cell = self._cell(ask, name, tasks, self._merged(ask, vectors, tasks))
            return dict.fromkeys(tasks, cell)
        if name == "others":
            return {task: self._others(ask, task) for task in tasks}
        vectors = {task: ask.vector(task) for task in tasks}
        if name == "drawn":
            vectors = {task: ask.drawn(vector) for task, vector in vectors.items()}
        if self.alpha == "shared":
            apart = Composed(_plain(vectors), apart=tasks, forward=self.forward)
            return dict.fromkeys(tasks, self._cell(ask, name, tasks, apart))
        found = {}
        for task, vector in vectors.items():
            composed = Composed(((1.0, vector),), forward=self.forward)
            found[task] = self._cell(ask, f"{name}/{task}", (task,), composed)
        return found

    def _others(self, ask: Ask, task: str) -> Cell:
        others = tuple(other for other in ask.suite.tasks if other != task)
        vectors = {other: ask.vector(other, among=others, without=(task,)) for other in others}
        return self._cell(ask, f"others/{task}", (task,), self._merged(ask, vectors, (task,)))

    def _merged(
        self, ask: Ask, vectors: Mapping[str, Vector], targets: tuple[str, ...]
    ) -> Composed:
        """Return vectors under the run's merge; one that learns does so on the targets' validation examples."""
        learning = None
        if ask.learns:
            examples = tuple(Examples(task, SELECTION, "learning", labels=True) for task in targets)
            looked = tuple(Examples(task, SELECTION, "selection", labels=True) for task in targets)
            learning = Learning("cross_entropy", examples, HIGHEST, looked)
        return Composed(_plain(vectors), merge=True, forward=self.forward, learning=learning)

    def _cell(self, ask: Ask, name: str, tasks: tuple[str, ...], composed: Composed) -> Cell:
        grid = ask.grid
        if self.grid is None:
            grid = tuple(alpha for alpha in grid if alpha > 0)
        rule = HIGHEST
        if self.patience is not None:
            rule = Patient(patience=self.patience)
        return Cell(name, composed, scores(ask.suite, tasks, grid=grid, rule=rule))

    def _courses(self, ask: Ask) -> list[Cell]:
        """Return the cells of each start's models along its training."""
        cells = []
        for name in self.trainings():
            models = {} if name == "scratch" else self._model(ask, name)
            for task in ask.suite.tasks:
                start = Selected(models[task], task) if models else None
                on = Examples(task, "train", "learning", labels=True)
                tuned = Tuned((on,), start=start)
                for share in self.course:
                    vector = Snapshot(tuned, share, self.course)
                    composed = Composed(((1.0, vector),), forward=self.forward)
                    question = scores(ask.suite, (task,), fixed=(1.0,), on_selection=True)
                    cells.append(Cell(f"{name}_start/{share:g}/{task}", composed, question))
        return cells

    def trainings(self) -> tuple[str, ...]:
        """Return what fine-tuning starts from: theta_0 and the models of ``starts``, or nothing."""
        return ("scratch", *self.starts) if self.starts else ()

    # Report

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, (individual,) one for each model, and one for each share of each training."""
        make = Rows(suite)
        zero = make.row("zero_shot", answers["zero_shot"], 0.0, suite.tasks)
        rows = [zero]
        if self.individual:
            rows.append(_joined(make, suite, answers, "individual", "individual/{}"))
        rows += [self._row(make, suite, answers, name) for name in self.asked()]
        for name in self.trainings():
            for share in self.course:
                row_name = f"{name}_start/{share:g}"
                rows.append(_joined(make, suite, answers, row_name, row_name + "/{}"))
        if self.individual:
            rows = [with_gain(row, zero, rows[1]) for row in rows]
        by_name = {row.row: row for row in rows}
        first = by_name[self.models[0]]
        criterion = Criterion(name=f"{first.row}/validation", value=first.mean("validation"))
        curves = {}
        for name, answer in answers.items():
            if answer.rule:
                at_first = next(iter(answer.selection.values()))
                about = tuple(at_first)
                curves[name] = curve(answer, about)
        maps = {}
        if self.starts:
            maps["accuracy_along_training"] = pictured(by_name, self.trainings(), self.course)
        return Report(rows=tuple(rows), curves=curves, maps=maps, criterion=criterion)

    def _row(self, make: Rows, suite: Suite, answers: Mapping[str, Answer], name: str) -> Row:
        if name in answers:
            return make.row(name, answers[name], answers[name].alpha, suite.tasks)
        return _joined(make, suite, answers, name, name + "/{}")


def _plain(vectors: Mapping[str, Vector]) -> tuple[tuple[float, Vector], ...]:
    return tuple((1.0, vector) for vector in vectors.values())


def _joined(make: Rows, suite: Suite, answers: Mapping[str, Answer], name: str, cells: str) -> Row:
    """Return the row of the cells of a pattern, each of which answers for one task."""
    parts = {}
    for task in suite.tasks:
        cell = cells.format(task)
        answer = answers[cell]
        alpha = answer.alpha if answer.rule else 1.0
        parts[task] = make.row(name, answer, alpha, [task], cell=cell)
    return make.joined(name, parts)


def with_gain(row: Row, zero_shot: Row, tuned: Row) -> Row:
    """Return a row with its ``gain``, the share (a - z) / (f - z) of the gain of the fine-tuned models.

    The mean is that of the mean accuracies; tasks, or means, that fine-tuning does not raise have none.
    """
    start, end = zero_shot.values("accuracy"), tuned.values("accuracy")
    shares, reached = {}, row.values("accuracy")
    for task, value in reached.items():
        if end[task] > start[task]:
            shares[task] = (value - start[task]) / (end[task] - start[task])
    below, above = mean(start.values()), mean(end.values())
    share = None
    if above > below:
        share = (mean(reached.values()) - below) / (above - below)
    gain = Metric(values=shares, mean=share)
    return row.model_copy(update={"metrics": {**row.metrics, "gain": gain}})
