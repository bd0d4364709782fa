"""Task analogies: a is to b as c is to the target, for which no data is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.errors import UserError
from taskvec.needs import Examples
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
from taskvec.protocols.rows import Criterion, Report
from taskvec.protocols.selection import Rule, denominators
from taskvec.protocols.summing import Rows, curve, individual, zero_shot
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.data.tasks import Suite


@register("protocol", "analogy", paper="Ilharco et al., ICLR 2023, arXiv 2212.04089, section 5")
class Analogy(Protocol):
    """theta_0 + alpha * (tau_c + (tau_b - tau_a)), evaluated on the target task.

    The suite's tasks a, b, c and target form a grid of two domains and two groups of classes: a and b share a domain,
    a and c a group. The coefficient is chosen on the target's validation split, as in the paper. ``auxiliary`` is tau_c
    alone.
    """

    kind: Literal["analogy"] = "analogy"
    rule: Literal["highest_accuracy"] = "highest_accuracy"
    a: str
    b: str
    c: str
    target: str

    unseen_targets: ClassVar[bool] = True

    def check(self, suite: Suite) -> None:
        """Check that a, b, c and target are four tasks of the suite.

        Raises:
            UserError: naming the role that is not.
        """
        for role in ("a", "b", "c", "target"):
            task = getattr(self, role)
            if task not in suite.tasks:
                raise UserError(
                    f"protocol.{role}: {task!r} is not in suite.tasks ({', '.join(suite.tasks)})"
                )
        if len({self.a, self.b, self.c, self.target}) < 4:
            raise UserError("protocol: a, b, c and target must be four different tasks")

    def cells(self, ask: Ask) -> list[Cell]:
        """Return zero-shot, target-tuned, auxiliary and analogy cells."""
        sources = (self.a, self.b, self.c)
        a, b, c = (ask.vector(task, among=sources) for task in sources)
        parts = {"auxiliary": ((1.0, c),), "analogy": ((1.0, c), (1.0, b), (-1.0, a))}
        targets, rule = (self.target,), Rule(kind=self.rule)
        cells = [
            zero_shot(self, ask.suite, targets),
            individual(self, ask.suite, self.target, ask.tuned(self.target)),
        ]
        examples = (Examples(self.target, SELECTION, "learning", labels=True),)
        learning = Learning("cross_entropy", examples) if ask.learns else None
        for name, vectors in parts.items():
            composed = Composed(vectors, merge=True, forward=self.forward, learning=learning)
            question = scores(ask.suite, targets, grid=ask.grid, fixed=(1.0,), rule=rule)
            cells.append(Cell(name, composed, question))
        return cells

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, individual (tuned on the target), auxiliary and analogy."""
        targets = (self.target,)
        make = Rows(suite, denominators(targets, answers, REPORT))
        own = f"individual/{self.target}"
        rows = [
            make.row("zero_shot", answers["zero_shot"], 0.0, targets),
            make.row("individual", answers[own], 1.0, targets, cell=own),
        ]
        for name in ("auxiliary", "analogy"):
            answer = answers[name]
            rows.append(make.row(name, answer, answer.alpha, targets))
            if 1.0 in answer.report:
                rows.append(
                    make.row(f"{name}_alpha_1", answer, 1.0, targets, cell=name, searched=False)
                )
        curves = {name: curve(answers[name], targets) for name in ("auxiliary", "analogy")}
        chosen = next(row for row in rows if row.row == "analogy")
        criterion = Criterion(name="analogy/validation", value=chosen.mean("validation"))
        return Report(rows=tuple(rows), curves=curves, criterion=criterion)
