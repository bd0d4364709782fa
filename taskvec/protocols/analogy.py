"""Task analogies: a is to b as c is to the target, for which no data is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.errors import UserError
from taskvec.protocols.question import (
    REPORT,
    Answer,
    Cell,
    Protocol,
    Report,
    VectorRef,
    curve,
    individual,
    row,
    zero_shot,
)
from taskvec.protocols.selection import denominators
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
                raise UserError(f"protocol.{role}: {task!r} is not in suite.tasks ({', '.join(suite.tasks)})")
        if len({self.a, self.b, self.c, self.target}) < 4:
            raise UserError("protocol: a, b, c and target must be four different tasks")

    def cells(self, suite: Suite, grid: Sequence[float]) -> list[Cell]:
        """Return zero-shot, target-tuned, auxiliary and analogy cells."""
        a, b, c = (VectorRef((task,)) for task in (self.a, self.b, self.c))
        parts = {"auxiliary": ((1.0, c),), "analogy": ((1.0, c), (1.0, b), (-1.0, a))}
        searched = [
            Cell(n, v, (self.target,), grid=tuple(grid), rule=self.rule, fixed=(1.0,)) for n, v in parts.items()
        ]
        return [zero_shot((self.target,)), individual(self.target), *searched]

    def summarise(self, suite: Suite, answers: Mapping[str, Answer]) -> Report:
        """Return the rows zero_shot, individual (tuned on the target), auxiliary and analogy."""
        targets = (self.target,)
        own = denominators(targets, answers, REPORT)
        rows = [
            row("zero_shot", answers["zero_shot"], 0.0, targets, denominators=own),
            row("individual", answers[f"individual/{self.target}"], 1.0, targets, denominators=own),
        ]
        for name in ("auxiliary", "analogy"):
            rows.append(row(name, answers[name], answers[name].alpha, targets, denominators=own))
            rows.append(row(f"{name}_alpha_1", answers[name], 1.0, targets, denominators=own, searched=False))
        curves = {name: curve(answers[name], targets) for name in ("auxiliary", "analogy")}
        return Report(rows=tuple(rows), curves=curves, primary=rows[4].mean)
