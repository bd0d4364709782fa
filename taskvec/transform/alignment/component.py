"""What all transforms share that carry vectors to another backbone axis by axis."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from taskvec.config import Config
from taskvec.errors import UserError
from taskvec.needs import Budget, Examples, Given, Needs, Scope, Vector
from taskvec.transform.alignment.pictures import alignment_by_layer
from taskvec.transform.base import Fit, Transform, shapes_of

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.transform.alignment.transport import Axes
    from taskvec.vectors import TaskVector

GRID = tuple(0.25 * step for step in range(21))  # 0, 0.25, ..., 5: maps that narrow shrink a vector
MAP = "map/"


class Depth(Config):
    """How a shallower source is extended to the target's depth before anything is aligned.

    Added blocks are copies of the block they descend from or its average with the next one, in ``order`` from the
    bottom or the top, spread over the blocks or clumped behind one. With ``correction`` their components are fitted, by
    a ridge of that strength towards what they are, to put out on ``examples`` of each task what their origin puts out.
    """

    blocks: Literal["none", "average", "duplicate"] = "none"
    order: Literal["bottom_top", "top_bottom"] = "bottom_top"
    spread: Literal["spread", "clump", "spread_mod"] = "spread"
    correction: float | None = Field(None, ge=0)
    examples: int = Field(32, ge=1)


class Found(NamedTuple):
    """Maps [a, b] by name, for each parameter the names of its axes' maps, and what to report of each map."""

    maps: dict[str, Tensor]
    axes: dict[str, Axes]
    report: dict[str, Any]


class Carrying(Transform):
    """Carries vectors to the target by a map for each space that an axis of a parameter lies in.

    ``stem`` says whether the input layers (patches, class token, positions, words) are carried too; by the paper's rule
    their update is zero. A source with fewer blocks than the target is extended as ``depth`` says; with ``added`` zero
    the update of added blocks is zero, a control.
    """

    stem: Literal["zero", "carry"] = "zero"
    depth: Depth = Depth()
    added: Literal["carry", "zero"] = "carry"

    moves: ClassVar[bool] = True
    grid: ClassVar[tuple[float, ...]] = GRID

    def check(self, source: Any, target: Any) -> None:
        """Compare the depths of two backbones where their headers tell them.

        Raises:
            UserError: if the source is deeper, or less deep and not to be extended.
        """
        own, wanted = source.parameter_shapes(), target.parameter_shapes()
        if own is None or wanted is None:
            return
        if not self.prepares:
            _check_depth(own, wanted, self.kind)
            return
        from taskvec.transform.alignment.extension import lineages

        lineages(own, wanted, self.depth.order, self.depth.spread)

    @property
    def prepares(self) -> bool:
        """Whether the source is extended before pair statistics are taken on it."""
        return self.depth.blocks != "none"

    def preparation(self) -> dict[str, Any]:
        """Return the settings that the extended source depends on."""
        return self.depth.identity()

    def preparing(self, scope: Scope) -> Needs:
        """Return the examples that the correction of added blocks is fitted on."""
        if self.depth.correction is None:
            return ()
        budget = Budget(count=self.depth.examples)
        return [Examples(task, "train", "calibration", budget=budget) for task in scope.tasks]

    def prepare(self, source: Any, given: Given) -> Any:
        """Return the source as deep as the target, ``given.model``."""
        from taskvec.transform.alignment.deepen import corrected, deepen
        from taskvec.transform.alignment.extension import lineages

        how = self.depth
        grown = lineages(source.parameters, given.model.parameters, how.order, how.spread)
        deeper = deepen(source, given.model, grown, average=how.blocks == "average")
        if how.correction is None or not grown:
            return deeper
        views = [given[need] for need in self.preparing(given.scope)]
        batches = [view.take(slice(None)) for view in views]
        return corrected(deeper, source, batches, how.correction)

    @abstractmethod
    def found(self, given: Given, axes: Mapping[str, Axes]) -> Found:
        """Return the maps for some parameters, given the space of each of their axes."""

    def fit(self, given: Given) -> Fit:
        """Return the maps float32, and which parameters they carry.

        Raises:
            UserError: if the source is not as deep as the target.
        """
        from taskvec.transform.alignment.transport import STEM, itinerary

        source, target = given.source.parameters, given.model.parameters
        _check_depth(source, target, self.kind)
        axes, left = {}, {}
        for name, spaces in given.model.spaces.items():
            if self.stem == "zero" and STEM in spaces:
                left[name] = "an input layer"
            else:
                axes[name] = spaces
        found = self.found(given, axes)
        lengths = {name: tuple(aligned.shape) for name, aligned in found.maps.items()}
        way = itinerary(shapes_of(source), shapes_of(target), found.axes, lengths)
        tensors = {MAP + name: aligned.float() for name, aligned in found.maps.items()}
        report: dict[str, Any] = {"maps": found.report, "left_at_zero": way.left | left}
        picture = alignment_by_layer(found.report)
        if picture:
            report["figures"] = {"alignment": picture.data()}
        return Fit(tensors, {"carried": way.carried}, report)

    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the vector's image; parameters that are left at zero are absent."""
        from taskvec.transform.alignment.transport import carry
        from taskvec.vectors import TaskVector

        deepening = getattr(given.source, "deepening", None)
        deltas = vector if deepening is None else deepening(vector)
        maps = {name.removeprefix(MAP): found for name, found in fit.tensors.items()}
        carried = {}
        for name, axes in fit.meta["carried"].items():
            left_out = self.added == "zero" and deepening is not None and deepening.rule.added(name)
            if name in deltas and not left_out:
                carried[name] = carry(deltas[name], tuple(axes), maps)
        return TaskVector(carried)


def spaces_of(axes: Mapping[str, Axes]) -> list[str]:
    """Return every space that an axis of a parameter lies in, once, in order."""
    spaces = [space for named in axes.values() for space in named if space is not None]
    return list(dict.fromkeys(spaces))


def _check_depth(source: Iterable[str], target: Iterable[str], kind: str) -> None:
    from taskvec.transform.alignment.extension import depths

    own, wanted = depths(source), depths(target)
    for stack, depth in own.items():
        if wanted.get(stack, depth) != depth:
            raise UserError(
                f"transform={kind}: the source has {depth} blocks in {stack} and the target {wanted[stack]}; set "
                f"transform.{kind}.depth.blocks=average, or take a source that is as deep"
            )
