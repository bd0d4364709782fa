"""PAVE: each vector purified in the subspace that its task's data uses, before any merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from taskvec.errors import UserError
from taskvec.needs import Budget, Examples, Given, Needs, Scope, Statistics, Vector, tasks_of
from taskvec.registry import did_you_mean, register
from taskvec.statistics.input_moments import InputMoments
from taskvec.statistics.spectrum import Spectrum
from taskvec.transform.base import Fit, Transform

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.base import Statistic
    from taskvec.transform.subspace.ranks import Ranks
    from taskvec.vectors import TaskVector


@register("transform", "pave", paper="PAVE, OpenReview 2025; spec pave 1")
class Pave(Transform):
    """tau_t - P P^T W_t in every linear layer, where P are the outputs that matter least to the task's own data.

    P holds the left singular vectors of W_t C_t beyond the kept rank, C_t being the second moment of the layer's inputs
    under the fine-tuned weights W_t on ``examples`` of the task's training split, at all real tokens. It is the whole
    weight that is truncated, so that a vector of zeros does not stay one; ``target=delta`` takes P P^T tau_t away
    instead. What is no linear layer keeps its plain difference.

    A share ``ratio`` of all directions is kept. ``allocation`` says by whom: "model" divides it among the tasks by the
    spectra of W_t C_t and keeps one share in all layers of a task, "layer" divides it anew in each layer, "uniform"
    gives every task the same. Tasks outside ``participants`` (None: all take part) keep everything. ``whitening`` sqrt
    takes W_t C_t^(1/2), whose truncation errs least on the outputs. ``roles`` names the layers by function (None: all).

    ``faithful`` computes as the authors' code does: float32, C + epsilon I with an explicit inverse, epsilon doubled
    from ``damping`` until the inverse is accurate to ``tolerance``, there with ``count_base`` for the covariance of the
    pre-trained model too. Padding has no rows in either mode, while the authors count it.

    Tangent vectors are refused: a linearised model's activations are sums of the base's and of derivatives, so that no
    covariance of a layer's inputs says what W_t does.
    """

    kind: Literal["pave"] = "pave"
    ratio: float = Field(0.984375, gt=0, le=1)
    allocation: Literal["model", "layer", "uniform"] = "model"
    participants: tuple[str, ...] | None = None
    target: Literal["weight", "delta"] = "weight"
    whitening: Literal["cov", "sqrt"] = "cov"
    damping: float = Field(0.1, ge=0)
    examples: int = Field(4096, ge=1)
    roles: tuple[str, ...] | None = None
    faithful: bool = False
    tolerance: float = Field(0.05, gt=0)
    count_base: bool = True

    joint: ClassVar[bool] = True

    @model_validator(mode="after")
    def _as_the_authors(self) -> Pave:
        if self.faithful and (
            self.target != "weight" or self.whitening != "cov" or not self.damping
        ):
            raise ValueError(
                "faithful=true goes with target=weight, whitening=cov and a damping above 0"
            )
        return self

    def needs(self, scope: Scope) -> Needs:
        """Return each vector, its moments, its spectrum where ranks are divided, and theta_0's moments if counted.

        Raises:
            UserError: for a participant that no vector belongs to.
        """
        needs: list[Any] = []
        for task in self._participants(scope):
            if task not in scope.tasks:
                hint = did_you_mean(task, list(scope.tasks))
                raise UserError(
                    f"transform.pave.participants: there is no vector of {task!r}{hint}"
                )
        for task in scope.tasks:
            needs.append(scope.vector(task))
            needs.append(self._at_vector(InputMoments(), scope, task))
            if self.allocation != "uniform":
                needs.append(self._at_vector(self._spectrum(), scope, task))
            if self.faithful and self.count_base:
                needs.append(self._at_base(scope, task))
        return needs

    def _participants(self, scope: Scope) -> tuple[str, ...]:
        return scope.tasks if self.participants is None else self.participants

    def _spectrum(self) -> Spectrum:
        return Spectrum(whitening=self.whitening, damping=self.damping)

    def _calibration(self, task: str) -> Examples:
        return Examples(task, "train", "calibration", budget=Budget(count=self.examples))

    def _at_vector(self, what: Statistic, scope: Scope, task: str) -> Statistics:
        return Statistics(what, self._calibration(task), at=scope.vector(task), side=scope.side)

    def _at_base(self, scope: Scope, task: str) -> Statistics:
        return Statistics(InputMoments(), self._calibration(task), side=scope.side)

    def fit(self, given: Given) -> Fit:
        """Return the ranks of all tasks, and in the exact mode the pruned directions P [out, pruned] float32."""
        from taskvec.transform.subspace.pictures import pictures
        from taskvec.transform.subspace.purify import prune_layers

        fit = Fit()
        fit.meta["ranks"] = self._ranks(given)
        for task, ranks in fit.meta["ranks"].items():
            moments = given[self._at_vector(InputMoments(), given.scope, task)]
            layers = {layer: {"rank": rank} for layer, rank in ranks.items()}
            fit.report[task] = {"layers": layers, "left_out": dict(moments.untracked)}
            if self.faithful:
                continue
            vector = given[given.scope.vector(task)]
            pruned = prune_layers(given.model, vector, moments, ranks, self.damping, self.whitening)
            for layer, directions, report in pruned:
                fit.tensors[f"{task}/{layer}"] = directions
                layers[layer] = report
        said = {task: report["layers"] for task, report in fit.report.items()}
        spectra = self._spectra(given, fit.meta["ranks"])
        fit.report["figures"] = pictures(said, spectra, given.model.layers)
        return fit

    def _ranks(self, given: Given) -> dict[str, Ranks]:
        """Return the kept rank of every layer by task."""
        from taskvec.transform.subspace.purify import sizes
        from taskvec.transform.subspace.ranks import allocate, uniform

        scope = given.scope
        participants = self._participants(scope)
        ranks = {}
        for task in scope.tasks:
            moments = given[self._at_vector(InputMoments(), scope, task)]
            ranks[task] = sizes(given.model, moments, self.roles)
        if self.allocation == "uniform":
            return ranks | {task: uniform(ranks[task], self.ratio) for task in participants}
        among = {task: ranks[task] for task in participants}
        return ranks | allocate(self._spectra(given, among), self.ratio, self.allocation)

    def _spectra(self, given: Given, ranks: dict[str, Ranks]) -> dict[str, dict[str, Tensor]]:
        """Return the singular values of the layers of some tasks; nothing where ranks are not divided by them."""
        if self.allocation == "uniform":
            return {}
        spectra = {}
        for task, layers in ranks.items():
            spectrum = given[self._at_vector(self._spectrum(), given.scope, task)]
            spectra[task] = {layer: spectrum[layer] for layer in layers}
        return spectra

    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the purified vector.

        Raises:
            UserError: if the fit does not cover the vector's task.
        """
        from taskvec.vectors import TaskVector

        task = tasks_of(of)[0]
        ranks = fit.meta["ranks"]
        if task not in ranks:
            raise UserError(
                f"transform.pave: it was fitted on {', '.join(ranks)}, and this vector is of {task}"
            )
        purify = self._by_inverse if self.faithful else self._projected
        change = purify(vector, task, fit, given)
        deltas = dict(vector)
        for layer in ranks[task]:
            deltas[f"{layer}.weight"] = change(layer)
        return TaskVector(deltas, vector.metadata)

    def _projected(
        self, vector: TaskVector, task: str, fit: Fit, given: Given
    ) -> Callable[[str], Tensor]:
        from taskvec.transform.subspace.purify import projected

        def change(layer: str) -> Tensor:
            directions = fit.tensors[f"{task}/{layer}"]
            return projected(
                given.model, vector, layer, directions, of_delta=self.target == "delta"
            )

        return change

    def _by_inverse(
        self, vector: TaskVector, task: str, fit: Fit, given: Given
    ) -> Callable[[str], Tensor]:
        from taskvec.transform.subspace.purify import by_inverse

        moments = [given[self._at_vector(InputMoments(), given.scope, task)]]
        if self.count_base:
            moments.append(given[self._at_base(given.scope, task)])
        ranks = fit.meta["ranks"][task]

        def change(layer: str) -> Tensor:
            return by_inverse(
                given.model, vector, layer, ranks[layer], moments, self.damping, self.tolerance
            )

        return change
