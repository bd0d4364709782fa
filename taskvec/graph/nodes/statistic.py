"""Statistics: collected in one pass with others on the same examples, or made from others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from taskvec.graph.artefact import Content, Node, Work, aside
from taskvec.graph.given import Given, observer, untouched
from taskvec.graph.nodes.base import Base
from taskvec.graph.nodes.examples import Rows
from taskvec.graph.nodes.vector import VectorNode
from taskvec.needs import Examples, Need, Scope, Statistics, label_of
from taskvec.statistics.base import Statistic


@dataclass(frozen=True, eq=False)
class StatisticNode(Node):
    """A statistic of one model, or of a pair of models, on some rows; ``at`` None means at theta_0.

    A pair's ``base`` and ``rows`` are the target's, ``other`` and ``other_rows`` the source's.
    """

    kind: ClassVar[str] = "statistic"
    copies: ClassVar[int] = 1

    what: Statistic
    base: Base
    rows: Rows
    at: VectorNode | None
    other: Base | None
    other_rows: Rows | None
    needed: Mapping[Need, Node]
    asked: Statistics = aside()
    scope: Scope = aside()

    @property
    def label(self) -> str:
        """The statistic, where it is taken and on what."""
        place = "" if self.at is None else f" at {label_of(self.at.expression)}"
        return f"{self.what.kind} {self.asked.on.task}{place}"

    def sees(self) -> Iterable[Examples]:
        """Return the examples it is collected on."""
        return () if self.what.derived else (self.asked.on,)

    @property
    def shared_pass(self) -> tuple[str | None, ...]:
        """What a pass over the model depends on: statistics of equal passes are collected together."""
        parts = (self.base, self.rows, self.at, self.other, self.other_rows)
        return tuple(None if part is None else part.fingerprint for part in parts)

    def compute(self, work: Work) -> Content:
        """Collect it, with all missing statistics that need the same pass, or make it from others."""
        owner = f"statistic {self.what.kind}"
        if self.what.derived:
            given = Given(work, self.scope, self.needed, self.base, self.base, owner)
            with untouched(self.what, owner, work, self.base):
                made = self.what.made(self.asked, given)
            return self._packed(made)
        together = [self, *work.companions(self)]
        whats = [node.what for node in together]
        users_own = next((what for what in whats if what.code), None)
        with untouched(users_own, owner, work, self.base):
            values = self._collect(work, whats)
        for node, value in zip(together[1:], values[1:], strict=True):
            work.offer(node, node._packed(value))
        return self._packed(values[0])

    def _collect(self, work: Work, statistics: list[Statistic]) -> list[Any]:
        from taskvec.statistics.collect import Batches, collect

        model, view = self.base.value(work), self.rows.value(work)
        observe = observer(work, self)
        parameters = labels = None
        if self.at is not None:
            vector = self.at.value(work).to(work.device)
            parameters = vector.apply_to(model.parameters)
        if any(statistic.labels for statistic in statistics):
            labels = view.labels()
        if self.other is None:
            batches, head = Batches(view, batching=work.batching), view.head
            return collect(
                model,
                batches,
                statistics,
                parameters=parameters,
                head=head,
                labels=labels,
                observe=observe,
            )
        source, source_view = self.other.value(work), self.other_rows.value(work)
        sides, heads = (source, model), (source_view.head, view.head)
        batches = Batches(source_view, view, batching=work.batching)
        return collect(
            sides,
            batches,
            statistics,
            parameters=(None, parameters),
            head=heads,
            labels=labels,
            observe=observe,
        )

    def _packed(self, value: Any) -> Content:
        tensors, meta = self.what.pack(value)
        return Content(tensors, {"header": meta})

    def value(self, work: Work) -> Any:
        """Return the statistic, its tensors memory-mapped."""
        content = work.get(self)
        return self.what.unpack(content.tensors, content.meta["header"])
