"""Quantities other than accuracy: drift, disentanglement, kernel regime. Pure functions of vectors and test images.

Each takes a :class:`Subject` and returns JSON values. Everything linear in the vectors comes from the features at
theta_0 and their derivatives along the vectors, so one pass over the data serves a whole map or matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.data.views import View
    from taskvec.merge.composition import Composition
    from taskvec.models.base import Backbone, Model
    from taskvec.protocols.question import Cell
    from taskvec.vectors import TaskVector

ROWS = 200  # of a batch, and of all derivatives computed at once
EXPONENTS = 600.0  # sums of exponentials in float64 keep their terms below this range
Point = Mapping[str, float]
Look = Callable[[Sequence[Point]], tuple["Tensor", "Tensor"]]


@dataclass(frozen=True)
class Subject:
    """What a measure looks at: ``vectors`` by task, as they are evaluated (``tangent``: linearised), on ``views``."""

    model: Model
    vectors: Mapping[str, TaskVector]
    views: Mapping[str, View]
    settings: Mapping[str, Any]
    tangent: bool

    def batches(self, task: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield inputs, labels and head of one task in batches."""
        view = self.views[task]
        for rows in view.batches(ROWS):
            yield view.take(rows), view.labels(rows), view.head

    def derivatives(self, inputs: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features at theta_0 [N, d] and their derivatives along all vectors [T, N, d]."""
        import torch

        blocks = inputs.split(max(1, ROWS // len(self.vectors)))  # each direction takes a batch's memory
        features, derivatives = zip(*(self._products(block, head) for block in blocks), strict=True)
        return torch.cat(features), torch.cat(derivatives, dim=1)

    @cached_property
    def _products(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        from taskvec.training.linearise import along

        return along(self.model, list(self.vectors.values()))

    def labels(self, features: Tensor, head: Tensor) -> Tensor:
        """Return the labels [K, N] that the base's weights give features [K, N, d]."""
        return self.model.logits(features.flatten(0, 1), head).argmax(1).view(features.shape[:2])

    def look(self, inputs: Tensor, head: Tensor) -> Look:
        """Return the features [K, N, d] and predicted labels [K, N] at K points of coefficients by task.

        Linearised, all points come from one evaluation of the derivatives; otherwise each costs a forward pass.
        """
        import torch

        from taskvec.vectors import TaskVector

        if self.tangent:
            base, derivatives = self.derivatives(inputs, head)

            def linearised(points: Sequence[Point]) -> tuple[Tensor, Tensor]:
                weights = base.new_tensor([[point.get(task, 0.0) for task in self.vectors] for point in points])
                features = base + torch.tensordot(weights, derivatives, dims=1)
                return features, self.labels(features, head)

            return linearised

        def moved(points: Sequence[Point]) -> tuple[Tensor, Tensor]:
            features, labels = [], []
            for point in points:
                vector = sum((self.vectors[task] * scale for task, scale in point.items() if scale), TaskVector({}))
                parameters = vector.apply_to(self.model.parameters)
                features.append(self.model.features(parameters, inputs, head))
                labels.append(self.model.logits(features[-1], head, parameters).argmax(1))
            return torch.stack(features), torch.stack(labels)

        return moved


def drift(subject: Subject) -> dict[str, Any]:
    """Return mean_x ||J(x) tau_s||^2 over the images of task t, for all (t, s): ``matrix[t][s]`` (TAK, spec 3.1)."""
    tasks = list(subject.views)
    matrix = []
    for task in tasks:
        total, count = 0.0, 0
        for inputs, _, head in subject.batches(task):
            _, derivatives = subject.derivatives(inputs, head)
            total, count = total + derivatives.double().square().sum(dim=(1, 2)), count + len(inputs)
        matrix.append((total / count).tolist())
    return {"rows": tasks, "columns": list(subject.vectors), "matrix": matrix}


def kernel_regime(subject: Subject) -> dict[str, Any]:
    """Return per task the non-linear and post-hoc accuracy and the relative feature error ||f - g|| / ||f - f_0||.

    f is the fine-tuned model's feature, g that of its linearisation at theta_0, f_0 the pre-trained one; norms are over
    all images of the task's test split (arXiv 2407.07089, spec 5.3).
    """
    from taskvec.training.linearise import jvp_features

    model, found = subject.model, {}
    for task, vector in subject.vectors.items():
        parameters = vector.apply_to(model.parameters)
        sums = dict.fromkeys(("non_linear", "post_hoc", "error", "moved"), 0.0)
        for inputs, labels, head in subject.batches(task):
            f = model.features(parameters, inputs, head)
            f0, derivative = jvp_features(model, vector, inputs, head)
            g = f0 + derivative
            sums["non_linear"] += (model.logits(f, head, parameters).argmax(1) == labels).sum().item()
            sums["post_hoc"] += (model.logits(g, head).argmax(1) == labels).sum().item()
            sums["error"] += (f - g).double().square().sum().item()
            sums["moved"] += (f - f0).double().square().sum().item()
        count = len(subject.views[task])
        found[task] = {
            "non_linear": sums["non_linear"] / count,
            "post_hoc": sums["post_hoc"] / count,
            "relative_feature_error": (sums["error"] / sums["moved"]) ** 0.5 if sums["moved"] else 0.0,
        }
    return found


def disentanglement(subject: Subject) -> dict[str, Any]:
    """Return the error xi(a, b) of each pair of tasks over a square grid, in label and in representation form.

    xi(a, b) = sum_{i=1,2} E_{x ~ task i} dist(f(x; theta_0 + a_i tau_i), f(x; theta_0 + a_1 tau_1 + a_2 tau_2)),
    with dist the disagreement of predicted labels, or the symmetrised KL divergence of softmaxed features
    (arXiv 2305.12827, spec 4). Rows are the first task's coefficient.
    """
    import torch

    grid, pairs = list(subject.settings["grid"]), [tuple(pair) for pair in subject.settings["pairs"]]
    maps = {pair: torch.zeros(2, len(grid), len(grid), dtype=torch.float64) for pair in pairs}
    for task in subject.views:  # all pairs of a task share one pass over its images
        mine = [pair for pair in pairs if task in pair]
        for inputs, _, head in subject.batches(task) if mine else ():
            distances = (_along_lines if subject.tangent else _point_by_point)(subject, task, inputs, head, grid)
            for pair in mine:
                sums = distances(pair[1 - pair.index(task)]).cpu() / len(subject.views[task])
                maps[pair] += sums if task == pair[0] else sums.mT
    return {
        f"{first}+{second}": {"grid": grid, "labels": labels.tolist(), "features": features.tolist()}
        for (first, second), (labels, features) in maps.items()
    }


Distances = Callable[[str], "Tensor"]  # of the other task: sums of both distances [2, G, G], rows the own coefficient


def _point_by_point(subject: Subject, task: str, inputs: Tensor, head: Tensor, grid: Sequence[float]) -> Distances:
    """Return the distances on a batch of ``task``, a forward pass for each point."""
    import torch

    look = subject.look(inputs, head)
    alone, own = look([{task: a} for a in grid])

    def distances(other: str) -> Tensor:
        rows = []
        for i, a in enumerate(grid):
            features, labels = look([{task: a, other: b} for b in grid])
            rows.append(torch.stack([(labels != own[i]).sum(1).double(), divergence(features, alone[i])]))
        return torch.stack(rows, dim=1)

    return distances


def _along_lines(subject: Subject, task: str, inputs: Tensor, head: Tensor, grid: Sequence[float]) -> Distances:
    """Return the distances on a batch of ``task`` in the linearised model, where features are x_a + b v.

    With p(a, b) = softmax(x_a + b v) the divergence is b (E_p(a, b)[v] - E_p(a, 0)[v]) / 2, and the expectations over
    the whole grid are products of exp(x_a) with exp(b v).
    """
    import torch

    base, derivatives = subject.derivatives(inputs, head)
    slopes = dict(zip(subject.vectors, derivatives, strict=True))
    scales = base.new_tensor(grid).view(-1, 1, 1)
    alone = base + scales * slopes[task]
    own = subject.labels(alone, head)
    start, steps = alone.double(), scales.double()
    first = (start - start.amax(-1, keepdim=True)).exp()  # [G, N, d]

    def distances(other: str) -> Tensor:
        moved = scales * slopes[other]
        differ = torch.stack([(subject.labels(x + moved, head) != y).sum(1) for x, y in zip(alone, own, strict=True)])
        v = slopes[other].double()
        if spread(start) + spread(steps * v) > EXPONENTS:
            return torch.stack([differ, torch.stack([divergence(x + moved, x) for x in alone])])
        second = steps * v
        second = (second - second.amax(-1, keepdim=True)).exp().permute(1, 2, 0)  # [N, d, G]
        weights = first.transpose(0, 1)  # [N, G, d]
        both = (weights @ (second * v.unsqueeze(2))) / (weights @ second)  # E_p(a, b)[v], [N, G, G]
        single = (weights @ v.unsqueeze(2)) / weights.sum(2, keepdim=True)
        return torch.stack([differ, ((both - single) * steps.view(1, 1, -1)).sum(0) / 2])

    return distances


def spread(x: Tensor) -> float:
    """Return the largest range of values over the last dimension."""
    return (x.amax(-1) - x.amin(-1)).max().item()


def divergence(x: Tensor, y: Tensor) -> Tensor:
    """Return the symmetrised divergence of p = softmax(x) and q = softmax(y), [..., N, d], summed over N.

    It is sum (p - q) (x - y) / 2, because p and q have the same sum.
    """
    x, y = x.double(), y.double()
    return ((x.softmax(-1) - y.softmax(-1)) * (x - y)).sum((-2, -1)) / 2


def disentanglement_matrix(subject: Subject) -> dict[str, Any]:
    """Return xi[t][s], how often adding alpha tau_s changes the label that theta_0 + alpha tau_t gives on task t.

    xi[t][s] = E_{x ~ t} [argmax f(x; theta_0 + alpha tau_t) != argmax f(x; theta_0 + alpha tau_t + alpha tau_s)]; zero
    diagonal, not symmetrised; ``mean`` is over the off-diagonal entries (aTLAS, spec 4).
    """
    tasks, alpha = list(subject.vectors), subject.settings["alpha"]
    matrix = []
    for task in tasks:
        points = [{task: alpha, other: alpha} for other in tasks]  # the task itself: its vector alone
        changed = [0] * len(tasks)
        for inputs, _, head in subject.batches(task):
            _, labels = subject.look(inputs, head)(points)
            differ = (labels != labels[tasks.index(task)]).sum(1).tolist()
            changed = [total + more for total, more in zip(changed, differ, strict=True)]
        matrix.append([count / len(subject.views[task]) for count in changed])
    mean = off_diagonal_mean(matrix)
    return {"rows": tasks, "columns": tasks, "alpha": alpha, "matrix": matrix, "mean": mean}


def off_diagonal_mean(matrix: Sequence[Sequence[float]]) -> float:
    """Return the mean of a square matrix's entries off its diagonal, 0 if there are none."""
    others = [value for t, line in enumerate(matrix) for s, value in enumerate(line) if s != t]
    return sum(others) / len(others) if others else 0.0


def orthogonality(subject: Subject) -> dict[str, Any]:
    """Return the cosines <tau_s, tau_t> / (||tau_s|| ||tau_t||) of all pairs of vectors."""
    vectors = list(subject.vectors.values())
    norms = [float(vector.norm()) for vector in vectors]
    matrix = [
        [float(a.dot(b)) / (m * n) if m and n else 0.0 for b, n in zip(vectors, norms, strict=True)]
        for a, m in zip(vectors, norms, strict=True)
    ]
    return {"rows": list(subject.vectors), "columns": list(subject.vectors), "matrix": matrix, "norms": norms}


MEASURES: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "drift": drift,
    "kernel_regime": kernel_regime,
    "disentanglement": disentanglement,
    "disentanglement_matrix": disentanglement_matrix,
    "orthogonality": orthogonality,
}


@dataclass(frozen=True)
class Merged:
    """What a measure of a merged model looks at: the composition at the first of the cell's fixed coefficients."""

    model: Model
    backbone: Backbone
    composition: Composition
    cell: Cell
    bf16: bool

    @property
    def alpha(self) -> float:
        """The coefficient."""
        return self.cell.fixed[0]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What shapes the answer."""
        return self.cell.measure_settings


def harness(merged: Merged) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what lm-evaluation-harness finds on one task (see :mod:`taskvec.protocols.harness_run`)."""
    from taskvec.protocols.harness_run import harness as run

    return run(merged)


COMPOSED: dict[str, Callable[[Merged], tuple[dict[str, Any], dict[str, Tensor]]]] = {"harness": harness}
