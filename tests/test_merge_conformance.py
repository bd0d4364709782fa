"""What every registered merge must do, whatever it computes. A new merge is tested as soon as it is registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from merge_world import SHAPES, Given, close, draw, given_for, signed
from safetensors.torch import load_file, save_file
from test_merge_learned import Rows, Small
from torch import Tensor

from taskvec import registry
from taskvec.merge import pieces
from taskvec.merge.base import Merge, TensorWise
from taskvec.models.layers import LinearLayer
from taskvec.needs import Examples, Signed, Statistics
from taskvec.protocols.base import Learning
from taskvec.statistics.values import Moment
from taskvec.training.evaluator import Evaluator
from taskvec.training.objectives.entropy import Entropy

# Peers of merges that take no vectors are tested with aTLAS.
NAMES = [entry.name for entry in registry.entries("merge") if entry.schema.vectors != (0, 0)]

# Options under which one vector comes back as it is, and so do several equal ones (of sums: times their number).
IDENTITY: dict[str, dict[str, Any]] = {
    "average": {}, "task_arithmetic": {}, "emr": {}, "tall_masks": {}, "tsv": {}, "cart": {"rank": 1.0},
    "wudi": {}, "fisher": {}, "regmean": {}, "regmean_pp": {}, "karcher": {}, "multislerp": {}, "model_stock": {},
    "slerp": {}, "nuslerp": {}, "magmax": {}, "ties": {"density": 1.0}, "dare": {"density": 1.0},
    "breadcrumbs": {"density": 1.0, "outliers": 0.0}, "della": {"density": 1.0, "spread": 0.0}, "sce": {"select": 1.0},
    "knots": {"density": 1.0}, "consensus_ta": {"agreeing": 1},
}  # fmt: skip
SUMS = {"task_arithmetic", "dare", "breadcrumbs", "consensus_ta", "tall_masks"}
# Flat spectra, scores, learned coefficients
NO_IDENTITY = {"iso_c", "iso_cts", "pcb", "adamerging", "atlas"}
OF_MODELS = {"regmean_pp", "adamerging", "atlas"}
MATRIX = {"tsv", "wudi"}  # of equal vectors they keep the leading part, or the mean


@dataclass
class Case:
    """A merge with weights, vectors and what it is given."""

    merge: Merge
    base: dict[str, Tensor]
    deltas: list[dict[str, Tensor]]

    def run(
        self, deltas: Sequence[Mapping[str, Tensor]] | None = None, **how: Any
    ) -> dict[str, dict[str, Tensor]]:
        """Return each task's weights, less theta_0, at alpha 1 (of thresholds: 0.5)."""
        vectors = signed(self.deltas if deltas is None else deltas, how.get("signs"))
        if "order" in how:
            vectors = [vectors[place] for place in how["order"]]
        composition = self.merge.compose(self.base, vectors, self.given(vectors))
        return self.weights(composition, vectors)

    def weights(self, composition: Any, vectors: Sequence[Signed]) -> dict[str, dict[str, Tensor]]:
        """Return each task's weights."""
        alpha = 0.5 if self.merge.kind == "tall_masks" else 1.0
        return {
            vector.tasks[0]: dict(composition.parameters(alpha, vector.tasks[0]))
            for vector in vectors
        }

    def given(self, vectors: Sequence[Signed]) -> Given:
        """Return statistics, examples and a model, as far as the merge asks for them."""
        given = given_for(vectors, seed=5)
        examples = tuple(
            Examples(f"t{number}", "val", "learning") for number in range(len(vectors))
        )
        given.learning = Learning("entropy", examples)
        needs = [*self.merge.needs(given.scope), *given.learning.examples]
        given.known = {need: self.known(need) for need in needs}
        if self.merge.kind in OF_MODELS:
            given.model = Small()
            given.model.layers = [LinearLayer("0", "fc", 0), LinearLayer("2", "fc", 1)]
            given.model.module.to(self.base["0.weight"])
            given.model.module.load_state_dict(self.base)
            given.model.parameters = self.base
        given.objective, given.evaluator = Entropy(), Evaluator(given.model, given.__getitem__)
        return given

    def known(self, need: Any) -> Any:
        """Return a random statistic, or rows, that depend on the task alone."""
        task = need.on.task if isinstance(need, Statistics) else need.task
        seed = int(task[1:])
        like = next(iter(self.base.values()))
        if isinstance(need, Examples):
            rows = draw(40 + seed, {"x": (24, 5), "head": (3, 4)})
            return View(rows["x"].to(like), rows["head"].to(like))
        if need.what.kind == "fisher":
            shapes = {name: tensor.shape for name, tensor in self.base.items()}
            return {name: tensor.square() for name, tensor in draw(60 + seed, shapes).items()}
        return {name: moment(seed, width) for name, width in (("block.fc", 9), ("block.proj", 12))}


