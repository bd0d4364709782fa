"""From a run's config to the graph of artefacts that answers it; nothing heavy is imported until one is computed.

A plan knows no method, family or modality: components declare needs, the protocol grants them, and here they become
nodes, each built once. Kinds of nodes that few plans have are imported where one is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

from taskvec.graph.artefact import Node, data_seen, fingerprint, walk
from taskvec.graph.asking import Asking, Chain, PlanScope
from taskvec.graph.granting import (
    enough_models,
    granted,
    kept_back,
    labels_for,
    learning_of,
    same_mode,
    some_merged,
)
from taskvec.graph.nodes.answer import AnswerNode
from taskvec.graph.nodes.base import Base
from taskvec.graph.nodes.composition import Apart, CompositionNode, MergedVector
from taskvec.graph.nodes.examples import Decoded, Rows
from taskvec.graph.nodes.head import InitialHead, LearnedHead, prompt_of
from taskvec.graph.nodes.vector import DrawnVector, TunedVector, VectorNode
from taskvec.graph.run import RunConfig
from taskvec.needs import (
    AnswerOf,
    Budget,
    Changed,
    Drawn,
    Examples,
    Imported,
    Merged,
    Need,
    Needs,
    Selected,
    Side,
    Snapshot,
    Statistics,
    Tuned,
    Vector,
    all_tasks_of,
    tasks_of,
)
from taskvec.protocols.base import Cell, Composed

T = TypeVar("T")


class Plan:
    """The artefacts of one run, each built once."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.chain = Chain(config)
        self.grants = config.protocol.grants(config.suite)
        self._built: dict[Any, Node] = {}

    @cached_property
    def asked(self) -> list[Cell]:
        """The cells the protocol asks for."""
        cells = self.config.protocol.cells(Asking(self.config, self.chain))
        some_merged(cells, self.chain.late, self.config.protocol.kind)
        return cells

    @cached_property
    def cells(self) -> dict[str, AnswerNode]:
        """The answer of each cell by name: the roots of the graph."""
        return {cell.name: self.answer(cell) for cell in self.asked}

    @cached_property
    def nodes(self) -> list[Node]:
        """Every artefact of the graph once, inputs before what needs them."""
        return list(walk(self.cells.values()))

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the run's answers: its protocol and everything below it."""
        answers = {name: node.fingerprint for name, node in self.cells.items()}
        return fingerprint({"protocol": self.config.protocol.identity(), "answers": answers})

    def data_seen(self) -> dict[str, list[str]]:
        """Return which splits are learned from, calibrated on, selected on and reported on."""
        return data_seen(self.nodes)

    # Models and examples

    def base(self, side: Side) -> Base:
        """The pre-trained backbone of a side; both sides are one where vectors are not moved."""
        backbone = self.config.backbone_of(side)
        return self._once(("base", backbone.model_dump_json()), lambda: Base(backbone))

    def origin(self, name: str) -> Base:
        """The model that a transform's vectors belong to, as the transform wants it."""
        transform = self.config.transform[name]
        base = self.base(self.chain.side_before(name))
        if not transform.prepares:
            return base
        return self._once(("prepared", name), lambda: self._prepared(name, base))

    def _prepared(self, name: str, base: Base) -> Base:
        from taskvec.graph.nodes.prepared import Prepared

        transform = self.config.transform[name]
        tasks = self.config.protocol.shared(self.config.suite)
        scope = self.scope(tasks, self.chain.side_before(name))
        needs = transform.preparing(scope)
        return Prepared(
            backbone=base.backbone,
            of=base,
            target=self.base(self.chain.side_after(name)),
            transform=transform,
            needed=self._needed(needs, f"transform.{name}", scope.side),
            scope=scope,
        )

    def decoded(self, task: str, split: str, side: Side) -> Decoded:
        """A task's split as a side's backbone reads it."""
        backbone = self.config.backbone_of(side)
        definition = self.config.suite.definitions[task]
        key = ("decoded", task, split, backbone.model_dump_json())
        prompt = prompt_of(task, definition, backbone) if "label_words" in backbone.gives else None
        return self._once(key, lambda: Decoded(split, definition, prompt, task, backbone))

    def rows(
        self, task: str, split: str, budget: Budget | None, side: Side, *, tuning: bool = False
    ) -> Rows:
        """Rows of a split; ``tuning`` ones carry the head from before fine-tuning."""

        def build() -> Rows:
            head = self.initial_head(task, side) if tuning else self.head(task, side)
            return Rows(self.decoded(task, split, side), head, budget)

        return self._once(("rows", task, split, budget, side, tuning), build)

    def head(self, task: str, side: Side) -> Node | None:
        """A task's head: frozen, or for backbones that learn heads the one learned with the task's own vector."""
        initial = self.initial_head(task, side)
        if initial is None or "learned_heads" not in self.config.backbone_of(side).gives:
            return initial
        tuned = self.vector(self.chain.tuned((task,), side))
        return self._once(("learned head", task, side), lambda: LearnedHead(tuned, task))

    def initial_head(self, task: str, side: Side) -> InitialHead | None:
        """A task's head before fine-tuning; None for a corpus."""
        definition = self.config.suite.definitions[task]
        build = partial(InitialHead.of, self.base(side), task, definition)
        return self._once(("head", task, side), build)

    # Vectors

    def vector(self, expression: Vector) -> VectorNode:
        """The node of a vector's expression."""
        builders: dict[type, Callable[[Any], VectorNode]] = {
            Tuned: self._tuned,
            Imported: self._imported,
            Drawn: lambda one: DrawnVector.of(one, self.vector(one.like)),
            Changed: self._changed,
            Merged: self._merged,
            Selected: self._selected,
            Snapshot: self._snapshot,
        }
        return self._once(expression, lambda: builders[type(expression)](expression))

    def _tuned(self, expression: Tuned) -> TunedVector:
        side, method = expression.side, self.config.method_on(expression.side)
        without = expression.without
        scope = self.scope(tasks_of(expression), side, learning=expression.on, without=without)
        owner = f"finetune={method.kind}"
        views = {}
        for examples in expression.on:
            granted(examples, self.grants, owner)
            views[examples.task] = self.rows(
                examples.task, examples.split, examples.budget, side, tuning=True
            )
        start = None if expression.start is None else self.vector(expression.start)
        return TunedVector(
            base=self.base(side),
            expression=expression,
            mode=self.chain.mode(expression),
            method=method,
            views=views,
            needed=self._needed(method.needs(scope), owner, side, tuning=True, without=without),
            start=start,
            ascend=expression.ascend,
            precision=self.config.compute.precision,
            scope=scope,
        )

    def _imported(self, expression: Imported) -> VectorNode:
        from taskvec.graph.nodes.imported import imported

        return imported(expression, self.base(expression.side))

    def _changed(self, expression: Changed) -> VectorNode:
        from taskvec.graph.nodes.transformed import FitNode, TransformedVector

        name, transform = expression.by, self.config.transform[expression.by]
        of = self.vector(expression.of)
        side, owner = self.chain.side_before(name), f"transform.{name}"
        same_mode(of.mode, transform, owner)
        among = expression.among or (expression.of,)
        vectors = {tasks_of(vector)[0]: vector for vector in among}
        scope = self.scope(all_tasks_of(among), side, vectors=vectors, without=expression.without)
        needs = transform.needs(scope)
        fit = FitNode(
            transform=transform,
            base=self.base(self.chain.side_after(name)),
            origin=self.origin(name),
            needed=self._needed(needs, owner, side, without=expression.without),
            name=name,
            scope=scope,
        )
        fit = self._once(("fit", fit.fingerprint), lambda: fit)
        return TransformedVector(base=fit.base, expression=expression, mode=of.mode, of=of, fit=fit)

    def _merged(self, expression: Merged) -> MergedVector:
        composition = self._composition(Composed(expression.parts, merge=True))
        return MergedVector(composition.base, expression, composition.mode, composition)

    def _selected(self, expression: Selected) -> VectorNode:
        from taskvec.graph.nodes.course import SelectedVector

        return SelectedVector.of(expression, self.answer(expression.cell))

    def _snapshot(self, expression: Snapshot) -> VectorNode:
        from taskvec.graph.nodes.course import Course, SnapshotVector

        course = Course.of(self.vector(expression.of), expression.kept)
        course = self._once(("course", course.fingerprint), lambda: course)
        return SnapshotVector(course.base, expression, course.mode, course, expression.at)

    # Compositions and answers

    def composition(self, composed: Composed) -> CompositionNode:
        """The model of a cell: its vectors merged, and changed by the transforms that stand after the merge."""
        late = self.chain.late
        if not composed.merge or not late or not composed.vectors:
            return self._composition(composed)
        changed: Vector = Merged(composed.vectors)
        for name in late:
            changed = Changed(changed, name)
        return self._composition(Composed(((1.0, changed),), forward=composed.forward))

    def _composition(self, composed: Composed) -> CompositionNode:
        takes_none = self.config.merge.vectors[1] == 0
        if composed.merge and takes_none:
            composed = replace(composed, vectors=())
        expressions = tuple(vector for _, vector in composed.vectors)
        nodes = tuple(self.vector(expression) for expression in expressions)
        own_mode = nodes[0].mode if nodes else "standard"
        base = nodes[0].base if nodes else self.base("target")
        make = partial(Apart, tasks=composed.apart) if composed.apart else CompositionNode
        plain = make(
            base=base,
            vectors=nodes,
            signs=tuple(sign for sign, _ in composed.vectors),
            merge=None,
            separate=composed.coefficients == "per_task",
            mode=composed.forward or own_mode,
            expressions=expressions,
        )
        same_mode(plain.mode, self.config.protocol, "protocol")
        if not composed.merge or not (nodes or takes_none):
            return plain
        same_mode(plain.mode, self.config.merge, "merge")
        if not takes_none:
            self.config.merge.check_count(len(nodes))
        return self._merge(plain, composed)

    def _merge(self, plain: CompositionNode, composed: Composed) -> CompositionNode:
        """The vectors of a plain sum under the run's merge, with what the merge asks for."""
        merge, side = self.config.merge, self.chain.side_of_merge
        owner = f"merge={merge.kind}"
        learning = learning_of(composed, merge, self.config.protocol) if merge.learned else None
        examples = learning.examples if learning else ()
        vectors = {tasks_of(vector)[0]: vector for vector in plain.expressions}
        tasks = all_tasks_of(plain.expressions)
        scope = self.scope(tasks, side, learning=examples, vectors=vectors)
        needs: list[Need] = [*merge.needs(scope), *examples]
        if learning:
            needs += learning.selection
            needs += [AnswerOf(cell) for _, cell in learning.needs]
            objective, select = learning.objective, learning.select
            plain = replace(plain, learning=learning, objective=objective, select=select)
        if merge.stored:
            plain = replace(plain, precision=self.config.compute.precision)
        needed = self._needed(needs, owner, side)
        return replace(plain, merge=merge, needed=needed, scope=scope)

    def answer(self, cell: Cell) -> AnswerNode:
        """A cell's answer."""

        def build() -> AnswerNode:
            question, composition = cell.question, self.composition(cell.composed)
            owner = f"question {question.kind}"
            enough_models(composition, question, owner)
            same_mode(composition.mode, question, owner)
            tasks = all_tasks_of(vector for _, vector in cell.composed.vectors)
            scope = self.scope(tasks, "target")
            needs = [*question.needs(scope), *cell.answers().values()]
            return AnswerNode(
                question=question,
                composition=composition,
                needed=self._needed(needs, owner, "target"),
                precision=self.config.compute.precision,
                weights=self.config.compute.weights_for(question),
                cell=cell,
                scope=scope,
            )

        return self._once(("answer", cell), build)

    # Needs

    def scope(
        self,
        tasks: tuple[str, ...],
        side: Side,
        *,
        learning: tuple[Examples, ...] = (),
        vectors: Mapping[str, Vector] | None = None,
        without: tuple[str, ...] = (),
    ) -> PlanScope:
        """Return what a component knows when it declares its needs; it must not look at ``without``."""
        backbone, source = self.config.backbone_of(side), self.config.backbone_of("source")
        shared = self.config.protocol.shared(self.config.suite)
        shared = tuple(task for task in shared if task not in without)
        return PlanScope(tasks, side, backbone, source, learning, shared, dict(vectors or {}))

    def _needed(
        self,
        needs: Needs,
        owner: str,
        side: Side,
        *,
        tuning: bool = False,
        without: tuple[str, ...] = (),
    ) -> dict[Need, Node]:
        """Return the node of each need, once the protocol grants it."""
        kept_back(needs, without, owner)
        return {need: self._need(need, owner, side, tuning=tuning) for need in needs}

    def _need(self, need: Need, owner: str, side: Side, *, tuning: bool) -> Node:
        if isinstance(need, Examples):
            granted(need, self.grants, owner)
            return self.rows(need.task, need.split, need.budget, side, tuning=tuning)
        if isinstance(need, Statistics):
            return self.statistic(need, owner, tuning=tuning)
        if isinstance(need, AnswerOf):
            return self.answer(need.cell)
        return self.vector(need)

    def statistic(self, need: Statistics, owner: str, *, tuning: bool = False) -> Node:
        """A statistic, of a model or of a pair of models."""
        from taskvec.graph.nodes.statistic import StatisticNode

        on, what = need.on, need.what
        granted(on, self.grants, owner)
        labels_for(need, owner)
        at = None if need.at is None else self.vector(need.at)
        scope = self.scope((on.task,), need.side)
        asked = what.needs(need, scope)
        needed = self._needed(asked, f"statistic {what.kind}", need.side, tuning=tuning)
        side: Side = "target" if need.pair else need.side
        base = self.base(side) if at is None else at.base
        early = tuning or not what.head
        rows = self.rows(on.task, on.split, on.budget, side, tuning=early)
        other, other_rows = None, None
        if need.pair:
            transforms = self.config.transform.items()
            other = self.origin(next(name for name, transform in transforms if transform.moves))
            other_rows = self.rows(on.task, on.split, on.budget, "source", tuning=early)
        node = StatisticNode(
            what=what,
            base=base,
            rows=rows,
            at=at,
            other=other,
            other_rows=other_rows,
            needed=needed,
            asked=need,
            scope=scope,
        )
        return self._once(("statistic", node.fingerprint), lambda: node)

    def _once(self, key: Any, build: Callable[[], T]) -> T:
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]
