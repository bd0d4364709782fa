"""What a protocol builds its cells with: vectors by expression, along the run's chain of transforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taskvec.errors import UserError
from taskvec.graph.run import RunConfig
from taskvec.needs import (
    Changed,
    Drawn,
    Examples,
    ForwardMode,
    Imported,
    Merged,
    Selected,
    Side,
    Tuned,
    Vector,
)


@dataclass(frozen=True)
class PlanScope:
    """Implements :class:`taskvec.needs.Scope`; ``shared`` are the tasks that components may see beside their own."""

    tasks: tuple[str, ...]
    side: Side
    backbone: Any
    source: Any
    learning: tuple[Examples, ...]
    shared: tuple[str, ...]
    vectors: Mapping[str, Vector]

    def others(self, *tasks: str) -> tuple[str, ...]:
        """Return the suite's tasks without these and without those that the protocol keeps back."""
        return tuple(task for task in self.shared if task not in tasks)

    def vector(self, task: str) -> Vector:
        """Return the vector of a task at this point of the chain.

        Raises:
            UserError: if the component may not use one of that task, or stands where there is none yet.
        """
        if task not in self.vectors:
            raise UserError(
                f"there is no vector of {task} to use here (known: {', '.join(self.vectors) or 'none'})"
            )
        return self.vectors[task]


class Chain:
    """The run's transforms in order: those before the merge, those after it, and where vectors change sides."""

    def __init__(self, config: RunConfig):
        self.config = config
        transforms = config.transform
        self.early = tuple(
            name for name, transform in transforms.items() if transform.on == "vectors"
        )
        self.late = tuple(
            name for name, transform in transforms.items() if transform.on == "merged"
        )
        self.order = (*self.early, *self.late)
        moving = [name for name in self.order if transforms[name].moves]
        if len(moving) > 1:
            raise UserError(
                f"transform: {' and '.join(moving)} both move vectors to another backbone; leave one out"
            )
        self.moving = moving[0] if moving else None
        self._check_sides()

    def _check_sides(self) -> None:
        """Check that there is a source exactly where vectors are moved.

        Raises:
            UserError: if a source is missing, or given in vain.
        """
        if self.moving and self.config.source is None:
            raise UserError(
                f"transform={self.moving} moves vectors from another backbone; set source=BACKBONE"
            )
        if self.config.source is not None and not self.moving:
            raise UserError(
                "source: no transform moves vectors; leave source out, or set transform=theseus"
            )
        names = [name for name in self.late if self.config.transform[name].joint]
        if names:
            raise UserError(
                f"transform.{names[0]}.on=merged: it is fitted over several vectors, and a merge leaves one"
            )
        if self.late:
            self._check_late(self.late[0], self.config.merge)

    @staticmethod
    def _check_late(name: str, merge: Any) -> None:
        """Check that a merge leaves one vector for the transform after it.

        Raises:
            UserError: if it does not.
        """
        remedy = f"use transform.{name}.on=vectors"
        if merge.learned:
            raise UserError(
                f"transform.{name}.on=merged: merge={merge.kind} learns its model for the questions that are asked, "
                f"and nothing may change it afterwards; {remedy}"
            )
        if merge.models == "per_task":
            raise UserError(
                f"transform.{name}.on=merged: merge={merge.kind} makes a model for each task; {remedy}"
            )
        if not merge.direction:
            raise UserError(
                f"transform.{name}.on=merged: merge={merge.kind} does not make one vector under a coefficient; {remedy}"
            )

    @cached_property
    def side_of_merge(self) -> Side:
        """The side on which vectors are merged."""
        return "source" if self.moving in self.late and self.moving else "target"

    def side_before(self, name: str) -> Side:
        """Return the side of the vectors that a transform is given."""
        if self.moving is None:
            return "target"
        return "source" if self.order.index(name) <= self.order.index(self.moving) else "target"

    def side_after(self, name: str) -> Side:
        """Return the side of the vectors that a transform makes."""
        return "target" if name == self.moving else self.side_before(name)

    def tuned(
        self,
        tasks: Sequence[str],
        side: Side,
        *,
        ascend: bool = False,
        without: tuple[str, ...] = (),
    ) -> Vector:
        """Return the vector tuned on the training split of some tasks, or a task's that is published or imported.

        Raises:
            UserError: if vectors are published or imported, and this one is not.
        """
        if len(tasks) == 1 and not ascend:
            place = self._place_of(tasks[0], side)
            if place is not None:
                return Imported(tasks[0], place, side)
        on = tuple(Examples(task, "train", "learning", labels=True) for task in tasks)
        return Tuned(on, side, ascend, without=without)

    def _place_of(self, task: str, side: Side) -> str | None:
        """Return the hub's name or the file of a task's vector; None where the method learns it.

        Raises:
            UserError: if there is none, or the backbone's heads come with the vectors.
        """
        backbone, method = self.config.backbone_of(side), self.config.method_on(side)
        group = "source" if backbone is self.config.source else "backbone"
        called = self.config.choices.get(group) or backbone.kind
        named = method.stored_as(task, called)
        if named is None:
            return None
        if "learned_heads" in backbone.gives:
            raise UserError(
                f"finetune=stored: {group}={called} learns its heads with its vectors, and stored ones lack them"
            )
        model = method.published_as(task, backbone)
        if model:
            return model
        from taskvec.graph.nodes.imported import found_vector

        return str(found_vector(self.config.root, named))

    def after(
        self, start: Vector, among: Sequence[Vector], without: tuple[str, ...] = ()
    ) -> Vector:
        """Return a vector after the transforms before the merge; joint ones are fitted over ``among``."""
        vector, companions = start, tuple(among)
        for name in self.early:
            joint = self.config.transform[name].joint
            seen = companions if joint else ()
            vector = Changed(vector, name, seen, without)
            companions = tuple(Changed(other, name, seen, without) for other in companions)
        return vector

    def mode(self, vector: Vector) -> ForwardMode:
        """Return the forward mode that a vector is evaluated in."""
        if isinstance(vector, Tuned):
            return self.config.method_on(vector.side).mode
        if isinstance(vector, Imported):
            from taskvec.graph.nodes.imported import header_of

            header = header_of(vector.place) or {}
            return header.get("forward_mode", "standard")
        if isinstance(vector, Merged):
            return self.mode(vector.parts[0][1])
        if isinstance(vector, Selected):
            composed = vector.cell.composed
            return composed.forward or self.mode(composed.vectors[0][1])
        inner = vector.like if isinstance(vector, Drawn) else vector.of
        return self.mode(inner)