class View(Rows):
    """Rows in batches."""

    def batches(self, size: int):
        yield slice(0, len(self.inputs))


def moment(seed: int, width: int) -> Moment:
    x = draw(80 + seed, {"x": (30, width)})["x"]
    return Moment(x.T @ x, x.sum(0), 30)


def case(name: str, count: int = 2, dtype: torch.dtype = torch.float64, **options: Any) -> Case:
    """Return a merge with its options, on two vectors unless it is told otherwise."""
    short = {"schedule": {"epochs": 1}}
    quick = {
        "adamerging": {"schedule": {"steps": 2}},
        "atlas": short,
        "karcher": {"steps": 50},
        "wudi": {"steps": 20},
    }
    schema = registry.lookup("merge", name).schema
    merge = schema(**(quick.get(name, {}) | options))
    small = {key: tensor.shape for key, tensor in Small().parameters.items()}
    shapes = small if name in OF_MODELS else SHAPES
    deltas = [draw(11 + number, shapes, dtype) for number in range(count)]
    return Case(merge, draw(99, shapes, dtype), deltas)


def the_same(left: Mapping[str, dict], right: Mapping[str, dict], tolerance: float = 1e-9) -> None:
    assert left.keys() == right.keys()
    for task in left:
        close(left[task], right[task], tolerance)


def test_every_merge_is_covered():
    assert set(NAMES) == IDENTITY.keys() | NO_IDENTITY


@pytest.mark.parametrize("name", NAMES)
def test_no_vectors_change_nothing(name):
    tried = case(name)
    zeros = [
        {key: torch.zeros_like(tensor) for key, tensor in delta.items()} for delta in tried.deltas
    ]
    for task, weights in tried.run(zeros).items():
        close(weights, tried.base, 1e-12)
        assert task in ("t0", "t1")


@pytest.mark.parametrize("name", NAMES)
def test_absent_tensors_are_zeros(name):
    tried = case(name)
    first, second = tried.deltas
    keys = list(first)
    first[keys[0]] = torch.zeros_like(first[keys[0]])
    second[keys[1]] = torch.zeros_like(second[keys[1]])
    first[keys[2]] = second[keys[2]] = torch.zeros_like(first[keys[2]])
    sparse = [
        {key: tensor for key, tensor in delta.items() if tensor.any()} for delta in tried.deltas
    ]
    assert len(sparse[0]) < len(first)
    the_same(tried.run(sparse), tried.run())


@pytest.mark.parametrize("name", NAMES)
def test_order_of_vectors_and_tensors_does_not_matter(name):
    tried = case(name)
    if tried.merge.draws and not tried.merge.learned:
        tried = case(name, **IDENTITY[name])  # masks are drawn by position
    the_same(tried.run(order=[1, 0]), tried.run(), 1e-7)
    backwards = [dict(reversed(delta.items())) for delta in tried.deltas]
    the_same(tried.run(backwards), tried.run())


@pytest.mark.parametrize("name", NAMES)
def test_signs_multiply_vectors(name):
    tried = case(name)
    minus = [tried.deltas[0], {key: -tensor for key, tensor in tried.deltas[1].items()}]
    the_same(tried.run(signs=[1.0, -1.0]), tried.run(minus))


@pytest.mark.parametrize("name", list(IDENTITY))
def test_one_vector_comes_back(name):
    tried = case(name, 1, **IDENTITY[name])
    if tried.merge.vectors[0] > 1:
        with pytest.raises(ValueError, match="takes 2 task vectors, not 1"):
            tried.run()
        return
    expected = {key: tried.base[key] + tensor for key, tensor in tried.deltas[0].items()}
    close(tried.run()["t0"], expected, 1e-6)


