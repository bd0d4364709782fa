"""Transforms on small towers: purified vectors, carried vectors, and the planted case of each baseline."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from taskvec.errors import UserError
from taskvec.graph.asking import PlanScope
from taskvec.graph.plan import Plan
from taskvec.merge.masks.emr import Emr
from taskvec.merge.task_arithmetic import TaskArithmetic
from taskvec.models.clip.backbone import ClipModel
from taskvec.models.clip.config import VisionConfig, linear_layers
from taskvec.models.clip.spaces import clip_spaces
from taskvec.models.clip.vit import VisionTransformer
from taskvec.models.layers import Heads
from taskvec.needs import Examples, Signed, Statistics, Tuned
from taskvec.panel import panel
from taskvec.runner import compose, validate
from taskvec.statistics.collect import collect
from taskvec.statistics.input_moments import InputMoments
from taskvec.statistics.spectrum import Spectrum
from taskvec.transform.alignment.permutations import group_of, permute
from taskvec.transform.bico import OUTPUTS, Bico
from taskvec.transform.gradfix import Gradfix
from taskvec.transform.identity import Identity
from taskvec.transform.orthogonal_shift import OrthogonalShift
from taskvec.transform.other_task import OtherTask
from taskvec.transform.pave import Pave
from taskvec.transform.random_maps import RandomMaps
from taskvec.transform.resize import Resize
from taskvec.transform.theseus import Theseus
from taskvec.transform.transfusion import Transfusion
from taskvec.vectors import TaskVector

TASKS = ("a", "b")
CONFIG = VisionConfig(12, (16, 16), (8, 8), width=16, layers=2, heads=2, mlp_width=40)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def tower(**changes: Any) -> ClipModel:
    """Return a random tower, all of whose parameters differ from their starting values."""
    config = replace(CONFIG, **changes)
    module = VisionTransformer(config)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = ClipModel(module, (0.5,) * 3, (0.25,) * 3)
    known = clip_spaces(config).of(model.parameters)
    model.layers, model.spaces, model.observed = linear_layers(config), known.axes, known.observed
    model.heads = Heads(config.heads, config.heads, config.width // config.heads)
    return model


def like(model: ClipModel, weights: dict[str, Tensor]) -> ClipModel:
    """Return a model of the same shapes with other weights."""
    other = tower()
    other.module.load_state_dict(weights)
    other.parameters = dict(weights)
    return other


def copied(model: ClipModel, dtype: torch.dtype) -> ClipModel:
    """Return a copy of a model in a precision."""
    other = deepcopy(model)
    other.module.to(dtype)
    other.prepare = lambda inputs: tuple(part.to(dtype) for part in model.prepare(inputs))
    other.parameters = {name: weight.to(dtype) for name, weight in model.parameters.items()}
    return other


def vector_of(model: ClipModel, scale: float = 0.1) -> TaskVector:
    return TaskVector(
        {name: scale * torch.randn_like(weight) for name, weight in model.parameters.items()}
    )


def expression(task: str) -> Tuned:
    return Tuned((Examples(task, "train", "learning", labels=True),))


@dataclass
class Given:
    """What the frame would give: statistics collected on each task's images when they are asked for."""

    model: ClipModel
    source: ClipModel
    vectors: dict[str, TaskVector]
    images: dict[str, Tensor]
    labels: Tensor
    head: Tensor
    scope: PlanScope
    seed: int = 0
    found: dict[Any, Any] = field(default_factory=dict)

    def __getitem__(self, need: Any) -> Any:
        if isinstance(need, Tuned):
            return self.vectors[need.on[0].task]
        if need not in self.found:
            self.found[need] = self.collected(need)
        return self.found[need]

    def collected(self, need: Statistics) -> Any:
        if isinstance(need.what, Spectrum):
            return need.what.made(need, self)
        images = self.images[need.on.task]
        labels = self.labels if need.on.labels else None
        if need.pair:
            models, batches, heads = (
                (self.source, self.model),
                [(images, images)],
                (self.head, self.head),
            )
            return collect(models, batches, [need.what], head=heads, labels=labels)[0]
        weights = None if need.at is None else self[need.at].apply_to(self.model.parameters)
        return collect(
            self.model, [images], [need.what], parameters=weights, head=self.head, labels=labels
        )[0]


