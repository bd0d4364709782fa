"""Disentanglement, drift, kernel regime and orthogonality against the spec's properties and brute force."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch
import torch.nn.functional as F
import world
from asked import Given, tuned
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from taskvec.data.views import View
from taskvec.errors import UserError
from taskvec.models.base import Model
from taskvec.needs import Signed
from taskvec.protocols.disentanglement import Disentanglement, in_the_box
from taskvec.protocols.questions import disentanglement, looking
from taskvec.protocols.questions.disentanglement import (
    DisentanglementMaps,
    DisentanglementMatrix,
    off_diagonal_mean,
)
from taskvec.protocols.questions.drift import Drift
from taskvec.protocols.questions.kernel_regime import KernelRegime
from taskvec.protocols.questions.orthogonality import Orthogonality
from taskvec.training import regularisers
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Scaled

SEEDS = pytest.mark.parametrize("seed", [5, 77])
MODES = pytest.mark.parametrize("tangent", [False, True], ids=["standard", "tangent"])
TASKS = ("a", "b", "c")


class Tower(Model):
    """Two layers in float64; ``tied`` scores by an embedding of the weights, as causal language models do."""

    def __init__(self, seed: int, *, tied: bool = False):
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5)]
        super().__init__(nn.Sequential(*layers).double())
        self.tied = tied

    def prepare(self, inputs):
        return (inputs.double(),)

    def logits(self, features, head, parameters=None):
        if self.tied:
            return features @ (parameters or self.parameters)["3.weight"][:, head]
        return F.normalize(features, dim=-1) @ head.T


def views(seed: int, *sizes: int, tied: bool = False) -> dict[str, View]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for task, size in zip(TASKS, sizes, strict=False):
        inputs = torch.randn(size, 3, 2, 2, generator=generator, dtype=torch.float64)
        head = torch.randn(4, 5, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 4, (size,), generator=generator)
        found[task] = world.view(
            inputs, labels, torch.randperm(7, generator=generator)[:4] if tied else head
        )
    return found


def vectors(
    seed: int, model: Model, count: int, size: float = 0.7, names: str = ""
) -> dict[str, TaskVector]:
    generator = torch.Generator().manual_seed(seed)
    chosen = {n: p for n, p in model.parameters.items() if names in n}
    return {
        task: TaskVector(
            {
                n: size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
                for n, p in chosen.items()
            }
        )
        for task in TASKS[:count]
    }


class Subject(Given):
    """A model, vectors by task and the test examples that a question is given; what the references look at too."""

    def __init__(
        self, model: Model, vectors: dict[str, TaskVector], views: dict[str, View], tangent: bool
    ):
        super().__init__(model, {(task, "test"): view for task, view in views.items()})
        self.vectors, self.tangent, self.of_task = vectors, tangent, views

    def values(self, question) -> dict:
        """Return what a question finds out."""
        composition = Scaled(self.model.parameters, TaskVector({}))
        composition.forward = "tangent" if self.tangent else "standard"
        signed = [Signed(tuned(task), 1.0, vector) for task, vector in self.vectors.items()]
        answer, tensors = question.answer(self, composition, signed)
        assert tensors == {}
        assert {(need.use, need.labels) for need in self.asked} <= {("report", True)}
        return answer.values


def subject(
    seed: int, *, tangent: bool, sizes: tuple[int, ...] = (9, 6), tied: bool = False
) -> Subject:
    model = Tower(seed, tied=tied)
    return Subject(model, vectors(seed, model, len(sizes)), views(seed, *sizes, tied=tied), tangent)


def maps(*pairs: str, grid: tuple[float, ...]) -> DisentanglementMaps:
    """The question about pairs of tasks, each written as two letters."""
    return DisentanglementMaps(grid=grid, pairs=tuple((first, second) for first, second in pairs))


# --- references: one image and one point at a time, the Jacobian in full ----------------------------------------------


def jacobian(model: Model, image: Tensor) -> dict[str, Tensor]:
    """Return d features / d parameter for one image, by name, [d, *shape]."""
    known = model.__dict__.setdefault("jacobians", {})
    if (key := image.numpy().tobytes()) not in known:
        parameters = dict(model.parameters)
        known[key] = jacrev(
            lambda p: functional_call(model.module, p, model.prepare(image[None]))[0]
        )(parameters)
    return known[key]


def features_at(
    subject: Subject, image: Tensor, point: dict[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return features [d] and weights at theta_0 + sum_t point_t tau_t."""
    base = subject.model.parameters
    moved = {
        n: sum((s * subject.vectors[t][n] for t, s in point.items()), torch.zeros_like(p))
        for n, p in base.items()
    }
    if not subject.tangent:
        weights = {n: p + moved[n] for n, p in base.items()}
        return functional_call(subject.model.module, weights, subject.model.prepare(image[None]))[
            0
        ], weights
    start = functional_call(subject.model.module, dict(base), subject.model.prepare(image[None]))[0]
    slope = jacobian(subject.model, image)
    return start + sum(
        (slope[n].flatten(1) @ moved[n].flatten() for n in base), torch.zeros_like(start)
    ), base


