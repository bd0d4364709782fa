"""PAVE: each vector purified in the subspace that its task's data uses, before any merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.needs import Budget, Examples, Given, Needs, Scope, Statistics, Vector, tasks_of
from taskvec.registry import did_you_mean, register
from taskvec.statistics.input_moments import InputMoments
from taskvec.statistics.spectrum import Spectrum
from taskvec.transform.base import Fit, Transform

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import TaskVector

Ranks = Mapping[str, int]  # by layer


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

    def needs(self, scope: Scope) -> Needs:
        """Return each vector, its moments, its spectrum where ranks are divided, and theta_0's moments if counted."""
        needs: list[Any] = []
        for task in scope.tasks:
            needs += [scope.vector(task), self._moments(scope, task)]
            if self.allocation != "uniform":
                needs.append(self._spectrum(scope, task))
            if self.faithful and self.count_base:
                needs.append(self._base_moments(scope, task))
        return needs

    def _calibration(self, task: str) -> Examples:
        return Examples(task, "train", "calibration", budget=Budget(count=self.examples))

    def _moments(self, scope: Scope, task: str) -> Statistics:
        return Statistics(InputMoments(), self._calibration(task), at=scope.vector(task), side=scope.side)

    def _base_moments(self, scope: Scope, task: str) -> Statistics:
        return Statistics(InputMoments(), self._calibration(task), side=scope.side)

    def _spectrum(self, scope: Scope, task: str) -> Statistics:
        what = Spectrum(whitening=self.whitening, damping=self.damping)
        return Statistics(what, self._calibration(task), at=scope.vector(task), side=scope.side)

    def fit(self, given: Given) -> Fit:
        """Return the ranks of all tasks, and in the exact mode the pruned directions P [out, pruned] float32."""
        ranks = self._ranks(given)
        fit = Fit(meta={"ranks": ranks})
        for task, kept in ranks.items():
            moments = given[self._moments(given.scope, task)]
            layers = {layer: {"rank": rank} for layer, rank in kept.items()}
            if not self.faithful:
                self._prune(task, kept, moments, fit.tensors, layers, given)
            fit.report[task] = {"layers": layers, "left_out": dict(moments.untracked)}
        return fit

    def _ranks(self, given: Given) -> dict[str, dict[str, int]]:
        """Return the kept rank of every layer by task.

        Raises:
            UserError: for a participant that no vector belongs to.
        """
        from taskvec.transform.subspace.ranks import allocate, uniform

        scope = given.scope
        participants = scope.tasks if self.participants is None else self.participants
        for task in participants:
            if task not in scope.tasks:
                hint = did_you_mean(task, list(scope.tasks))
                raise UserError(f"transform.pave.participants: there is no vector of {task!r}{hint}")
        sizes = {task: self._sizes(given, given[self._moments(scope, task)]) for task in scope.tasks}
        if self.allocation == "uniform":
            allocated = {task: uniform(sizes[task], self.ratio) for task in participants}
        else:
            spectra = {}
            for task in participants:
                spectrum = given[self._spectrum(scope, task)]
                spectra[task] = {layer: spectrum[layer] for layer in sizes[task]}
            allocated = allocate(spectra, self.ratio, self.allocation)
        return {task: allocated.get(task, sizes[task]) for task in scope.tasks}

    def _sizes(self, given: Given, tracked: Iterable[str]) -> dict[str, int]:
        """Return min(out, in) of every layer that is purified."""
        tracked = set(tracked)
        sizes = {}
        for layer in given.model.layers:
            chosen = self.roles is None or layer.role in self.roles
            weight = given.model.parameters.get(f"{layer.name}.weight")
            if chosen and layer.name in tracked and weight is not None:
                sizes[layer.name] = min(weight.shape)
        return sizes

    def _prune(
        self,
        task: str,
        ranks: Ranks,
        moments: Any,
        tensors: dict[str, Tensor],
        layers: dict[str, dict[str, Any]],
        given: Given,
    ) -> None:
        """Enter the pruned directions of one task, and what they cost."""
        from taskvec.transform.subspace.projection import prune

        vector = given[given.scope.vector(task)]
        for layer, rank in ranks.items():
            weight = _tuned(given, vector, layer)
            moment = moments[layer].second(weight.device)
            pruned = prune(weight, moment, rank, damping=self.damping, whitening=self.whitening)
            tensors[f"{task}/{layer}"] = pruned.directions.float()
            layers[layer] |= {
                "pruned_energy": pruned.energy,
                "activated_error": pruned.error,
                "determined": pruned.determined,
            }

    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the purified vector.

        Raises:
            UserError: if the fit does not cover the vector's task.
        """
        from taskvec.vectors import TaskVector

        task = tasks_of(of)[0]
        if task not in fit.meta["ranks"]:
            raise UserError(f"transform.pave: it was fitted on {', '.join(fit.meta['ranks'])}, which leaves out {task}")
        change = self._faithfully if self.faithful else self._projected
        deltas = dict(vector)
        for layer, rank in fit.meta["ranks"][task].items():
            deltas[f"{layer}.weight"] = change(vector, task, layer, rank, fit, given)
        return TaskVector(deltas, vector.metadata)

    def _projected(self, vector: TaskVector, task: str, layer: str, rank: int, fit: Fit, given: Given) -> Tensor:
        """Return tau - P P^T W_t, or tau - P P^T tau."""
        from taskvec.transform.subspace.projection import removed

        weight = _tuned(given, vector, layer)
        delta = weight - given.model.parameters[f"{layer}.weight"]
        directions = fit.tensors[f"{task}/{layer}"].to(weight.device)
        return delta - removed(weight if self.target == "weight" else delta, directions)

    def _faithfully(self, vector: TaskVector, task: str, layer: str, rank: int, fit: Fit, given: Given) -> Tensor:
        """Return SVD_r(W_t C) C^-1 - W_B."""
        from taskvec.transform.subspace.faithful import damped, purified

        weight = _tuned(given, vector, layer)
        base = given.model.parameters[f"{layer}.weight"]
        covariances = [given[self._moments(given.scope, task)][layer].second(weight.device)]
        if self.count_base:
            covariances.append(given[self._base_moments(given.scope, task)][layer].second(weight.device))
        return purified(weight, damped(covariances, self.damping, self.tolerance), rank) - base


def _tuned(given: Given, vector: TaskVector, layer: str) -> Tensor:
    """Return a layer's fine-tuned weight, its base weight where the vector leaves it alone."""
    name = f"{layer}.weight"
    base = given.model.parameters[name]
    return base + vector[name].to(base) if name in vector else base