def given(
    model: ClipModel,
    source: ClipModel | None = None,
    tasks: tuple[str, ...] = TASKS,
    rows: int = 12,
) -> Given:
    source = source or model
    vectors = {task: vector_of(source) for task in tasks}
    images = {task: torch.randint(256, (rows, 3, 16, 16), dtype=torch.uint8) for task in tasks}
    scope = PlanScope(
        tasks, "target", None, None, (), tasks, {task: expression(task) for task in tasks}
    )
    head = torch.nn.functional.normalize(torch.randn(3, CONFIG.embed_dim), dim=1)
    return Given(model, source, vectors, images, torch.arange(rows) % 3, head, scope)


def changed(transform: Any, world: Given, task: str = "a") -> TaskVector:
    fit = transform.fit(world)
    return transform.apply(world.vectors[task], expression(task), fit, world)


def same(left: TaskVector, right: TaskVector, **close: float) -> None:
    assert set(left) == set(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], **(close or CLOSE))


# PAVE


@pytest.mark.parametrize("allocation", ["model", "layer", "uniform"])
def test_pave_projects_linear_layers_and_leaves_the_rest(allocation):
    world = given(tower())
    transform = Pave(ratio=0.75, allocation=allocation, damping=0.01)
    fit = transform.fit(world)
    found = transform.apply(world.vectors["a"], expression("a"), fit, world)
    tuned = world.vectors["a"].apply_to(world.model.parameters)
    moments = world[transform._at_vector(transform._spectrum().moments, world.scope, "a")]
    for layer, rank in fit.meta["ranks"]["a"].items():
        weight = tuned[f"{layer}.weight"].double()
        moment = moments[layer].second() + 0.01 * torch.eye(weight.shape[1])
        left, values, right = torch.linalg.svd(weight @ moment, full_matrices=False)
        kept = (left[:, :rank] * values[:rank]) @ right[:rank] @ torch.linalg.inv(moment)
        base = world.model.parameters[f"{layer}.weight"]
        torch.testing.assert_close(found[f"{layer}.weight"], (kept - base).float(), **CLOSE)
        report = fit.report["a"]["layers"][layer]
        assert 0 <= report["activated_error"] < 1
        assert report["rank"] == rank
    purified = {f"{layer}.weight" for layer in fit.meta["ranks"]["a"]}
    assert len(purified) == 13
    for name in set(found) - purified:
        assert torch.equal(found[name], world.vectors["a"][name])


def test_pave_shows_spectra_ranks_and_errors():
    world = given(tower())
    fit = Pave(ratio=0.75, damping=0.01).fit(world)
    drawn = {name: panel(data) for name, data in fit.report["figures"].items()}
    assert list(drawn) == ["spectrum a", "spectrum b", "rank", "activated_error"]
    ranks, errors = drawn["rank"], drawn["activated_error"]
    assert ranks.columns == TASKS
    for layer, (first, second), lost in zip(ranks.rows, ranks.values, errors.values, strict=True):
        reports = [fit.report[task]["layers"][layer] for task in TASKS]
        assert [first, second] == [report["rank"] for report in reports]
        assert list(lost) == [report["activated_error"] for report in reports]
    tuned = world.vectors["a"].apply_to(world.model.parameters)
    moments = world[Pave()._at_vector(InputMoments(), world.scope, "a")]
    product = 1.0
    for block in range(2):  # the layers of one role
        weight = tuned[f"blocks.{block}.mlp.fc.weight"].double()
        moment = moments[f"blocks.{block}.mlp.fc"].second() + 0.01 * torch.eye(16)
        values = torch.linalg.svdvals(weight @ moment)
        product = product * values[-1] / values[0]
    (share, height) = drawn["spectrum a"].series["mlp.fc"][-1]
    assert share == 1
    assert height == pytest.approx(float(product.sqrt()), rel=1e-6)
    kept = sum(fit.meta["ranks"]["a"].values())
    assert drawn["spectrum a"].chosen == pytest.approx(kept / (13 * 16 - 4))
    uniform = Pave(allocation="uniform").fit(world).report["figures"]
    assert list(uniform) == ["rank", "activated_error"]


