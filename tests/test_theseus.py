"""Theseus' mathematics against independent references in float64, on fresh random rows (spec section 5)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from taskvec.errors import UserError
from taskvec.models.clip.vit import from_open_clip, to_open_clip
from taskvec.models.layers import Heads
from taskvec.statistics.cross_value import CrossMoment, SpaceMoments, through
from taskvec.transform.alignment.extension import Extension, depths, lineage, lineages, schedule
from taskvec.transform.alignment.maps import (
    Alignments,
    SpaceMaps,
    alignment_error,
    described,
    pooled,
    random_spread,
    whitened,
)
from taskvec.transform.alignment.permutations import group_of, match, permute
from taskvec.transform.alignment.pictures import alignment_by_layer
from taskvec.transform.alignment.procrustes import align, align_product
from taskvec.transform.alignment.ridge import absorbed, diagonal, ridge
from taskvec.transform.alignment.transport import carry, itinerary, pad, random_map

SHAPES = [(8, 12), (12, 8), (9, 9)]
ROUTES = [0.0, 1e-4]  # tolerances: the SVD, and the eigenvalues of the Gram matrix


def rows(count: int, width: int) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64)


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(rows(size, size)).Q


def moment(source: Tensor, target: Tensor, *, grams: bool = False) -> CrossMoment:
    """Return the sums over paired rows [n, a] and [n, b]."""
    squares = torch.stack([source.square().sum(), target.square().sum()])
    kept = (source.mT @ source, target.mT @ target) if grams else None
    return CrossMoment(source.mT @ target, source.sum(0), target.sum(0), squares, len(source), kept)


def spaces(derived: dict | None = None, **moments: CrossMoment) -> SpaceMoments:
    """Return moments by space as the collector gives them."""
    layout = {"aliases": {name: name for name in moments}, "derived": derived or {}, "left_out": {}}
    return SpaceMoments.of(moments, {}, layout)


def test_worked_case():
    own = torch.tensor([[1.0, 0], [0, 2]])
    other = torch.tensor([[0.0, 0, 1], [2, 0, 0]])
    cross = own.mT @ other
    assert cross.tolist() == [[0, 0, 1], [4, 0, 0]]
    for tolerance in ROUTES:
        found = align(cross, tolerance).map.float()
        torch.testing.assert_close(found, torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
        one = torch.ones(1, 1)
        carried = carry(torch.tensor([[3.0, 5]]), ("out", "in"), {"out": one, "in": found})
        torch.testing.assert_close(carried, torch.tensor([[5.0, 0, 3]]))


@pytest.mark.parametrize("tolerance", ROUTES)
@pytest.mark.parametrize("shape", SHAPES)
def test_maps_are_semi_orthogonal_and_the_best(shape, tolerance):
    own, other = rows(50, shape[0]), rows(50, shape[1])
    cross = own.mT @ other
    found = align(cross, tolerance)
    left, values, right = torch.linalg.svd(cross, full_matrices=False)
    torch.testing.assert_close(found.map, left @ right)
    torch.testing.assert_close(found.values, values)
    short = found.map if shape[0] <= shape[1] else found.map.mT
    torch.testing.assert_close(short @ short.mT, torch.eye(len(short), dtype=torch.float64))
    best = (found.map * cross).sum()
    torch.testing.assert_close(best, values.sum())
    generator = torch.Generator().manual_seed(0)
    others = [(random_map(*shape, generator) * cross).sum() for _ in range(20)]
    assert max(others) < best
    assert found.rank == min(shape)
    assert found.energy == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_duplicates_order_and_batches_leave_maps_alone(shape):
    own, other = rows(60, shape[0]), rows(60, shape[1])
    expected = align(moment(own, other).cross).map
    order = torch.randperm(60)
    variants = [
        (3 * own, 0.2 * other),
        (torch.cat([own, own]), torch.cat([other, other])),
        (own[order], other[order]),
    ]
    for changed_own, changed_other in variants:
        torch.testing.assert_close(align(moment(changed_own, changed_other).cross).map, expected)
    parts = [spaces(s=moment(a, b)) for a, b in zip(own.split(7), other.split(7), strict=True)]
    together = pooled(parts).moment("s", {}, {})
    torch.testing.assert_close(align(together.cross).map, expected)
    assert together.rows == 60


@pytest.mark.parametrize("shape", [(8, 12, 5, 9), (12, 8, 9, 5), (6, 6, 7, 7)])
def test_carrying_is_the_formula_linear_and_keeps_norms_when_it_widens(shape):
    b_in = b_out = None
    a_in, b_in, a_out, b_out = shape
    own_in, other_in = rows(70, a_in), rows(70, b_in)
    own_out, other_out = rows(70, a_out), rows(70, b_out)
    maps = {"in": align(own_in.mT @ other_in).map, "out": align(own_out.mT @ other_out).map}
    tau, sigma = rows(a_out, a_in), rows(a_out, a_in)
    carried = carry(tau, ("out", "in"), maps)
    torch.testing.assert_close(carried, maps["out"].mT @ tau @ maps["in"])
    bias = rows(1, a_out)[0]
    torch.testing.assert_close(carry(bias, ("out",), maps), bias @ maps["out"])
    both = carry(2 * tau - 3 * sigma, ("out", "in"), maps)
    torch.testing.assert_close(both, 2 * carried - 3 * carry(sigma, ("out", "in"), maps))
    assert carry(0 * tau, ("out", "in"), maps).abs().max() == 0
    if b_in >= a_in:
        values = torch.linalg.svdvals(carried)[: min(a_in, a_out)]
        torch.testing.assert_close(values, torch.linalg.svdvals(tau))
    else:
        assert carried.norm() < tau.norm()


@pytest.mark.parametrize("widths", [(8, 12), (12, 8)])
def test_packed_and_split_projections_are_carried_alike(widths):
    """Property 10: q, k and v by their own maps are the packed tensor by a block-diagonal one, and pack again."""
    own, other = widths
    kinds = ("q", "k", "v")
    into = align(rows(60, own).mT @ rows(60, other)).map
    maps = {kind: align(rows(60, own).mT @ rows(60, other)).map for kind in kinds}
    together = torch.block_diag(*maps.values())
    stem = "transformer.resblocks.0.attn.in_proj_"
    packed = {f"{stem}weight": rows(3 * own, own), f"{stem}bias": rows(1, 3 * own)[0]}
    split = from_open_clip({f"visual.{name}": tensor for name, tensor in packed.items()})
    assert len(split) == 6
    back = to_open_clip(split)
    assert all(back[f"visual.{name}"].equal(tensor) for name, tensor in packed.items())

    carried = {}
    for name, delta in split.items():
        *_, kind, leaf = name.split(".")
        axes = (kind, "in") if leaf == "weight" else (kind,)
        carried[name] = carry(delta, axes, maps | {"in": into})
    found = to_open_clip(carried)
    whole = together.mT @ packed[f"{stem}weight"] @ into
    torch.testing.assert_close(found[f"visual.{stem}weight"], whole)
    torch.testing.assert_close(found[f"visual.{stem}bias"], packed[f"{stem}bias"] @ together)


def test_identical_and_rotated_models():
    """Property 3 and 4: T = I and tau_B = tau_A; T_s = Q_s, and the linear network computes the same."""
    inputs = rows(40, 6)
    weights = rows(7, 6)
    deltas = 0.1 * rows(7, 6)
    outputs = inputs @ weights.mT
    same = align(inputs.mT @ inputs)
    torch.testing.assert_close(same.map, torch.eye(6, dtype=torch.float64))
    turn_in, turn_out = orthogonal(6), orthogonal(7)
    turned_weights = turn_out.mT @ weights @ turn_in
    turned_inputs = inputs @ turn_in
    turned_outputs = turned_inputs @ turned_weights.mT
    found_in = align(inputs.mT @ turned_inputs, 1e-6).map
    found_out = align(outputs.mT @ turned_outputs, 1e-6).map
    torch.testing.assert_close(found_in, turn_in)
    # Seven outputs of six inputs: the data determines the map on their span, and the partial isometry is that part.
    assert align(outputs.mT @ turned_outputs, 1e-6).rank == 6
    carried = carry(deltas, ("out", "in"), {"in": found_in, "out": turn_out})
    expected = inputs @ (weights + deltas).mT @ turn_out
    torch.testing.assert_close(turned_inputs @ (turned_weights + carried).mT, expected)
    torch.testing.assert_close(outputs @ found_out, turned_outputs)


def test_there_and_back():
    own, other = rows(80, 6), rows(80, 10)
    there, back = align(own.mT @ other).map, align(other.mT @ own).map
    torch.testing.assert_close(there @ back, torch.eye(6, dtype=torch.float64))
    tau = rows(6, 6)
    wide = carry(tau, ("s", "s"), {"s": there})
    torch.testing.assert_close(carry(wide, ("s", "s"), {"s": back}), tau)


def test_centring_and_whitening():
    own, other = rows(60, 5) + 4, rows(60, 7) - 2
    centred = moment(own, other).centred()
    by_hand = (own - own.mean(0)).mT @ (other - other.mean(0))
    torch.testing.assert_close(centred.cross, by_hand)
    found = Alignments(centre=True).of(moment(own, other))
    torch.testing.assert_close(found.map, align(by_hand).map)
    mixed = own @ rows(5, 5)
    kept = moment(own, mixed, grams=True)
    torch.testing.assert_close(whitened(kept.cross, kept.grams, 0.0, 1e-12), kept.cross)
    canonical = whitened(kept.cross, kept.grams, 0.5, 1e-12)
    torch.testing.assert_close(torch.linalg.svdvals(canonical), torch.ones(5, dtype=torch.float64))
    assert Alignments(whiten=0.5, whiten_eps=1e-12).of(kept).gap == pytest.approx(1)


def test_undetermined_maps_are_flagged_and_partial_isometries_are_deterministic():
    """Property 13: fewer rows than channels. Rounding decides the SVD's map off the data's span, and only there."""
    own, other = rows(5, 8), rows(5, 12)
    single, double = own.float().mT @ other.float(), own.mT @ other
    assert not described(align(double), None)["determined"]
    assert (align(single).map - align(double).map).norm() > 1e-2
    torch.testing.assert_close(own @ align(single).map, own @ align(double).map, rtol=0, atol=1e-4)
    partial = align(single, 1e-4), align(double, 1e-4)
    assert partial[0].rank == partial[1].rank == 5
    torch.testing.assert_close(partial[0].map, partial[1].map, rtol=0, atol=1e-4)
    torch.testing.assert_close(partial[1].map, align(double, 1e-6).map)
    full = rows(50, 8), rows(50, 12)
    report = described(align(full[0].mT @ full[1]), moment(*full))
    assert report["determined"]
    assert report["rank"] == 8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tolerance", ROUTES)
def test_single_and_double_precision_agree_on_the_same_moments(shape, tolerance):
    own, other = rows(60, shape[0]), rows(60, shape[1])
    cross = moment(own, other).cross
    tau = rows(shape[0], shape[0])
    carried = {}
    for dtype in (torch.float32, torch.float64):
        maps = {"s": align(cross, tolerance).map.to(dtype)}
        carried[dtype] = carry(tau.to(dtype), ("s", "s"), maps).double()
    difference = carried[torch.float32] - carried[torch.float64]
    assert difference.norm() < 1e-6 * carried[torch.float64].norm()


def test_error_is_the_distance_of_matched_rows():
    own = rows(30, 4)
    exact = own @ orthogonal(4)
    assert alignment_error(align(own.mT @ exact).map, moment(own, 5 * exact)) == pytest.approx(
        0, abs=1e-12
    )
    other = rows(30, 6)
    found = align(own.mT @ other).map
    distance = (own @ found / own.norm() - other / other.norm()).square().sum() / 2
    assert alignment_error(found, moment(own, other)) == pytest.approx(float(distance))


@pytest.mark.parametrize("centre", [False, True])
def test_maps_of_layers_outputs_follow_from_their_inputs(centre):
    """A hidden layer wider than its input: the factorised route against the moments of the outputs themselves."""
    own, other = rows(90, 4), rows(90, 5) + 1
    source = {"fc.weight": rows(16, 4), "fc.bias": rows(1, 16)[0]}
    target = {"fc.weight": rows(20, 5), "fc.bias": rows(1, 20)[0]}
    hidden = (
        own @ source["fc.weight"].mT + source["fc.bias"],
        other @ target["fc.weight"].mT + target["fc.bias"],
    )
    derived = {"out": ("in", "fc", "fc")}
    stored = spaces(derived, **{"in": moment(own, other)})
    how = Alignments(centre=centre, tolerance=1e-8)
    found = SpaceMaps(stored, source, target, how).of("out")
    dense = moment(*hidden)
    expected = align((dense.centred() if centre else dense).cross, 1e-8)
    assert found.rank == expected.rank == (4 if centre else 5)
    torch.testing.assert_close(found.map, expected.map)
    inner = through(moment(own, other), tuple(source.values()), tuple(target.values()))
    torch.testing.assert_close(inner.cross, dense.cross)
    left, right = rows(9, 3), rows(7, 3)
    torch.testing.assert_close(
        align_product(left, torch.eye(3), right, 1e-9).map, align(left @ right.mT, 1e-9).map
    )


def test_hidden_units_may_share_one_map():
    names = ("blocks.0.mlp.fc", "blocks.0.mlp.hidden", "blocks.0.attn.q")
    stored = spaces(**{name: moment(rows(40, 6), rows(40, 8)) for name in names})
    axes = {"w": ("blocks.0.mlp.fc", None), "v": ("blocks.0.mlp.hidden", "blocks.0.attn.q")}
    shared = SpaceMaps(stored, {}, {}, Alignments(hidden="shared")).known(axes)
    assert shared == {"w": ("blocks.0.mlp.hidden", None), "v": axes["v"]}
    assert SpaceMaps(stored, {}, {}, Alignments()).known(axes) == axes


def test_itinerary_says_why():
    source = {
        "w": (4, 3),
        "norm": (3,),
        "words": (9, 3),
        "kernel": (4, 3, 2),
        "gone": (2,),
        "unseen": (4,),
    }
    target = {"w": (6, 5), "norm": (5,), "words": (8, 5), "kernel": (6, 5), "unseen": (6,)}
    axes = {
        "w": ("out", "in"), "norm": ("in",), "words": (None, "in"), "kernel": ("out", "in", None), "gone": ("x",),
        "unseen": ("hidden",),
    }  # fmt: skip
    found = itinerary(source, target, axes, {"in": (3, 5), "out": (4, 6)})
    assert found.carried == {"w": ("out", "in"), "norm": ("in",)}
    assert "9 entries, and 8" in found.left["words"]
    assert "3 axes" in found.left["kernel"]
    assert "no such parameter" in found.left["gone"]
    assert "not observed" in found.left["unseen"]


def test_random_maps_and_padding():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_map(2, 3, generator) for _ in range(4000)])
    assert drawn.mean(0).abs().max() < 0.05
    torch.testing.assert_close(drawn[0] @ drawn[0].mT, torch.eye(2, dtype=torch.float64))
    tau = torch.arange(6.0).reshape(2, 3)
    assert pad(tau, (3, 2)).tolist() == [[0, 1], [3, 4], [0, 0]]


def test_schedules_and_lineages():
    assert schedule(12, 12) == list(range(12))
    assert schedule(12, 3, "top_bottom") == [11, 10, 9]
    assert schedule(12, 3, spread="clump") == [0, 0, 0]
    assert schedule(3, 4, spread="spread_mod") == [0, 1, 0, 1]
    assert schedule(2, 3) == [0, 1, 0]
    assert [block.origin for block in lineage(2, [0, 1, 0])] == [0, 0, 0, 1, 1]
    assert [block.added for block in lineage(2, [0, 0])] == [False, True, True, False]
    names = ["stem", "encoder.block.0.layer.1.w", "encoder.block.1.layer.1.w", "decoder.block.0.w"]
    assert depths(names) == {"encoder.block": 2, "decoder.block": 1}
    assert lineages(names, [*names, "decoder.block.1.w"], "bottom_top", "spread").keys() == {
        "decoder.block"
    }
    with pytest.raises(UserError, match="as deep or deeper"):
        lineages([*names, "decoder.block.1.w"], names, "bottom_top", "spread")


@pytest.mark.parametrize("average", [True, False])
def test_extension_is_linear_and_leaves_no_block_at_zero(average):
    weights = {f"blocks.{index}.w": rows(3, 3) for index in range(2)} | {"top": rows(1, 3)}
    names = [f"blocks.{index}.w" for index in range(4)] + ["top"]
    extend = Extension({"blocks": lineage(2, [0, 1])}, names, average=average)
    deep = extend(weights)
    mean = (weights["blocks.0.w"] + weights["blocks.1.w"]) / 2
    torch.testing.assert_close(deep["blocks.1.w"], mean if average else weights["blocks.0.w"])
    torch.testing.assert_close(deep["blocks.3.w"], weights["blocks.1.w"])
    assert all(deep[name].norm() > 0 for name in names)
    tuned = {name: weight + 0.1 for name, weight in weights.items()}
    difference = {name: tuned[name] - weights[name] for name in weights}
    for name, delta in extend(difference).items():
        torch.testing.assert_close(delta, extend(tuned)[name] - deep[name])
    assert set(extend({"blocks.1.w": weights["blocks.1.w"]})) == (
        {"blocks.1.w", "blocks.2.w", "blocks.3.w"} if average else {"blocks.2.w", "blocks.3.w"}
    )


def test_ridge():
    now, wanted = rows(40, 3), rows(40, 3)
    found = ridge(now, wanted, pull=2.0)
    matrix, residual = (
        found.matrix,
        (now - now.mean(0)) @ found.matrix.mT - (wanted - wanted.mean(0)),
    )
    gradient = residual.mT @ (now - now.mean(0)) + 1e-6 * matrix + 2.0 * (matrix - torch.eye(3))
    assert gradient.abs().max() < 1e-9
    torch.testing.assert_close(ridge(now, wanted, 1e12).matrix, torch.eye(3, dtype=torch.float64))
    weight, bias, inputs = rows(3, 5), rows(1, 3)[0], rows(20, 5)
    after = inputs @ absorbed(found, weight, shift=False).mT + absorbed(found, bias, shift=True)
    torch.testing.assert_close(after, (inputs @ weight.mT + bias) @ matrix.mT + found.offset)
    scaled = diagonal(found, now, wanted)
    torch.testing.assert_close((now * scaled.matrix + scaled.offset).mean(0), wanted.mean(0))


@pytest.mark.parametrize(
    "heads", [Heads(4, 4, 3), Heads(4, 2, 3, channels=False), Heads(4, 4, 3, places=False)]
)
def test_permuted_attention_is_found(heads):
    """Heads change places with and within groups, channels within heads, where nothing ties them to theirs."""
    inner, kv, width = heads.query * heads.width, heads.key_value * heads.width, 8
    axes = {
        "words": (None, "residual"), "q": ("b.attn.q", "b.attn.in"), "k": ("b.attn.k", "b.attn.in"),
        "v": ("b.attn.v", "b.attn.in"), "out": ("b.attn.out", "b.attn.heads"), "up": ("b.mlp.up", "b.mlp.in"),
        "down": ("b.mlp.proj", "b.mlp.hidden"),
    }  # fmt: skip
    shapes = {
        "words": (20, width),
        "q": (inner, width),
        "k": (kv, width),
        "v": (kv, width),
        "out": (width, inner),
    }
    shapes |= {"up": (10, width), "down": (width, 10)}
    source = {name: rows(*shape) for name, shape in shapes.items()}
    stream, hidden = torch.randperm(width), torch.randperm(10)
    share = heads.query // heads.key_value
    groups = torch.randperm(heads.key_value) if heads.places else torch.arange(heads.key_value)
    channels = [torch.randperm(3) if heads.channels else torch.arange(3) for _ in groups]
    values = [torch.randperm(3) for _ in groups]
    own_heads = [torch.randperm(share) for _ in groups]
    planted = {
        space: stream
        for named in axes.values()
        for space in named
        if space and group_of(space)[0] == "units"
    }
    planted |= {"b.mlp.up": hidden, "b.mlp.hidden": hidden}
    for member, inside in (("k", channels), ("v", values)):
        planted[f"b.attn.{member}"] = torch.cat(
            [g * 3 + inside[i] for i, g in enumerate(groups.tolist())]
        )
    for member, inside in (("q", channels), ("heads", values)):
        parts = [
            (g * share + h) * 3 + inside[i]
            for i, g in enumerate(groups.tolist())
            for h in own_heads[i].tolist()
        ]
        planted[f"b.attn.{member}"] = torch.cat(parts)
    target = {name: permute(weight, axes[name], planted) for name, weight in source.items()}
    found = match(source, target, axes, heads)
    assert all(torch.equal(found[space], order) for space, order in planted.items())


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_the_spread_of_random_maps_errors(shape):
    source, target = rows(40, shape[0]), rows(40, shape[1])
    target[:, 0] += source[:, 1]
    found = moment(source, target)
    generator = torch.Generator().manual_seed(3)
    errors = []
    for _ in range(4000):
        errors.append(alignment_error(random_map(*shape, generator), found))
    drawn = torch.tensor(errors)
    assert drawn.mean().item() == pytest.approx(1, abs=0.01)
    assert drawn.std().item() == pytest.approx(random_spread(found), rel=0.05)


def test_the_picture_of_errors_has_a_line_for_each_role():
    said = {"held_out_error": 0.25, "random_spread": 0.1}
    maps = {"embedding": said, "encoder.blocks.0.attn.q": said, "encoder.blocks.1.attn.q": said}
    maps["decoder.blocks.0.mlp.hidden"] = {"held_out_error": 0.5, "random_spread": 0.2}
    maps["blocks.0.attn.k"] = {"held_out_error": None}
    picture = alignment_by_layer(maps)
    assert picture.series["encoder attn.q"] == ((0, 0.25), (1, 0.25))
    assert picture.series["decoder mlp.hidden"] == ((0, 0.5),)
    (bound,) = picture.dotted
    assert picture.series[bound] == ((0, pytest.approx(0.4)), (1, pytest.approx(0.7)))
    assert len(picture.series) == 3
    assert alignment_by_layer({"embedding": said}) is None
