"""Adapters: their formulas by hand, trained for real, alone and jointly with a merge."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from atlas_world import CLASSES, WIDTH, Tower, given, vectors, view

from taskvec.errors import UserError
from taskvec.merge.adapters import lpp_steps
from taskvec.merge.adapters.base import Shots
from taskvec.merge.adapters.linear_probe import LinearProbe
from taskvec.merge.adapters.lpp import LPP
from taskvec.merge.adapters.tip import Tip, TipF
from taskvec.merge.learned.atlas import Atlas
from taskvec.merge.learned.composition import Learned
from taskvec.merge.learned.unmerged import Norms, Unmerged
from taskvec.needs import Examples
from taskvec.training.readouts import read_out

QUICK = {"steps": 20, "epochs": None, "batch_size": 16, "augment": "none", "lr": 0.02}


def shots(seed: int, count: int = 12) -> Shots:
    """Random examples as a model might see them, once more with noise."""
    torch.manual_seed(seed)
    features = F.normalize(torch.randn(count, WIDTH).double(), dim=1)
    noisy = F.normalize(features + 0.1 * torch.randn_like(features), dim=1)
    head = 100 * F.normalize(torch.randn(CLASSES, WIDTH).double(), dim=1)
    classes = torch.arange(count) % CLASSES
    return Shots(features, features @ head.T, classes, head, noisy, noisy @ head.T)


def test_a_cache_without_strength_leaves_the_logits_and_a_sharp_one_decides():
    seen = shots(1)
    plain = read_out(Tip(strength=0).fit(seen, 0), seen.features, seen.logits)
    torch.testing.assert_close(plain, seen.logits)
    sharp = read_out(Tip(strength=1e4, sharpness=1e4).fit(seen, 0), seen.features, seen.logits)
    assert sharp.argmax(1).equal(seen.classes)


def test_the_cache_by_a_loop():
    seen = shots(2)
    found = read_out(
        Tip(strength=2.0, sharpness=1.5).fit(seen, 0), 3 * seen.augmented, seen.augmented_logits
    )
    for row in range(4):
        expected = seen.augmented_logits[row].clone()
        for key, label in zip(seen.features, seen.classes, strict=True):
            expected[label] += 2.0 * torch.exp(-1.5 * (1 - key @ seen.augmented[row]))
        torch.testing.assert_close(found[row], expected)


def test_lpp_starts_at_class_sums_with_steps_by_formula():
    seen = shots(3)
    begun = lpp_steps.start(seen)
    for label in range(CLASSES):
        own = seen.features[seen.classes == label]
        torch.testing.assert_close(begun.linear[label], own.sum(0))
    cosines = [
        (seen.features[seen.classes == c] @ seen.head[c] / 100).mean() for c in range(CLASSES)
    ]
    torch.testing.assert_close(begun.mix, (250 * torch.stack(cosines)).mean().expand(CLASSES))
    sizes = lpp_steps.step_sizes(seen)
    gram = seen.augmented.T @ seen.augmented
    assert sizes.linear == pytest.approx(4 * 12 / torch.linalg.matrix_norm(gram, 2).item())
    widest = max(((seen.augmented @ seen.head[c] / 100) ** 2).sum().item() for c in range(CLASSES))
    assert sizes.mix == pytest.approx(12 / (4 * widest))
    readout = begun._asdict()
    expected = seen.features @ begun.linear.T + begun.mix * seen.logits / 100
    torch.testing.assert_close(read_out(readout, seen.features, seen.logits), expected)


@pytest.mark.parametrize(
    "adapter", [TipF(), LPP(), LinearProbe()], ids=lambda adapter: adapter.kind
)
def test_adapters_are_trained_on_frozen_features(adapter):
    seen = shots(4)
    found = adapter.fit(seen, 0)
    logits = read_out(found, seen.augmented, seen.augmented_logits)
    before = F.cross_entropy(seen.augmented_logits, seen.repeated)
    assert F.cross_entropy(logits, seen.repeated) < 0.5 * before
    if isinstance(adapter, TipF):
        begun = adapter.start(seen)
        assert all(not found[name].equal(tensor) for name, tensor in begun.items())
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("mode", ["standard", "tangent"])
@pytest.mark.parametrize("adapter", ["tip_f", "lpp"])
def test_atlas_with_an_adapter_learns_both_and_the_evaluator_reads_out(mode, adapter):
    model, signed = Tower(3), vectors(Tower(3), 3)
    own = given(model, signed, {"t9": view(3)}, forward=mode)
    found = Atlas(adapter=adapter, schedule=QUICK).compose(model.parameters, signed, own)
    assert found.coefficients.abs().max() > 0.01
    again = Learned.unpack(model.parameters, *found.pack())
    again.forward = mode
    outcomes, _ = own.evaluator.predictions(again, own.learning.examples, [1.0])
    (predicted,) = outcomes[1.0].values()
    accuracy = (predicted == view(3).targets).double().mean()
    again.readouts = {}
    without, _ = own.evaluator.predictions(again, own.learning.examples, [1.0])
    (bare,) = without[1.0].values()
    assert accuracy >= (bare == view(3).targets).double().mean()
    assert not predicted.equal(bare)


def test_no_merge_with_an_adapter_takes_no_vectors_and_labels_are_wanted():
    model = Tower(3)
    own = given(model, [], {"t9": view(3)})
    found = Unmerged(adapter=TipF(epochs=20)).compose(model.parameters, [], own)
    assert set(found.readout("t9")) == {"keys", "classes", "sharpness", "strength"}
    assert len(found.direction()) == 0
    unlabelled = SimpleNamespace(
        learning=(Examples("t9", "test", "learning"),), backbone=own.scope.backbone
    )
    with pytest.raises(UserError, match="learns from labels"):
        Unmerged(adapter=TipF()).needs(unlabelled)


def test_norms_are_trained_alone():
    model = Tower(3)
    own = given(model, [], {"t9": view(3)})
    found = Norms(spare=1, schedule={**QUICK, "batch_size": 40}).compose(model.parameters, [], own)
    assert set(found.direction()) == {"norm.weight", "norm.bias"}
    assert found.report["curve"][-1]["loss"] < found.report["curve"][0]["loss"]