def test_pave_at_ratio_one_and_on_zero_vectors():
    world = given(tower())
    same(changed(Pave(ratio=1.0), world), world.vectors["a"], rtol=0, atol=0)
    world.vectors["a"] = TaskVector({})
    transform = Pave(ratio=0.75, allocation="uniform")
    fit = transform.fit(world)
    found = transform.apply(world.vectors["a"], expression("a"), fit, world)
    for layer in fit.meta["ranks"]["a"]:  # minus the pruned part of the base weight
        pruned, weight = fit.tensors[f"a/{layer}"], world.model.parameters[f"{layer}.weight"]
        torch.testing.assert_close(found[f"{layer}.weight"], -pruned @ pruned.mT @ weight)
    assert found.norm() > 0
    assert changed(Pave(ratio=0.75, target="delta", allocation="uniform"), world).norm() == 0
    outsider = Pave(ratio=0.75, participants=("b",))
    found = changed(outsider, world)
    assert found.norm() == 0
    with pytest.raises(UserError, match="no vector of 'c'"):
        Pave(participants=("c",)).needs(world.scope)


def explicitly_purified(world: Given, task: str, ratio: float) -> dict[str, Tensor]:
    """Return SVD_r(W_t C_t) C_t^-1 - W_B of every linear layer and plain differences elsewhere, float64."""
    base, vector = world.model.parameters, world.vectors[task]
    moments = world[Pave()._at_vector(InputMoments(), world.scope, task)]
    found = {name: delta.double() for name, delta in vector.items()}
    for layer in moments:
        weight = (base[f"{layer}.weight"] + vector[f"{layer}.weight"]).double()
        moment = moments[layer].second() + 0.1 * torch.eye(weight.shape[1])
        rank = max(1, round(min(weight.shape) * ratio))
        left, values, right = torch.linalg.svd(weight @ moment, full_matrices=False)
        kept = (left[:, :rank] * values[:rank]) @ right[:rank] @ torch.linalg.inv(moment)
        found[f"{layer}.weight"] = kept - base[f"{layer}.weight"]
    return found


def signed(vectors: dict[str, TaskVector]) -> list[Signed]:
    return [Signed(expression(task), 1.0, vector) for task, vector in vectors.items()]


def test_pave_and_emr_are_the_closed_form():
    world = given(tower())
    transform = Pave(ratio=0.75, allocation="uniform", damping=0.1)
    purified = {task: changed(transform, world, task) for task in TASKS}
    merged = Emr().compose(world.model.parameters, signed(purified), world)
    expected = {task: explicitly_purified(world, task, 0.75) for task in TASKS}
    unified, masks, clear = {}, {task: {} for task in TASKS}, {}
    for name in expected["a"]:
        deltas = torch.stack([expected[task][name] for task in TASKS])
        elected = torch.where(deltas.sum(0) > 0, 1.0, -1.0)
        agreeing = deltas * elected > 0
        # Rounding decides the signs of what is nearly zero
        clear[name] = (deltas.abs() > 1e-4).all(0) & (deltas.sum(0).abs() > 1e-4)
        unified[name] = elected * (deltas.abs() * agreeing).amax(0)
        for number, task in enumerate(TASKS):
            masks[task][name] = agreeing[number]
    for task in TASKS:
        whole = sum(delta.abs().mean() for delta in expected[task].values())
        kept = sum((unified[name] * mask).abs().mean() for name, mask in masks[task].items())
        weights = merged.parameters(1.0, task)
        for name, mask in masks[task].items():
            moved = whole / kept * mask * unified[name]
            found = (weights[name] - world.model.parameters[name]).double()
            known = clear[name]
            torch.testing.assert_close(found[known], moved[known], rtol=1e-3, atol=2e-5)