def label(subject: Subject, task: str, found: tuple[Tensor, dict[str, Tensor]]) -> int:
    features, weights = found
    return int(
        subject.model.logits(features[None], subject.of_task[task].head, weights)[0].argmax()
    )


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def xi(subject: Subject, pair: tuple[str, str], a: float, b: float) -> tuple[float, float]:
    """Return both forms of the error by the spec's formula."""
    totals = [0.0, 0.0]
    for task, alone in zip(pair, ({pair[0]: a}, {pair[1]: b}), strict=True):
        images = subject.of_task[task].take(slice(None))
        for image in images:
            one, both = (
                features_at(subject, image, point) for point in (alone, {pair[0]: a, pair[1]: b})
            )
            totals[0] += (label(subject, task, one) != label(subject, task, both)) / len(images)
            p, q = (torch.softmax(found[0], 0).tolist() for found in (one, both))
            totals[1] += (divergence(p, q) + divergence(q, p)) / 2 / len(images)
    return totals[0], totals[1]


GRID = (-1.5, 0.0, 0.4, 1.0)


@SEEDS
@MODES
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied head"])
def test_maps_equal_brute_force(
    seed: int, tangent: bool, tied: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(looking, "ROWS", 12)
    looked = subject(seed, tangent=tangent, sizes=(6, 5, 3), tied=tied)
    found = looked.values(maps("ab", "ca", grid=GRID))
    assert list(found) == ["a+b", "c+a"]
    for pair, at in zip(("ab", "ca"), found.values(), strict=True):
        assert at["grid"] == list(GRID)
        for (i, a), (j, b) in product(enumerate(GRID), enumerate(GRID)):
            labels, features = xi(looked, tuple(pair), a, b)
            assert at["labels"][i][j] == pytest.approx(labels, abs=1e-12)
            assert at["features"][i][j] == pytest.approx(features, rel=1e-9, abs=1e-12)


@SEEDS
@MODES
def test_map_properties(seed: int, tangent: bool):
    looked = subject(seed, tangent=tangent, sizes=(30, 20))
    both_ways = looked.values(maps("ab", "ba", grid=GRID))
    found = {
        pair: {form: torch.tensor(at[form]) for form in ("labels", "features")}
        for pair, at in both_ways.items()
    }
    zero = GRID.index(0.0)
    for form in ("labels", "features"):
        values = found["a+b"][form]
        assert values[zero, zero] == 0
        assert values.min() >= 0 and (form == "features" or values.max() <= 2)
        assert values.max() > 0.1, "the vectors are large enough to matter"
        torch.testing.assert_close(found["b+a"][form], values.mT)
    # at (a, 0) only the second task's images can tell: the map of the first task's images alone is zero there
    for i, a in enumerate(GRID):
        wrong = 0
        for image in looked.of_task["b"].take(slice(None)):
            start, moved = (features_at(looked, image, point) for point in ({}, {"a": a}))
            wrong += label(looked, "b", start) != label(looked, "b", moved)
        assert both_ways["a+b"]["labels"][i][zero] == pytest.approx(wrong / 20)


class Experts(Model):
    """Two experts with weights and inputs of their own."""

    def __init__(self):
        torch.manual_seed(3)
        super().__init__(
            nn.ModuleDict(
                {"a": nn.Linear(4, 5, bias=False), "b": nn.Linear(4, 5, bias=False)}
            ).double()
        )

    def features(self, parameters, inputs, head=None):
        weights = {**self.parameters, **parameters}
        first, second = inputs.double().flatten(1).chunk(2, dim=1)
        return torch.tanh(first @ weights["a.weight"].T) + torch.tanh(
            second @ weights["b.weight"].T
        )

    def logits(self, features, head, parameters=None):
        return features @ head.T


@MODES
def test_experts_on_disjoint_inputs_are_disentangled(tangent: bool):
    model, own = Experts(), {}
    for task, keep in (("a", slice(0, 4)), ("b", slice(4, 8))):
        inputs = torch.zeros(11, 8, dtype=torch.float64)
        inputs[:, keep] = torch.randn(11, 4, dtype=torch.float64)
        own[task] = world.view(
            inputs, torch.zeros(11, dtype=torch.long), torch.randn(3, 5, dtype=torch.float64)
        )
    moved = {
        t: TaskVector({f"{t}.weight": 3 * torch.randn(5, 4, dtype=torch.float64)}) for t in "ab"
    }
    looked = Subject(model, moved, own, tangent)
    found = looked.values(maps("ab", grid=(-2, 0, 0.5, 2)))["a+b"]
    assert not torch.tensor(found["labels"]).any()
    torch.testing.assert_close(torch.tensor(found["features"]), torch.zeros(4, 4))
    assert looked.values(DisentanglementMatrix())["matrix"] == [[0, 0], [0, 0]]
    drift = looked.values(Drift())["matrix"]
    assert drift[0][1] == drift[1][0] == 0


@pytest.mark.parametrize("large", [False, True])
def test_divergence_ignores_a_shift_and_survives_large_features(large: bool):
    """A vector that adds a constant to every channel changes no distribution; nothing overflows."""
    model = Tower(1)
    own = views(1, 6, 6)
    shift = TaskVector({"3.bias": torch.full((5,), 40.0, dtype=torch.float64)})
    other = vectors(2, model, 2, size=400.0 if large else 0.5)["b"]
    looked = Subject(model, {"a": shift, "b": other}, own, True)
    found = torch.tensor(looked.values(maps("ab", grid=(0, 1, 2)))["a+b"]["features"])
    assert found.isfinite().all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    assert (found[:, 0] < 1e-12).all() and (found[:, 1:] > 1e-3).all()


@SEEDS
@MODES
def test_matrix_equals_brute_force(seed: int, tangent: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(looking, "ROWS", 9)
    looked = subject(seed, tangent=tangent, sizes=(7, 5, 8))
    found = looked.values(DisentanglementMatrix(alpha=0.8))
    assert found["rows"] == found["columns"] == list(TASKS) and found["alpha"] == 0.8
    total = 0.0
    for (t, task), (s, other) in product(enumerate(TASKS), enumerate(TASKS)):
        images = looked.of_task[task].take(slice(None))
        own = [label(looked, task, features_at(looked, image, {task: 0.8})) for image in images]
        both = [
            label(looked, task, features_at(looked, image, {task: 0.8, other: 0.8}))
            for image in images
        ]
        expected = (
            0 if s == t else sum(x != y for x, y in zip(own, both, strict=True)) / len(images)
        )
        assert found["matrix"][t][s] == pytest.approx(expected)
        total += expected
    assert found["mean"] == pytest.approx(total / 6) and total > 0


# The matrices of aTLAS's table (arXiv 2407.02880), in percent; rows are data sets, columns the added vectors.
PRINTED = {
    6.67: """0 6.7 10.3 9.7 10.1 8.4 7.8 9.0 / 5.4 0 10.5 9.5 8.9 9.8 6.9 8.9 / 1.4 2.8 0 3.7 4.3 3.7 1.6 3.9 /
        8.7 8.9 15.1 0 13.5 12.3 6.8 12.5 / 0.9 1.0 2.4 2.0 0 1.3 0.8 3.1 / 4.1 4.6 10.3 5.0 5.5 0 4.5 5.2 /
        6.2 6.6 8.0 7.2 6.8 7.5 0 6.9 / 4.3 5.2 10.2 12.0 10.3 7.1 3.7 0""",
    5.69: """0 5.9 7.5 4.6 4.0 7.2 7.8 5.2 / 5.2 0 9.7 3.7 4.6 7.1 4.8 5.6 / 0.8 1.3 0 1.3 0.8 2.1 0.9 1.5 /
        8.5 8.9 14.7 0 8.6 10.7 7.8 10.3 / 0.9 0.9 1.9 1.7 0 1.1 0.8 2.8 / 3.2 3.4 8.9 2.2 2.1 0 3.5 2.4 /
        5.6 5.2 7.3 3.5 3.0 6.5 0 3.9 / 10.3 9.1 19.0 21.4 13.0 7.4 6.5 0""",
    4.28: """0 6.9 6.7 9.7 5.7 7.4 6.2 6.9 / 4.7 0 6.3 5.9 4.6 10.2 5.7 6.6 / 1.7 2.2 0 3.7 1.5 4.5 1.2 3.4 /
        2.5 1.6 2.5 0 2.5 2.8 1.6 4.0 / 2.8 2.4 2.8 5.0 0 2.8 1.5 6.6 / 2.4 2.8 5.5 2.9 1.5 0 2.3 2.6 /
        7.4 8.5 6.5 6.2 5.0 9.9 0 5.7 / 1.5 1.6 2.6 5.0 3.1 2.3 1.5 0""",
    4.39: """0 4.8 4.1 6.7 4.8 4.1 7.8 5.1 / 5.4 0 4.5 5.8 4.0 5.7 5.9 4.5 / 1.0 1.2 0 2.1 0.9 1.9 0.9 1.4 /
        3.3 3.4 3.0 0 3.1 2.2 2.1 5.3 / 0.3 0.3 0.2 0.8 0 0.2 0.1 1.3 / 3.3 3.1 5.6 2.9 2.0 0 3.8 2.1 /
        7.9 6.2 5.2 6.0 3.9 6.6 0 4.3 / 7.0 7.3 9.7 24.8 17.1 4.2 4.7 0""",
}


@pytest.mark.parametrize("mean", list(PRINTED))
def test_printed_matrices_have_their_printed_means(mean: float):
    matrix = [[float(value) for value in line.split()] for line in PRINTED[mean].split("/")]
    assert [len(line) for line in matrix] == [8] * 8 and all(matrix[i][i] == 0 for i in range(8))
    assert round(off_diagonal_mean(matrix), 2) == mean
    with_diagonal = [
        [99.0 if t == s else value for s, value in enumerate(line)] for t, line in enumerate(matrix)
    ]
    assert round(off_diagonal_mean(with_diagonal), 2) == mean
    assert off_diagonal_mean([[3.0]]) == 0


@SEEDS
def test_drift_equals_the_quadratic_form_of_the_full_ggn(
    seed: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(looking, "ROWS", 12)
    looked = subject(seed, tangent=True, sizes=(6, 3, 5))
    found = looked.values(Drift())
    for (t, task), (s, other) in product(enumerate(TASKS), enumerate(TASKS)):
        images, tau = looked.of_task[task].take(slice(None)), looked.vectors[other]
        flat = torch.cat([tau[n].flatten() for n in looked.model.parameters])
        slopes = [jacobian(looked.model, image) for image in images]
        rows = [
            torch.cat([slope[n].flatten(1) for n in looked.model.parameters], 1) for slope in slopes
        ]
        ggn = sum(row.T @ row for row in rows) / len(images)
        assert found["matrix"][t][s] == pytest.approx((flat @ ggn @ flat).item(), rel=1e-10)
        penalty = regularisers.drift(looked.model, dict(tau), images)
        assert found["matrix"][t][s] == pytest.approx(penalty.item(), rel=1e-10)
        leaves = {n: delta.clone().requires_grad_() for n, delta in tau.items()}
        gradient = torch.autograd.grad(
            regularisers.drift(looked.model, leaves, images), list(leaves.values())
        )
        torch.testing.assert_close(
            torch.cat([g.flatten() for g in gradient]),
            2 * ggn @ torch.cat([tau[n].flatten() for n in tau]),
            rtol=1e-9,
            atol=1e-10,
        )


@SEEDS
def test_a_model_linear_in_what_moved_is_in_the_kernel_regime(seed: int):
    looked = subject(seed, tangent=False, sizes=(40, 30))
    last = vectors(seed + 1, looked.model, 2, names="3.")
    linear = Subject(looked.model, last, looked.of_task, False).values(KernelRegime())
    for at in linear.values():
        assert at["relative_feature_error"] < 1e-14 and at["post_hoc"] == at["non_linear"]
    curved = looked.values(KernelRegime())
    for task, at in curved.items():
        f, g, start = [], [], []
        for image in looked.of_task[task].take(slice(None)):
            f.append(features_at(looked, image, {task: 1.0})[0])
            linearised = Subject(looked.model, looked.vectors, looked.of_task, True)
            g.append(features_at(linearised, image, {task: 1.0})[0])
            start.append(features_at(looked, image, {})[0])
        f, g, start = map(torch.stack, (f, g, start))
        assert at["relative_feature_error"] == pytest.approx(
            ((f - g).norm() / (f - start).norm()).item(), rel=1e-10
        )
        view = looked.of_task[task]
        for name, features in (("non_linear", f), ("post_hoc", g)):
            right = (
                (looked.model.logits(features, view.head).argmax(1) == view.labels())
                .double()
                .mean()
            )
            assert at[name] == pytest.approx(right.item())
    still = {task: 0 * vector for task, vector in looked.vectors.items()}
    unmoved = Subject(looked.model, still, looked.of_task, False).values(KernelRegime())
    assert unmoved["a"]["relative_feature_error"] == 0


@SEEDS
def test_orthogonality_is_the_matrix_of_cosines(seed: int):
    looked = subject(seed, tangent=False, sizes=(1, 1, 1))
    looked.vectors["b"]._deltas.pop("1.bias")  # absent is zero
    found = looked.values(Orthogonality())
    flat = {t: torch.cat([v.get(n, torch.zeros(p.shape)).flatten() for n, p in looked.model.parameters.items()])
            for t, v in looked.vectors.items()}  # fmt: skip
    for (t, task), (s, other) in product(enumerate(TASKS), enumerate(TASKS)):
        cosine = F.cosine_similarity(flat[task].double(), flat[other].double(), dim=0)
        assert found["matrix"][t][s] == pytest.approx(cosine.item(), abs=1e-12)
    assert found["norms"] == pytest.approx([flat[t].norm().item() for t in TASKS])


def test_linearised_maps_cost_one_pass_whatever_pairs_and_grid(monkeypatch: pytest.MonkeyPatch):
    images = []
    monkeypatch.setattr(looking, "ROWS", 12)
    every = ["".join(pair) for pair in combinations(TASKS, 2)]
    for question in (maps("ab", grid=(0, 1)), maps(*every, grid=tuple(range(9)))):
        looked = subject(1, tangent=True, sizes=(9, 6, 5))
        seen = []
        original = type(looked.model).features

        def counted(self, parameters, inputs, head=None, seen=seen, original=original):
            seen.append(len(inputs))
            return original(self, parameters, inputs, head)

        monkeypatch.setattr(type(looked.model), "features", counted)
        looked.values(question)
        monkeypatch.setattr(type(looked.model), "features", original)
        images.append(sum(seen))
    assert images == [9 + 6, 9 + 6 + 5], "the model is entered once per image"


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [([("a", "z")], "z not in the suite"), ([("a", "a")], "a is paired with itself")],
)
def test_pairs_are_checked(pairs, reason):
    class Suite:
        tasks, definitions = TASKS, {}

    with pytest.raises(UserError, match=reason):
        Disentanglement(kind="disentanglement", pairs=pairs).check(Suite())


def test_the_search_box_is_the_unit_square():
    values = {
        "grid": [-1, 0, 0.5, 1, 2],
        "labels": [[i * 10 + j for j in range(5)] for i in range(5)],
    }
    assert in_the_box(values, "labels") == 22


@SEEDS
def test_grids_by_products_and_point_by_point_agree(seed: int, monkeypatch: pytest.MonkeyPatch):
    looked, question = subject(seed, tangent=True, sizes=(12, 9, 7)), maps("ab", "cb", grid=GRID)
    by_products = looked.values(question)
    monkeypatch.setattr(disentanglement, "EXPONENTS", -1.0)
    directly = looked.values(question)
    monkeypatch.setattr(DisentanglementMaps, "_along_lines", DisentanglementMaps._point_by_point)
    by_points = looked.values(question)
    for pair, at in by_products.items():
        for other in (directly[pair], by_points[pair]):
            assert at["labels"] == other["labels"]
            torch.testing.assert_close(
                torch.tensor(at["features"]), torch.tensor(other["features"])
            )
