"""Masks, competition and spheres: EMR, TALL masks, Consensus TA, PCB, SCE, MagMax and the spherical merges."""

from __future__ import annotations

import math

import pytest
import torch
from merge_world import close, draw, expression, flat, given_for, merged, signed, unflat

from taskvec.merge import pieces
from taskvec.merge.masks.bits import packed, unpacked
from taskvec.merge.masks.consensus_ta import ConsensusTa
from taskvec.merge.masks.emr import Emr
from taskvec.merge.masks.tall_masks import TallMasks
from taskvec.merge.selective.magmax import MagMax
from taskvec.merge.selective.pcb import Pcb
from taskvec.merge.selective.sce import Sce
from taskvec.merge.sparse.ties import Ties
from taskvec.merge.spherical.karcher import Karcher
from taskvec.merge.spherical.model_stock import ModelStock
from taskvec.merge.spherical.multislerp import MultiSlerp
from taskvec.merge.spherical.nuslerp import NuSlerp
from taskvec.merge.spherical.slerp import Slerp
from taskvec.merge.task_arithmetic import TaskArithmetic


@pytest.fixture(params=[3, 71])
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def base(seed: int) -> dict:
    return draw(1000 + seed)


@pytest.fixture
def deltas(seed: int) -> list[dict]:
    return [draw(seed + number) for number in range(3)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even these small tensors."""
    monkeypatch.setattr(pieces, "ENTRIES", 30)


# EMR


def emr_reference(deltas: list[dict]) -> list[dict]:
    """Return each task's lambda_t M_t tau, tensor by tensor."""
    unified, whole, kept = {}, [0.0] * len(deltas), [0.0] * len(deltas)
    for name in deltas[0]:
        stack = torch.stack([delta[name] for delta in deltas])
        g = torch.where(stack.sum(0) > 0, 1.0, -1.0)
        mask = stack * g > 0
        unified[name] = g * (stack * mask).abs().amax(0) if stack.numel() else stack[0]
        for number in range(len(deltas)):
            if stack[number].numel():
                whole[number] += float(stack[number].abs().mean())
                kept[number] += float((unified[name] * mask[number]).abs().mean())
    found = []
    for number, delta in enumerate(deltas):
        scale = whole[number] / kept[number]
        own = {}
        for name, tensor in delta.items():
            agrees = tensor * torch.where(sum(d[name] for d in deltas) > 0, 1.0, -1.0) > 0
            own[name] = scale * (agrees * unified[name])
        found.append(own)
    return found


def test_emr_is_the_formula_and_survives_the_store(base, deltas):
    vectors = signed(deltas)
    composition = Emr().compose(base, vectors, given_for(vectors))
    tensors, meta = composition.pack()
    again = Emr().restore(base, tensors, meta)
    for number, expected in enumerate(emr_reference(deltas)):
        for made in (composition, again):
            close(dict(made.direction(f"t{number}")), expected)
            close(
                made.parameters(1.0, f"t{number}"),
                {name: base[name] + expected[name] for name in base},
            )
        own = flat(dict(composition.direction(f"t{number}")))
        assert (own * flat(deltas[number]) >= 0).all()
    assert composition.parameters(1.0, "elsewhere") == dict(base)
    entries = sum(tensor.numel() for tensor in base.values())
    masks = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("mask/"))
    assert masks <= 3 * (entries // 8 + len(base))


def test_emr_of_one_task_is_the_task(base, deltas):
    vectors = signed(deltas[:1])
    close(dict(Emr().compose(base, vectors, given_for(vectors)).direction("t0")), deltas[0])


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (8,), (3, 5, 2)])
def test_masks_are_packed_to_bits(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.4
    assert torch.equal(unpacked(packed(mask), shape), mask)
    assert packed(mask).numel() == math.ceil(mask.numel() / 8)


# TALL masks, Consensus TA


@pytest.mark.parametrize("shared", ["sum", "ties"])
def test_tall_masks_and_consensus(base, deltas, shared):
    vectors = signed(deltas)
    whole = merged(TaskArithmetic() if shared == "sum" else Ties(combine="sum"), base, deltas)
    composition = TallMasks(shared=shared).compose(base, vectors, given_for(vectors))
    masks = {}
    for threshold in (0.2, 0.6):
        for number, delta in enumerate(deltas):
            expected = {}
            for name in base:
                mask = delta[name].abs() > threshold * (whole[name] - delta[name]).abs()
                expected[name] = base[name] + mask * whole[name]
                masks[name, number] = mask
            close(composition.parameters(threshold, f"t{number}"), expected)
            close(composition.parameters({f"t{number}": threshold}, f"t{number}"), expected)
    for agreeing in range(5):
        found = merged(ConsensusTa(agreeing=agreeing, threshold=0.6, shared=shared), base, deltas)
        for name in base:
            holding = sum(masks[name, number].int() for number in range(3))
            torch.testing.assert_close(found[name], whole[name] * (holding >= agreeing))
    close(merged(ConsensusTa(agreeing=0), base, deltas), merged(TaskArithmetic(), base, deltas), 0)
    with pytest.raises(ValueError, match="merge.threshold holds 2 numbers"):
        merged(ConsensusTa(threshold=(0.1, 0.2)), base, deltas)


# PCB


def pcb_reference(stack, ratio, tails, normalised):
    """The formula on flat copies [T, d]."""
    count, d = stack.shape

    def row_mapped(x):
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        return (x - low) / (high - low)

    ordered = stack.abs().sort(1).values
    low, high = ordered[:, int(d * tails)], ordered[:, max(0, int(d * (1 - tails) - 1))]
    magnitudes = stack.abs().clamp(low[:, None], high[:, None])
    scaled = row_mapped(magnitudes)
    opponents = (stack.sign() * scaled).sum(0) if normalised else stack.sum(0)
    balance = (count * scaled**2).exp() * (stack * opponents).tanh()
    threshold = balance.sort(1).values[:, int(d * (1 - ratio))]
    score = row_mapped(balance.clamp(min=threshold[:, None]))
    return (stack.sign() * magnitudes * score).sum(0) / score.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize(
    ("ratio", "tails", "opponents"),
    [(0.1, 1e-4, "deltas"), (0.05, 0.01, "normalised"), (0.3, 0.05, "deltas")],
)
def test_pcb_is_the_formula(base, deltas, ratio, tails, opponents):
    stack = torch.stack([flat(delta) for delta in deltas])
    expected = pcb_reference(stack, ratio, tails, opponents == "normalised")
    method = Pcb(ratio=ratio, tails=tails, opponents=opponents)
    found = merged(method, base, deltas)
    close(found, unflat(expected, base))
    minus = [{name: -tensor for name, tensor in delta.items()} for delta in deltas]
    close(merged(method, base, minus), {name: -tensor for name, tensor in found.items()})
    assert int((flat(found) != 0).sum()) <= 3 * ratio * stack.shape[1] + 3


# SCE, MagMax


@pytest.mark.parametrize("select", [0.1, 0.5, 1.0])
def test_sce_is_the_formula(base, deltas, select):
    found = merged(Sce(select=select), base, deltas)
    for name in base:
        stack = torch.stack([delta[name].reshape(-1) for delta in deltas])
        if select < 1:
            variance = (stack - stack.mean(0)).square().mean(0)
            keep = variance.argsort(descending=True)[: int(select * (variance != 0).sum())]
            mask = torch.zeros(stack.shape[1], dtype=torch.float64)
            mask[keep] = 1
            stack = stack * mask
        energy = stack.square().sum(1)
        weights = energy / energy.sum() if energy.sum() > 0 else energy + 1 / 3
        agree = stack.sign() == torch.where(stack.sum(0) >= 0, 1.0, -1.0)
        divisor = (agree * weights[:, None]).sum(0)
        expected = (agree * stack * weights[:, None]).sum(0) / torch.where(divisor == 0, 1, divisor)
        torch.testing.assert_close(found[name].reshape(-1), expected, rtol=1e-10, atol=1e-14)


def test_magmax_takes_the_largest(base, deltas):
    found = merged(MagMax(), base, deltas)
    for name in base:
        stack = torch.stack([delta[name] for delta in deltas])
        expected = (
            stack.gather(0, stack.abs().argmax(0, keepdim=True))[0] if stack.numel() else stack[0]
        )
        assert torch.equal(found[name], expected)


# Spheres


def slerp_reference(t, first, second):
    units = first / first.norm(), second / second.norm()
    angle = (units[0] * units[1]).sum().clamp(-1, 1).acos()
    return (((1 - t) * angle).sin() * first + (t * angle).sin() * second) / angle.sin()


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(base, deltas, t):
    found = merged(Slerp(t=t), base, deltas[:2])
    for name in base:
        if base[name].numel() > 1:
            expected = slerp_reference(
                t, base[name] + deltas[0][name], base[name] + deltas[1][name]
            )
            torch.testing.assert_close(base[name] + found[name], expected, rtol=0, atol=1e-12)
    if t in (0.0, 1.0):
        close({n: found[n] for n in found}, deltas[int(t)])
    with pytest.raises(ValueError, match="takes 2 task vectors, not 3"):
        merged(Slerp(), base, deltas)
    near = [{name: 1e-5 * tensor for name, tensor in delta.items()} for delta in deltas[:2]]
    linear = {name: 0.7 * near[0][name] + 0.3 * near[1][name] for name in base}
    close(merged(Slerp(t=0.3), base, near), linear, 1e-9)  # nearly parallel


@pytest.mark.parametrize("of", ["weights", "deltas"])
@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
def test_nuslerp(base, deltas, of, along):
    found = merged(NuSlerp(weights=(1.0, 3.0), along=along, of=of), base, deltas[:2])
    for name in ("block.fc.weight", "kernel"):
        start = base[name] if of == "weights" else 0
        models = [start + delta[name] for delta in deltas[:2]]
        if along == "tensor":
            expected = slerp_reference(0.75, *models)
        else:
            axis = -1 if along == "rows" else 0
            moved = [model.movedim(axis, -1) for model in models]
            lines = [model.reshape(-1, model.shape[-1]) for model in moved]
            rows = torch.stack([slerp_reference(0.75, a, b) for a, b in zip(*lines, strict=True)])
            expected = rows.view(moved[0].shape).movedim(-1, axis)
        torch.testing.assert_close(start + found[name], expected, rtol=1e-9, atol=1e-9)
    parallel = [deltas[0], {name: 2 * tensor for name, tensor in deltas[0].items()}]
    expected = {name: 1.5 * tensor for name, tensor in deltas[0].items()}
    close(merged(NuSlerp(along=along, of="deltas"), base, parallel), expected, 1e-9)


def multislerp_reference(models, shares):
    """mergekit's formula, with its step in the tangent space."""
    norms = torch.stack([model.norm() for model in models])
    units = torch.stack([model / norm for model, norm in zip(models, norms, strict=True)])
    mean = (units * shares[:, None]).sum(0)
    mean = mean / mean.norm()
    tangents = units - (units @ mean)[:, None] * mean
    step = (tangents * shares[:, None]).sum(0)
    size = step.norm() + 1e-8
    return (mean * size.cos() + step * size.sin() / size) * (norms * shares).sum()


def karcher_reference(models, shares):
    """Gradient steps on the sphere, in the full space, until nothing moves."""
    norms = torch.stack([model.norm() for model in models])
    units = torch.stack([model / norm for model, norm in zip(models, norms, strict=True)])
    mean = (units * shares[:, None]).sum(0)
    mean = mean / mean.norm()
    for _ in range(200):
        cosines = (units @ mean).clamp(-1, 1)
        angles = cosines.acos()
        step = (shares * angles / angles.sin())[:, None] * (units - cosines[:, None] * mean)
        step = step.sum(0)
        if step.norm() < 1e-12:
            break
        mean = step.norm().cos() * mean + step.norm().sin() * step / step.norm()
    return (norms * shares).sum() * mean


@pytest.mark.parametrize("of", ["weights", "deltas"])
def test_multislerp_and_karcher(base, deltas, of):
    weights = (0.5, 1.0, 2.5)
    shares = torch.tensor(weights, dtype=torch.float64) / 4
    multi = merged(MultiSlerp(weights=weights, of=of), base, deltas)
    mean = merged(Karcher(weights=weights, of=of, steps=200, tolerance=1e-12), base, deltas)
    for name in base:
        if base[name].numel() < 2:
            continue
        start = base[name].reshape(-1) if of == "weights" else 0
        models = [start + delta[name].reshape(-1) for delta in deltas]
        for found, reference in ((multi, multislerp_reference), (mean, karcher_reference)):
            torch.testing.assert_close(
                start + found[name].reshape(-1), reference(models, shares), rtol=0, atol=1e-6
            )
    same_norm = [{n: x / x.norm() for n, x in d.items() if x.numel() > 1} for d in deltas[:2]]
    close(
        merged(Karcher(of="deltas", steps=100, tolerance=1e-14), base, same_norm),
        {n: slerp_reference(0.5, same_norm[0][n].flatten(), same_norm[1][n].flatten()).view(x.shape)
         for n, x in same_norm[0].items()},
        1e-9,
    )  # fmt: skip


def test_model_stock(base, deltas):
    found = merged(ModelStock(), base, deltas)
    for name in base:
        rows = torch.stack([delta[name].reshape(-1) for delta in deltas])
        if rows.shape[1] == 0:
            continue
        units = rows / rows.norm(dim=1, keepdim=True)
        cosine = max(0.0, float(((units @ units.T).sum() - 3) / 6))
        ratio = 3 * cosine / (1 + 2 * cosine)
        torch.testing.assert_close(
            found[name].reshape(-1), ratio * rows.mean(0), rtol=1e-9, atol=1e-14
        )
    close(merged(ModelStock(), base, [deltas[0], deltas[0]]), deltas[0], 1e-9)


def test_expressions_name_tasks():
    assert signed([{}])[0].tasks == ("t0",) and expression("t0") == signed([{}])[0].expression