def test_pave_and_task_arithmetic_are_linear_in_the_coefficient():
    world = given(tower())
    purified = {task: changed(Pave(ratio=0.75), world, task) for task in TASKS}
    merged = TaskArithmetic().compose(world.model.parameters, signed(purified), world)
    half, whole = merged.parameters(0.4), merged.parameters(0.8)
    for name, weight in world.model.parameters.items():
        torch.testing.assert_close(whole[name] - weight, 2 * (half[name] - weight), **CLOSE)


def test_pave_targets_and_roles():
    world = given(tower())
    whole = changed(Pave(ratio=0.75, allocation="uniform"), world)
    delta = changed(Pave(ratio=0.75, allocation="uniform", target="delta"), world)
    name = "blocks.1.attn.q.weight"
    base = TaskVector({name: world.model.parameters[name]})
    directions = Pave(ratio=0.75, allocation="uniform").fit(world).tensors["a/blocks.1.attn.q"]
    torch.testing.assert_close(
        delta[name] - whole[name], directions @ directions.mT @ base[name], **CLOSE
    )
    assert directions.shape == (16, 4)
    authors = Pave(ratio=0.75, roles=("mlp.fc", "mlp.proj"))
    assert all("mlp" in layer for layer in authors.fit(world).meta["ranks"]["a"])


def test_pave_routes_agree_on_well_conditioned_layers():
    world = given(tower())
    for base in (True, False):
        exact = changed(Pave(ratio=0.8, damping=0.5), world)
        explicit = changed(Pave(ratio=0.8, damping=0.5, faithful=True, count_base=base), world)
        same(exact, explicit, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="faithful"):
        Pave(faithful=True, target="delta")


# Theseus


def test_identical_models_keep_the_vector():
    source = tower()
    world = given(like(source, source.parameters), source, rows=200)
    fit = Theseus(held_out=0, stem="carry", tolerance=0).fit(world)
    for name, found in fit.tensors.items():
        # LayerNorm's outputs have full rank here: gains and shifts are random.
        if fit.report["maps"][name.removeprefix("map/")]["determined"]:
            torch.testing.assert_close(found, torch.eye(len(found)), rtol=0, atol=1e-2)
    assert fit.report["left_at_zero"] == {}


@pytest.mark.parametrize("hidden", ["shared", "own"])
def test_determined_maps_do_not_depend_on_precision(hidden):
    """End to end from images: maps whose gap exceeds the tolerance agree to 1e-2, and the others are flagged."""
    source, target = tower(), tower(width=24, heads=3, mlp_width=60, embed_dim=20)
    worlds = []
    for cast in (torch.float32, torch.float64):
        world = given(copied(target, cast), copied(source, cast), tasks=("a",), rows=60)
        world.head = torch.randn(3, 20, dtype=cast)
        worlds.append(world)
    worlds[1].images = worlds[0].images
    transform = Theseus(held_out=0, hidden=hidden, tolerance=0)
    single, double = [transform.fit(world) for world in worlds]
    agreeing = 0
    for name, report in double.report["maps"].items():
        difference = single.tensors[f"map/{name}"] - double.tensors[f"map/{name}"]
        if report["determined"]:
            assert difference.norm() < 1e-2 * double.tensors[f"map/{name}"].norm()
            agreeing += 1
        elif report["gap"] < 1e-12:  # rounding decides: flagged in both
            assert not single.report["maps"][name]["determined"]
    assert agreeing > 10
    if hidden == "own":
        assert not double.report["maps"]["blocks.0.mlp.fc"]["determined"]


