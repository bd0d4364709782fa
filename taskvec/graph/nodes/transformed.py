"""Transforms: the fit, shared by all vectors with equal needs, and the changed vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from taskvec.graph.artefact import Content, Node, Work, aside
from taskvec.graph.given import Given, untouched
from taskvec.graph.nodes.base import Base
from taskvec.graph.nodes.vector import VectorNode
from taskvec.needs import Changed, Examples, Need, Scope
from taskvec.transform.base import Fit, Transform


@dataclass(frozen=True, eq=False)
class FitNode(Node):
    """What a transform found on its needs; ``base`` is the model of the result, ``origin`` that of the vectors."""

    kind: ClassVar[str] = "fit"

    transform: Transform
    base: Base
    origin: Base
    needed: Mapping[Need, Node]
    name: str = aside()
    scope: Scope = aside()

    @property
    def label(self) -> str:
        """The transform and the tasks it was fitted for."""
        return f"fit of {self.name} on {'+'.join(self.scope.tasks)}"

    def sees(self) -> Iterable[Examples]:
        """Return the examples among its needs."""
        return [need for need in self.needed if isinstance(need, Examples)]

    def given(self, work: Work) -> Given:
        """Return what the transform works with."""
        owner = f"transform.{self.name}"
        return Given(
            work,
            self.scope,
            self.needed,
            self.base,
            self.origin,
            owner,
            seed=self.transform.seed or 0,
        )

    def guarded(self, work: Work) -> AbstractContextManager[None]:
        """Return the check that the transform leaves both models alone."""
        return untouched(self.transform, f"transform.{self.name}", work, self.base, self.origin)

    def compute(self, work: Work) -> Content:
        """Fit."""
        with self.guarded(work):
            found = self.transform.fit(self.given(work))
        return Content(found.tensors, {"fit": found.meta, "report": found.report})

    def value(self, work: Work) -> Fit:
        """Return the fit, on the device of the work."""
        content = work.get(self)
        tensors = {name: tensor.to(work.device) for name, tensor in content.tensors.items()}
        return Fit(tensors, content.meta["fit"], content.meta["report"])


@dataclass(frozen=True, eq=False)
class TransformedVector(VectorNode):
    """A vector after one transform of the run's list."""

    kind: ClassVar[str] = "vector"

    of: VectorNode
    fit: FitNode

    def compute(self, work: Work) -> Content:
        """Apply the transform."""
        expression: Changed = self.expression
        given, fit = self.fit.given(work), self.fit.value(work)
        vector = self.of.value(work).to(work.device)
        with self.fit.guarded(work):
            changed = self.fit.transform.apply(vector, expression.of, fit, given)
        return self.packed(work, changed, {})
