"""Weight-disentanglement error: maps over the coefficients of pairs of vectors, and a matrix at one coefficient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.needs import Examples, Given, Signed
from taskvec.protocols.base import Answer
from taskvec.protocols.questions.looking import OfVectors, Subject
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors.composition import Composition

Pair = tuple[str, str]
EXPONENTS = 600.0  # sums of exponentials in float64 keep their terms below this range
# Of the other task: sums of both distances [2, G, G], rows the own coefficient
Distances = Callable[[str], "Tensor"]


@register(
    "question",
    "disentanglement_maps",
    paper="Ortiz-Jimenez et al., NeurIPS 2023, arXiv 2305.12827, section 4",
)
class DisentanglementMaps(OfVectors):
    """xi(a, b) = sum_i E_{x ~ task i} dist(f(x; theta_0 + a_i tau_i), f(x; theta_0 + a_1 tau_1 + a_2 tau_2)), per pair.

    dist is the disagreement of predicted labels, or the symmetrised KL divergence of softmaxed features (spec 4). Rows
    are the first task's coefficient.
    """

    kind: Literal["disentanglement_maps"] = "disentanglement_maps"
    grid: tuple[float, ...] = Field(min_length=1)
    pairs: tuple[Pair, ...]

    def answer(
        self, given: Given, composition: Composition, vectors: Sequence[Signed]
    ) -> tuple[Answer, dict]:
        """Return both forms of the error over the grid, by pair."""
        import torch

        subject = Subject(given, vectors, linearised=composition.forward == "tangent")
        size = len(self.grid)
        maps = {pair: torch.zeros(2, size, size, dtype=torch.float64) for pair in self.pairs}
        with torch.no_grad():
            for task in subject.tasks:
                self._add_task(maps, subject, task)
        values = {}
        for (first, second), (labels, features) in maps.items():
            forms = {"labels": labels.tolist(), "features": features.tolist()}
            values[f"{first}+{second}"] = {"grid": list(self.grid), **forms}
        return Answer(values=values), {}

    def _add_task(self, maps: dict[Pair, Tensor], subject: Subject, task: str) -> None:
        """Add what the images of a task contribute to the maps of its pairs, all in one pass over them."""
        measure = self._along_lines if subject.linearised else self._point_by_point
        pairs = [pair for pair in self.pairs if task in pair]
        if not pairs:
            return
        for need, rows in subject.batches(task):
            distances = measure(subject, task, need, rows)
            for pair in pairs:
                other = pair[1 - pair.index(task)]
                means = distances(other).cpu() / subject.size(task)
                if task == pair[0]:
                    maps[pair] += means
                else:
                    maps[pair] += means.mT

    def _point_by_point(
        self, subject: Subject, task: str, need: Examples, rows: Tensor | slice
    ) -> Distances:
        """Return the distances on a batch of ``task``, a forward pass for each point."""
        import torch

        look = subject.look(need, rows)
        alone, own = look([{task: a} for a in self.grid])

        def distances(other: str) -> Tensor:
            lines = []
            for index, a in enumerate(self.grid):
                features, labels = look([{task: a, other: b} for b in self.grid])
                differ = (labels != own[index]).sum(1).double()
                lines.append(torch.stack([differ, divergence(features, alone[index])]))
            return torch.stack(lines, dim=1)

        return distances

    def _along_lines(
        self, subject: Subject, task: str, need: Examples, rows: Tensor | slice
    ) -> Distances:
        """Return the distances on a batch of ``task`` in the linearised model, where features are x_a + b v.

        With p(a, b) = softmax(x_a + b v) the divergence is b (E_p(a, b)[v] - E_p(a, 0)[v]) / 2, and the expectations
        over the whole grid are products of exp(x_a) with exp(b v).
        """
        import torch

        base, derivatives = subject.derivatives(need, rows)
        slopes = dict(zip(subject.vectors, derivatives, strict=True))
        scales = base.new_tensor(self.grid).view(-1, 1, 1)
        alone = base + scales * slopes[task]
        own = subject.labels(alone, need)
        start, steps = alone.double(), scales.double()
        first = (start - start.amax(-1, keepdim=True)).exp()  # [G, N, d]

        def distances(other: str) -> Tensor:
            moved = scales * slopes[other]
            changed = []
            for x, labels in zip(alone, own, strict=True):
                differs = subject.labels(x + moved, need) != labels
                changed.append(differs.sum(1))
            differ = torch.stack(changed)
            v = slopes[other].double()
            shifted = steps * v
            if spread(start) + spread(shifted) > EXPONENTS:
                apart = [divergence(x + moved, x) for x in alone]
                return torch.stack([differ, torch.stack(apart)])
            second = (shifted - shifted.amax(-1, keepdim=True)).exp().permute(1, 2, 0)  # [N, d, G]
            weights = first.transpose(0, 1)  # [N, G, d]
            # E_p(a, b)[v], [N, G, G]
            both = (weights @ (second * v.unsqueeze(2))) / (weights @ second)
            single = (weights @ v.unsqueeze(2)) / weights.sum(2, keepdim=True)
            divergences = (both - single) * steps.view(1, 1, -1) / 2
            return torch.stack([differ, divergences.sum(0)])

        return distances


@register(
    "question", "disentanglement_matrix", paper="Zhang et al., NeurIPS 2024, arXiv 2407.02880"
)
class DisentanglementMatrix(OfVectors):
    """xi[t][s], how often adding alpha tau_s changes the label that theta_0 + alpha tau_t gives on task t.

    xi[t][s] = E_{x ~ t} [argmax f(x; theta_0 + alpha tau_t) != argmax f(x; theta_0 + alpha tau_t + alpha tau_s)]; zero
    diagonal, not symmetrised; ``mean`` is over the off-diagonal entries (spec 4).
    """

    kind: Literal["disentanglement_matrix"] = "disentanglement_matrix"
    alpha: float = 1.0

    def answer(
        self, given: Given, composition: Composition, vectors: Sequence[Signed]
    ) -> tuple[Answer, dict]:
        """Return the matrix and the mean off its diagonal."""
        import torch

        subject = Subject(given, vectors, linearised=composition.forward == "tangent")
        matrix = []
        with torch.no_grad():
            for task in subject.tasks:
                matrix.append(self._line(subject, task))
        values = {
            "rows": subject.tasks,
            "columns": subject.tasks,
            "alpha": self.alpha,
            "matrix": matrix,
        }
        return Answer(values=values | {"mean": off_diagonal_mean(matrix)}), {}

    def _line(self, subject: Subject, task: str) -> list[float]:
        # The task itself: its vector alone
        points = [{task: self.alpha, other: self.alpha} for other in subject.tasks]
        own = subject.tasks.index(task)
        changed = [0] * len(points)
        for need, rows in subject.batches(task):
            look = subject.look(need, rows)
            _, labels = look(points)
            differ = labels != labels[own]
            for index, more in enumerate(differ.sum(1).tolist()):
                changed[index] += more
        size = subject.size(task)
        return [count / size for count in changed]


def spread(x: Tensor) -> float:
    """Return the largest range of values over the last dimension."""
    return (x.amax(-1) - x.amin(-1)).max().item()


def divergence(x: Tensor, y: Tensor) -> Tensor:
    """Return the symmetrised divergence of p = softmax(x) and q = softmax(y), [..., N, d], summed over N.

    It is sum (p - q) (x - y) / 2, because p and q have the same sum.
    """
    x, y = x.double(), y.double()
    apart = x.softmax(-1) - y.softmax(-1)
    terms = apart * (x - y)
    return terms.sum((-2, -1)) / 2


def off_diagonal_mean(matrix: Sequence[Sequence[float]]) -> float:
    """Return the mean of a square matrix's entries off its diagonal, 0 if there are none."""
    others = []
    for row, line in enumerate(matrix):
        others += [value for column, value in enumerate(line) if column != row]
    return sum(others) / len(others) if others else 0.0