def test_nothing_of_a_vector_leaves_the_target_as_it_is():
    source, target = tower(), tower(width=24, heads=3, mlp_width=60, embed_dim=20)
    world = given(target, source, tasks=("a",), rows=40)
    world.head = torch.randn(3, 20)
    weights = changed(Theseus(held_out=0), world).apply_to(target.parameters, 0.0)
    for name, weight in target.parameters.items():
        assert torch.equal(weights[name], weight)


@pytest.mark.parametrize("hidden", ["shared", "own"])
def test_theseus_carries_all_but_the_stem(hidden):
    source, target = tower(), tower(width=24, heads=3, mlp_width=60, embed_dim=20)
    world = given(target, source, tasks=("a",), rows=60)
    world.head = torch.randn(3, 20)
    transform = Theseus(held_out=1, hidden=hidden, tolerance=0)
    fit = transform.fit(world)
    found = transform.apply(world.vectors["a"], expression("a"), fit, world)
    assert set(fit.report["left_at_zero"]) == {
        "patch_embed.weight",
        "class_embedding",
        "positional_embedding",
    }
    assert set(found) == set(target.parameters) - set(fit.report["left_at_zero"])
    for name, delta in found.items():
        assert delta.shape == target.parameters[name].shape
        torch.testing.assert_close(delta.norm(), world.vectors["a"][name].norm(), rtol=1e-3, atol=0)
    report = fit.report["maps"]
    assert ("blocks.0.mlp.fc" in report) == (hidden == "own")
    assert all(0 <= found["held_out_error"] < 1.01 for found in report.values())
    if hidden == "own":
        assert not report["blocks.0.mlp.fc"]["determined"]
    zero = TaskVector({name: 0 * weight for name, weight in world.vectors["a"].items()})
    assert transform.apply(zero, expression("a"), fit, world).norm() == 0


@pytest.mark.parametrize(
    ("blocks", "correction"), [("average", None), ("duplicate", None), ("average", 10.0)]
)
def test_added_blocks_are_carried(blocks, correction):
    source, target = tower(), tower(layers=4)
    world = given(target, source, tasks=("a",), rows=40)
    with pytest.raises(UserError, match="2 blocks in blocks and the target 4"):
        Theseus(held_out=0).fit(world)
    transform = Theseus(held_out=0, depth={"blocks": blocks, "correction": correction})
    (need,) = transform.preparing(world.scope) or (None,)
    world.found[need] = View(world.images["a"])
    world.source = transform.prepare(source, world)
    assert len(world.source.module.blocks) == 4
    images = torch.rand(2, 3, 16, 16)
    assert world.source.module(images).isfinite().all()
    found = changed(transform, world)
    for index in range(4):
        assert found[f"blocks.{index}.mlp.proj.weight"].norm() > 0
    assert found.keys() == set(target.parameters) - {
        "patch_embed.weight",
        "class_embedding",
        "positional_embedding",
    }
    control = changed(transform.model_copy(update={"added": "zero"}), world)
    kept = {name for name in found if not name.startswith(("blocks.1.", "blocks.3."))}
    assert set(control) == kept
    for name in kept:
        assert torch.equal(control[name], found[name])
    assert source.module.blocks[1].mlp.proj.weight.equal(
        source.parameters["blocks.1.mlp.proj.weight"]
    )


@dataclass
class View:
    """Rows of examples."""

    images: Tensor

    def take(self, rows: slice) -> Tensor:
        return self.images[rows]


def outputs(model: ClipModel, module: str, images: Tensor) -> Tensor:
    """Return what a module puts out."""
    seen: list[Tensor] = []
    handle = model.module.get_submodule(module).register_forward_hook(
        lambda _, inputs, output: seen.append(output)
    )
    model.features({}, images)
    handle.remove()
    return seen[0]