@pytest.mark.parametrize("name", list(IDENTITY))
def test_equal_vectors_come_back(name):
    tried = case(name, 2, **IDENTITY[name])
    if name in MATRIX:
        return
    tried.deltas[1] = tried.deltas[0]
    times = 2 if name in SUMS else 1
    expected = {key: tried.base[key] + times * tensor for key, tensor in tried.deltas[0].items()}
    the_same(tried.run(), {"t0": expected, "t1": expected}, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_is_merged_and_kept(name, dtype):
    if name in OF_MODELS and dtype != torch.float32:
        pytest.skip("the model is run in the dtype of its weights")
    tried = case(name, dtype=dtype)
    vectors = signed(tried.deltas)
    composition = tried.merge.compose(tried.base, vectors, tried.given(vectors))
    for weights in tried.weights(composition, vectors).values():
        assert all(tensor.dtype == dtype and tensor.isfinite().all() for tensor in weights.values())
        assert {key: tensor.shape for key, tensor in weights.items()} == {
            k: t.shape for k, t in tried.base.items()
        }
    exact = case(name)
    exact.base = {key: tensor.double() for key, tensor in tried.base.items()}
    exact.deltas = [
        {key: tensor.double() for key, tensor in delta.items()} for delta in tried.deltas
    ]
    coarse = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    the_same(
        {k: {n: t.double() for n, t in w.items()} for k, w in tried.run().items()},
        exact.run(),
        coarse,
    )


@pytest.mark.parametrize("name", NAMES)
def test_inputs_may_lie_anyhow_and_are_not_written_to(name):
    tried = case(name)
    expected = tried.run()
    awkward = []
    for delta in tried.deltas:
        doubled = {
            key: torch.stack([tensor, tensor + 1], dim=-1)[..., 0] for key, tensor in delta.items()
        }
        turned = {key: t.T.contiguous().T if t.ndim == 2 else t for key, t in doubled.items()}
        awkward.append(turned)
    before = [
        {key: tensor.clone() for key, tensor in delta.items()} for delta in [tried.base, *awkward]
    ]
    the_same(tried.run(awkward), expected, 1e-12)
    for now, then in zip([tried.base, *awkward], before, strict=True):
        assert all(torch.equal(now[key], then[key]) for key in then)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_MODELS])
def test_parameters_that_share_memory_are_merged_each_by_itself(name):
    tried = case(name)
    expected = tried.run()
    together = torch.cat([flat.reshape(-1) for flat in tried.deltas[0].values()])
    shared = {}
    start = 0
    for key, tensor in tried.deltas[0].items():
        shared[key] = together[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    the_same(tried.run([shared, tried.deltas[1]]), expected, 1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_refused_by_name(name, value):
    tried = case(name)
    key = list(tried.base)[2]
    tried.deltas[1][key].view(-1)[3] = value
    with pytest.raises(ValueError, match=rf"task vector of t1 is not finite in {key}"):
        tried.run()


@pytest.mark.parametrize(
    "name", [name for name in NAMES if registry.lookup("merge", name).schema.stored]
)
def test_stored_compositions_survive_the_store(name, tmp_path):
    tried = case(name)
    vectors = signed(tried.deltas)
    composition = tried.merge.compose(tried.base, vectors, tried.given(vectors))
    tensors, meta = composition.pack()
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "it.safetensors"
    )
    again = tried.merge.restore(tried.base, load_file(tmp_path / "it.safetensors"), meta)
    the_same(tried.weights(again, vectors), tried.weights(composition, vectors), 0)


def streaming() -> list[str]:
    found = []
    for name in NAMES:
        schema = registry.lookup("merge", name).schema
        if issubclass(schema, TensorWise) and schema.grain != "tensor":
            found.append(name)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", streaming())
def test_any_cut_into_pieces_gives_the_same_bits(name, dtype, monkeypatch):
    tried = case(name, dtype=dtype)
    vectors = signed(tried.deltas)
    given = tried.given(vectors)
    surveyed = tried.merge.survey(tried.base, tried.deltas, given)
    for key in tried.base:
        found = []
        for entries in (7, 30, 10**6):
            monkeypatch.setattr(pieces, "ENTRIES", entries)
            merge = partial(tried.merge.merge, given=given, surveyed=surveyed)
            grain = tried.merge.grain
            found.append(pieces.merge_parameter(merge, grain, key, tried.base, tried.deltas))
        assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_MODELS])
def test_a_device_gives_the_same(name):
    tried = case(name)
    expected = tried.run()
    tried.base = {key: tensor.cuda() for key, tensor in tried.base.items()}
    tried.deltas = [{key: tensor.cuda() for key, tensor in delta.items()} for delta in tried.deltas]
    found = {
        task: {key: t.cpu() for key, t in weights.items()} for task, weights in tried.run().items()
    }
    the_same(found, expected, 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_conventions_are_options_that_exist(name):
    schema = registry.lookup("merge", name).schema
    for convention in schema.conventions:
        assert convention.source
        assert isinstance(schema(**convention.options()), schema)
    assert schema.conventions, "say which framework means what"
