"""Objectives against hand-computed losses and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from memory import Memory

from taskvec.training.batches import Batch
from taskvec.training.callbacks import FORGET, Moment
from taskvec.training.loop import Group, train
from taskvec.training.objectives import pseudo
from taskvec.training.objectives.negation import Negation
from taskvec.training.objectives.reliable import Noted, Recover
from taskvec.training.objectives.sar import Sar
from taskvec.training.objectives.sides import Sides
from taskvec.training.objectives.simclr import SimClr
from taskvec.training.objectives.twice import Twice
from taskvec.training.objectives.ufm import Ufm
from taskvec.training.schedule import Schedule
from taskvec.training.sharpness import SharpnessAware

N, D, C = 12, 5, 3
SEEDS = pytest.mark.parametrize("seed", [1, 77])


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(inputs, labels=None) -> Batch:
    owned = {} if labels is None else {"t": labels}
    return Batch(inputs, {"t": slice(0, len(inputs))}, owned)


def differences(loss, weights: torch.Tensor) -> torch.Tensor:
    """Central differences of a scalar function."""
    found = torch.zeros_like(weights)
    for place in range(weights.numel()):
        step = torch.zeros(weights.numel())
        step[place] = 1e-5
        step = step.view_as(weights)
        found.view(-1)[place] = (loss(weights + step) - loss(weights - step)) / 2e-5
    return found


def check_gradient(loss, weights: torch.Tensor, tolerance: float) -> None:
    leaf = weights.clone().requires_grad_()
    (own,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(own, differences(loss, weights), atol=tolerance, rtol=1e-3)


@SEEDS
def test_negation_is_control_minus_target(seed):
    torch.manual_seed(seed)
    one, other = torch.randn(N, D), torch.randn(N, D)
    labels, others = torch.randint(C, (N,)), torch.randint(C, (N,))
    sides = Sides(batch(one, labels), batch(other, others))

    def loss(weights):
        return Negation().loss(lambda task, x: x @ weights, sides, {})

    weights = torch.randn(D, C)
    expected = F.cross_entropy(other @ weights, others) - F.cross_entropy(one @ weights, labels)
    torch.testing.assert_close(loss(weights), expected)
    check_gradient(loss, weights, 1e-7)


@SEEDS
def test_negation_takes_half_a_batch_of_each(seed):
    views = {
        name: Memory(torch.randn(size, D), torch.zeros(size).long())
        for name, size in (("a", 20), ("b", 9))
    }
    steps = Negation().steps(views, Schedule(batch_size=8, augment="none"), seed)
    (sides,) = steps.at(0, {})
    assert (sides.target.size, sides.control.size, steps.per_epoch) == (4, 4, 5)
    assert set(sides.target.rows) == {"a"}


@SEEDS
def test_simclr_by_a_loop(seed):
    torch.manual_seed(seed)
    one, other, weights = torch.randn(4, D), torch.randn(4, D), torch.randn(D, C)

    def loss(w):
        return SimClr().loss(lambda task, x: x @ w, Twice(batch(one), batch(other)), {})

    total = 0.0
    for i in range(4):
        u = one[i] @ weights
        scores = [torch.dot(u, v) / (u.norm() * v.norm()) / 0.2 for v in other @ weights]
        total -= math.log(math.exp(scores[i]) / sum(map(math.exp, scores)))
    assert loss(weights).item() == pytest.approx(total / 4)
    check_gradient(loss, weights, 1e-7)


def test_views_of_simclr_are_two_crops_of_the_same_images():
    torch.set_default_dtype(torch.float32)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    steps = SimClr().steps({"t": Memory(images)}, Schedule(batch_size=6, crop_scale=0.5), 3)
    (twice,), (again,) = steps.at(0, {}), steps.at(0, {})
    assert not torch.equal(twice.first.inputs, twice.second.inputs)
    torch.testing.assert_close(twice.first.inputs, again.first.inputs)


def test_sar_filters_twice_and_means_over_the_rest():
    logits = torch.tensor([[9.0, 0, 0], [0.1, 0, 0], [4.0, 0, 0]])
    noted = Noted(batch(logits), {})
    objective = Sar()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    bound = 0.4 * math.log(3)
    assert (entropy < bound).tolist() == [True, False, True]
    first = objective.loss(lambda task, x: x, noted, {})
    torch.testing.assert_close(first, entropy[[0, 2]].mean())
    # asked again where the third is no longer reliable, and the second is for the first time
    moved = torch.tensor([[9.0, 0, 0], [9.0, 0, 0], [0.0, 0, 0]])
    second = objective.loss(lambda task, x: moved, noted, {})
    torch.testing.assert_close(second, entropy[0])
    assert Sar(faithful=True).loss(
        lambda task, x: x, Noted(batch(logits), {}), {}
    ).item() == pytest.approx(entropy.mean().item())  # 0.4 ln 1000 lets everything through


def test_sar_recovers_when_the_average_collapses():
    leaf = torch.zeros(2)
    recover = Recover({"w": leaf}, memory=0.5, floor=0.2)
    leaf += 3
    at = lambda loss: recover(Moment(1, 9, 3, torch.tensor(5.0), torch.tensor(loss)))  # noqa: E731 (read three times)
    assert at(0.5) is None
    assert at(0.1) is None  # the average is 0.3
    assert leaf.tolist() == [3, 3]
    assert at(0.05) == FORGET
    assert leaf.tolist() == [0, 0]


@SEEDS
def test_sharpness_aware_steps_use_the_gradient_at_the_ascended_point(seed):
    torch.manual_seed(seed)
    start, target = torch.randn(4), torch.randn(4)
    leaf = start.clone().requires_grad_()
    optimiser = SharpnessAware(torch.optim.SGD([leaf], lr=0.1), 0.05)

    def closure():
        optimiser.zero_grad()
        loss = (leaf - target).pow(4).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    slope = 4 * (start - target) ** 3
    there = start + 0.05 * slope / slope.norm()
    torch.testing.assert_close(leaf.detach(), start - 0.1 * 4 * (there - target) ** 3)


def test_training_with_sharpness_aware_steps_resumes():
    class Sam(Schedule):
        @property
        def radius(self):
            return 0.05

    class Held:
        held = None

        def restore(self):
            return self.held

        def save_if_due(self, state):
            if self.held is None:
                found = state()
                copies = {k: v.clone() for k, v in found["leaves"].items()}
                moments = {
                    n: {k: v.clone() for k, v in m.items()} for n, m in found["optimiser"].items()
                }
                self.held = found | {"leaves": copies, "optimiser": moments}

    class Steps:
        per_epoch = 2

        def at(self, step, state):
            return [batch(torch.full((2, 1), float(step)))]

    def run(checkpoint):
        leaf = torch.ones(1, requires_grad=True)
        loss = lambda part, state: (part.inputs @ leaf - 1).square().mean()  # noqa: E731 (a loss)
        schedule = Sam(optimiser="sgd", lr=0.01, steps=4, clip_norm=None)
        train([Group({"w": leaf})], loss, Steps(), schedule, checkpoint=checkpoint)
        return leaf.detach()

    checkpoint = Held()
    whole = run(checkpoint)
    torch.testing.assert_close(run(checkpoint), whole, rtol=0, atol=0)


# --- UFM ------------------------------------------------------------------------------------------------------------


def test_trusted_are_the_most_confident_of_each_predicted_class():
    chance = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]])
    assert pseudo.trusted(chance, 1).tolist() == [0, 3]
    assert pseudo.trusted(chance, 2).tolist() == [0, 2, 3, 4]


@SEEDS
def test_flattening_sums_to_one_and_keeps_the_winner(seed):
    torch.manual_seed(seed)
    chance = torch.randn(N, C).softmax(1)
    flat = pseudo.flattened(chance, 0.5)
    torch.testing.assert_close(flat.sum(1), torch.ones(N))
    assert flat.argmax(1).equal(chance.argmax(1))
    assert (flat.max(1).values < chance.max(1).values).all()


@SEEDS
def test_ufm_loss_by_a_loop(seed):
    torch.manual_seed(seed)
    weak, strong, weights = 2 * torch.randn(N, D), torch.randn(N, D), torch.randn(D, C)
    classes = torch.full((N,), -1)
    classes[:3] = torch.randint(C, (3,))
    taught = pseudo.Taught("t", weak, strong, classes)

    def loss(w, threshold=0.6):
        return Ufm().loss(lambda task, x: x @ w, taught, {"threshold": threshold})

    total, count = 0.0, 0
    for i in range(N):
        log_p = (strong[i] @ weights).log_softmax(0)
        p = (weak[i] @ weights).softmax(0).sqrt()
        target = p / p.sum()
        if classes[i] >= 0:
            total, count = total - log_p[classes[i]], count + 1
        elif target.max() > 0.6:
            total, count = total - (target * log_p).sum(), count + 1
    assert 3 < count < N
    check_gradient(lambda w: loss(w, 1.5), weights, 1e-7)
    torch.testing.assert_close(loss(weights), total / count)
    # A threshold above 1 keeps the trusted alone
    only = F.cross_entropy(strong[:3] @ weights, classes[:3])
    torch.testing.assert_close(loss(weights, 1.5), only)


def test_ufm_batches_are_a_quarter_trusted_and_epochs_cover_the_others():
    view = Memory(torch.arange(20.0).view(20, 1), None, torch.randn(2, 1))
    steps = Ufm().steps({"t": view}, Schedule(batch_size=8, augment="none"), 5)
    state = {
        "trusted": torch.tensor([1, 4, 5]),
        "classes": torch.zeros(20).long(),
        "threshold": 0.9,
    }
    seen = []
    for step in range(steps.per_epoch):
        (part,) = steps.at(step, state)
        sure = part.classes >= 0
        assert int(sure.sum()) == 2
        seen += part.weak[~sure].view(-1).tolist()
    assert sorted(seen) == [x for x in range(20) if x not in {1, 4, 5}]


def test_the_threshold_rises_and_the_released_code_trusts_everybody():
    view = Memory(torch.randn(20, D), None, torch.randn(C, D))
    logits_of = lambda task, x: x @ view.head.T  # noqa: E731 (a model)
    states = [Ufm().epoch(logits_of, {"t": view}, e, 10, {}) for e in (0, 5)]
    assert [state["threshold"] for state in states] == pytest.approx([0.9, 0.95])
    released = Ufm(faithful=True).epoch(logits_of, {"t": view}, 0, 10, {})
    assert len(released["trusted"]) == 20
    assert Ufm(faithful=True).epoch(None, {"t": view}, 1, 10, released) is released
    (part,) = (
        Ufm(faithful=True)
        .steps({"t": view}, Schedule(batch_size=20, augment="none"), 0)
        .at(0, released)
    )
    loss = Ufm(faithful=True).loss(logits_of, part, released)
    expected = F.cross_entropy(part.strong @ view.head.T, (part.weak @ view.head.T).argmax(1))
    torch.testing.assert_close(loss, expected)