def test_corrected_blocks_put_out_what_their_origins_do():
    source, target = tower(), tower(layers=3)
    world = given(target, source, tasks=("a",), rows=40)
    errors = {}
    for correction in (None, 1e-3):
        transform = Theseus(depth={"blocks": "average", "correction": correction})
        for need in transform.preparing(world.scope):
            world.found[need] = View(world.images["a"])
        deeper = transform.prepare(source, world)
        wanted = outputs(source, "blocks.0.mlp.proj", world.images["a"])
        errors[correction] = (
            outputs(deeper, "blocks.1.mlp.proj", world.images["a"]) - wanted
        ).norm()
    assert errors[1e-3] < 0.7 * errors[None]


# Baselines


def planted_permutation(model: ClipModel) -> dict[str, Tensor]:
    """Return a permutation of each space that leaves the function as it is."""
    heads, orders, planted = model.heads, {}, {}
    for axes in model.spaces.values():
        for space in axes:
            group = space and group_of(space)
            if not group:
                continue
            if group.kind == "units":
                size = {"residual": 16}.get(group.name, 40)
                orders.setdefault(group, torch.randperm(size))
                planted[space] = orders[group]
            else:
                kind = "channels" if space.endswith((".q", ".k")) else "values"
                places = orders.setdefault(group, torch.randperm(heads.query))
                inside = orders.setdefault(
                    (group, kind), [torch.randperm(heads.width) for _ in range(heads.query)]
                )
                parts = [place * heads.width + inside[i] for i, place in enumerate(places.tolist())]
                planted[space] = torch.cat(parts)
    return planted


def test_transfusion_finds_a_permuted_copy():
    source = tower()
    planted = planted_permutation(source)
    copied = {
        name: permute(weight, source.spaces[name], planted)
        for name, weight in source.parameters.items()
    }
    target = like(source, copied)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(target.module(images), source.module(images), **CLOSE)
    world = given(target, source, tasks=("a",))
    found = changed(Transfusion(), world)
    expected = {
        n: permute(delta, source.spaces[n], planted) for n, delta in world.vectors["a"].items()
    }
    same(found, TaskVector(expected), rtol=0, atol=0)
    moved = functional_call(target.module, found.apply_to(target.parameters), (images,))
    original = functional_call(
        source.module, world.vectors["a"].apply_to(source.parameters), (images,)
    )
    torch.testing.assert_close(moved, original, **CLOSE)


def test_theseus_and_bico_find_a_permuted_copy():
    """A permutation is the rotation that a network of norms and activations allows."""
    source = tower()
    planted = planted_permutation(source)
    copied = {
        name: permute(weight, source.spaces[name], planted)
        for name, weight in source.parameters.items()
    }
    world = given(like(source, copied), source, tasks=("a",), rows=300)
    theseus = Theseus(held_out=0, tolerance=0, hidden="shared", stem="carry")
    for transform, prefix in ((theseus, ""), (Bico(tolerance=0, stem="carry"), OUTPUTS)):
        fit = transform.fit(world)
        checked = 0
        for space, order in planted.items():
            report = fit.report["maps"].get(prefix + space)
            if report and report["determined"]:
                expected = torch.eye(len(order))[:, order]
                torch.testing.assert_close(
                    fit.tensors[f"map/{prefix}{space}"], expected, rtol=0, atol=0.05
                )
                checked += 1
        assert checked > 2