@dataclass(frozen=True)
class Asking:
    """Implements :class:`taskvec.protocols.base.Ask`."""

    config: RunConfig
    chain: Chain

    @property
    def suite(self) -> Any:
        """The suite."""
        return self.config.suite

    @property
    def backbone(self) -> Any:
        """The backbone that is evaluated."""
        return self.config.backbone

    @cached_property
    def grid(self) -> tuple[float, ...]:
        """The coefficients to search: the protocol's, else the last transform's that has any, else the merge's."""
        if self.config.protocol.grid is not None:
            return self.config.protocol.grid
        for name in reversed(self.chain.order):
            if self.config.transform[name].grid is not None:
                return self.config.transform[name].grid
        return self.config.merge.grid

    @property
    def learns(self) -> bool:
        """Whether the run's merge is learned."""
        return self.config.merge.learned

    @property
    def late(self) -> tuple[str, ...]:
        """The transforms that stand after the merge."""
        return self.chain.late

    def vector(
        self, task: str, among: Sequence[str] | None = None, without: tuple[str, ...] = ()
    ) -> Vector:
        """Return a task's vector after the transforms that stand before the merge."""
        side: Side = "source" if self.chain.moving else "target"
        tasks = self.config.protocol.shared(self.config.suite) if among is None else tuple(among)
        companions = [self.chain.tuned((other,), side, without=without) for other in tasks]
        start = self.chain.tuned((task,), side, without=without)
        return self.chain.after(start, companions, without)

    def tuned(self, *tasks: str, ascend: bool = False) -> Vector:
        """Return the vector tuned on the evaluated backbone, before any transform."""
        return self.chain.tuned(tasks, "target", ascend=ascend)

    def drawn(self, like: Vector) -> Vector:
        """Return a random vector with the norms of another."""
        return Drawn(like, self.config.protocol.seed or 0)
