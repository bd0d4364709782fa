"""Task addition: one model for many tasks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.needs import Examples, Tuned
from taskvec.protocols.base import (
    REPORT,
    SELECTION,
    Answer,
    Ask,
    Cell,
    Composed,
    Learning,
    Protocol,
)
from taskvec.protocols.questions.scores import scores
from taskvec.protocols.rows import Criterion, Report, mean
from taskvec.protocols.selection import Rule, denominators
from taskvec.protocols.summing import Rows, curve, individual, zero_shot
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite
    from taskvec.needs import Vector


@register("protocol", "addition", paper="Ilharco et al., ICLR 2023, arXiv 2212.04089, section 4")
class Addition(Protocol):
    """Merges the vectors of all tasks and asks for absolute and normalised accuracy, at the searched alpha and at 1.

    ``subset_size`` k asks the same of every k of the tasks. ``joint`` adds the multi-task model trained on their union.
    A learned merge learns on the tasks' validation splits; ``tuned`` adds the run's fine-tuning method on the union of
    those as a row, to say how much of a learned merge's gain comes from its data.
    """

    kind: Literal["addition"] = "addition"
    rule: Literal["highest_normalised"] = "highest_normalised"
    subset_size: int | None = Field(None, ge=1)
    joint: bool = False
    tuned: bool = False

    def check(self, suite: Suite) -> None:
        """Check the size of subsets.

        Raises:
            UserError: if it exceeds the suite's.
        """
        if (self.subset_size or 0) > len(suite.tasks):
            raise UserError(
                f"protocol.subset_size: {self.subset_size}, but the suite has {len(suite.tasks)} tasks"
            )

    def subsets(self, suite: Suite) -> dict[str, tuple[str, ...]]:
        """Return the task subsets by cell name."""
        if self.subset_size is None:
            return {"merged": suite.tasks}
        return {
            f"merged/{'+'.join(chosen)}": chosen
            for chosen in combinations(suite.tasks, self.subset_size)
        }

    def cells(self, ask: Ask) -> list[Cell]:
        """Return zero-shot, individual, (joint, tuned,) and merged cells."""
        suite = ask.suite
        singles = {}
        for task in suite.tasks:
            singles[f"individual/{task}"] = individual(self, suite, task, ask.tuned(task))
        cells = [zero_shot(self, suite, suite.tasks), *singles.values()]
        for name, vector in self._multi_task(ask).items():
            composed = Composed(((1.0, vector),), forward=self.forward)
            question = scores(suite, suite.tasks, fixed=(1.0,), on_selection=True)
            cells.append(Cell(name, composed, question))
        for name, chosen in self.subsets(suite).items():
            cells.append(self._merged(ask, name, chosen, singles))
        return cells

    def _multi_task(self, ask: Ask) -> dict[str, Vector]:
        """Return the vectors that are tuned on several tasks together, by the row's name."""
        tasks = ask.suite.tasks
        vectors: dict[str, Vector] = {}
        if self.joint:
            vectors["joint"] = ask.tuned(*tasks)
        if self.tuned:
            vectors["tuned"] = Tuned(self._learned_on(tasks))
        return vectors

    def _learned_on(self, chosen: tuple[str, ...]) -> tuple[Examples, ...]:
        """Return the labelled validation examples that a learned merge sees."""
        return tuple(Examples(task, SELECTION, "learning", labels=True) for task in chosen)

    def _merged(
        self, ask: Ask, name: str, chosen: tuple[str, ...], singles: Mapping[str, Cell]
    ) -> Cell:
        vectors = tuple((1.0, ask.vector(task, among=chosen)) for task in chosen)
        needs = tuple((f"individual/{task}", singles[f"individual/{task}"]) for task in chosen)
        learning = self._learning(chosen, needs) if ask.learns else None
        composed = Composed(vectors, merge=True, forward=self.forward, learning=learning)
        question = scores(
            ask.suite,
            chosen,
            grid=ask.grid,
            fixed=(1.0,),
            rule=Rule(kind=self.rule),
            on_selection=1.0 not in ask.grid,
        )
        return Cell(name, composed, question, needs)

    def _learning(self, chosen: tuple[str, ...], needs: tuple[tuple[str, Cell], ...]) -> Learning:
        """Return what a learned merge learns on; its best epoch is chosen on the same examples (aTLAS)."""
        examples = self._learned_on(chosen)
        selection = tuple(Examples(task, SELECTION, "selection", labels=True) for task in chosen)
        return Learning("cross_entropy", examples, Rule(kind=self.rule), selection, needs)

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, individual, (joint, tuned,) merged and merged_alpha_1."""
        make = Rows(suite, denominators(suite.tasks, answers, REPORT))
        singles = {}
        for task in suite.tasks:
            name = f"individual/{task}"
            singles[task] = make.row("individual", answers[name], 1.0, [task], cell=name)
        rows = [
            make.row("zero_shot", answers["zero_shot"], 0.0, suite.tasks),
            make.joined("individual", singles),
        ]
        for name in ("joint", "tuned"):
            if name in answers:
                rows.append(make.row(name, answers[name], 1.0, suite.tasks))
        curves, chosen_on_validation = {}, []
        for name, chosen in self.subsets(suite).items():
            answer, at_one = answers[name], name.replace("merged", "merged_alpha_1", 1)
            merged = make.row(name, answer, answer.alpha, chosen)
            rows.append(merged)
            if 1.0 in answer.report:
                rows.append(make.row(at_one, answer, 1.0, chosen, cell=name, searched=False))
            curves[name] = curve(answer, chosen)
            chosen_on_validation.append(merged.mean("validation"))
        criterion = Criterion(name="merged/validation", value=mean(chosen_on_validation))
        return Report(rows=tuple(rows), curves=curves, criterion=criterion)