@pytest.mark.parametrize("transform", [Gradfix(), Gradfix(vote="majority"), Gradfix(mask="force")])
def test_gradfix_keeps_planted_signs(transform):
    world = given(tower(), tower(), tasks=("a",))
    name = "blocks.0.mlp.fc.weight"
    weights = {
        key: weight.clone().requires_grad_() for key, weight in world.model.parameters.items()
    }
    group = 1 if transform.vote == "majority" else len(world.labels)
    votes = torch.zeros_like(weights[name])
    for images, labels in zip(
        world.images["a"].split(group), world.labels.split(group), strict=True
    ):
        logits = world.model.logits(world.model.features(weights, images), world.head, weights)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        votes += torch.autograd.grad(loss, weights[name])[0].sign()
    wanted = -votes.sign()
    agreeing = torch.rand_like(wanted) * wanted
    disagrees = torch.rand_like(wanted) < 0.5
    planted = TaskVector({name: torch.where(disagrees, -agreeing, agreeing)})
    found = transform.apply(planted, expression("a"), transform.fit(world), world)[name]
    expected = agreeing if transform.mask == "force" else torch.where(disagrees, 0, agreeing)
    # Signs of gradients at rounding level aside
    assert (found - expected).count_nonzero() < 0.01 * expected.numel()


def test_orthogonal_shift_identity_and_what_they_refuse():
    source, target = tower(), tower()
    world = given(target, source, tasks=("a",))
    same(changed(Identity(), world), world.vectors["a"], rtol=0, atol=0)
    found = changed(OrthogonalShift(), world)
    for name, delta in found.items():
        shift = target.parameters[name] - source.parameters[name]
        taken = (world.vectors["a"][name] - delta).flatten()
        assert (delta * shift).sum().abs() < 1e-4
        torch.testing.assert_close(
            taken.norm() * shift.norm(), (taken @ shift.flatten()).abs(), **CLOSE
        )
    same(changed(OrthogonalShift(beta=0), world), world.vectors["a"])
    wide = given(tower(width=24, heads=3), source, tasks=("a",))
    for transform in (Identity(), OrthogonalShift(), Transfusion(), Gradfix()):
        with pytest.raises(
            UserError, match=r"class_embedding is \[16\] in the source and the target has \[24\]"
        ):
            transform.fit(wide)


def test_controls():
    world = given(tower(width=24, heads=3, layers=3), tower())
    padded = changed(Resize(), world)
    assert padded["blocks.0.ln_1.weight"].shape == (24,)
    assert padded.norm() == pytest.approx(float(world.vectors["a"].norm()))
    alike = given(tower(width=24, heads=3), tower())
    drawn = changed(RandomMaps(stem="carry"), alike)
    assert drawn.norm() == pytest.approx(float(alike.vectors["a"].norm()), rel=1e-4)
    other = OtherTask()
    assert other.needs(alike.scope) == [expression("a"), expression("b")]
    assert (
        other.apply(alike.vectors["a"], expression("a"), other.fit(alike), alike)
        is alike.vectors["b"]
    )
    with pytest.raises(UserError, match="the task itself"):
        OtherTask(shift=2).needs(alike.scope)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["source=mini_clip_s", "backbone=mini_clip_m", "transform=gradfix"], "equal shapes"),
        (["source=mini_clip_m", "backbone=mini_clip_s", "transform=transfusion"], "equal shapes"),
        (
            ["source=mini_lm_s", "backbone=mini_lm_m", "transform=orthogonal_shift"],
            "equal shapes: model.embed_tokens.weight",
        ),
        (["source=mini_clip_s", "backbone=mini_clip_deep", "transform=theseus"], "as deep"),
        (["source=mini_clip_deep", "backbone=mini_clip_s", "transform=bico"], "as deep"),
        (
            [
                "source=mini_clip_deep",
                "backbone=mini_clip_s",
                "transform=theseus",
                "transform.theseus.depth.blocks=average",
            ],
            "are as deep or deeper: swap source and backbone",
        ),
    ],
)
def test_backbones_that_no_vector_passes_between_are_refused_by_their_headers(words, said):
    compose.register_all()
    suite = "minitext6" if "mini_lm_s" in words[0] else "mini8"
    config = compose.resolve(compose.compose([*words, f"suite={suite}"]))
    with pytest.raises(UserError, match=said):
        validate.preflight(config, Plan(config))
