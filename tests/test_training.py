"""Training against hand-written references: schedule, batches, AdamW, callbacks, resumption, joint training, crops."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from memory import Given, Memory
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torchvision.transforms import RandomResizedCrop

from taskvec import registry
from taskvec.errors import NotFinite, UserError
from taskvec.finetune.full import Full
from taskvec.finetune.kfac import Kfac
from taskvec.finetune.recipe import Recipe
from taskvec.models.base import Model
from taskvec.models.layers import LinearLayer
from taskvec.training import loop
from taskvec.training.batches import CROP_DRAWS, Batch, Batches, random_resized_crop
from taskvec.training.callbacks import Kept
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.evaluator import Evaluator
from taskvec.training.loop import Group, train
from taskvec.training.objectives.base import Objective
from taskvec.training.objectives.cross_entropy import CrossEntropy
from taskvec.training.objectives.entropy import Entropy
from taskvec.training.schedule import PenaltySettings, Schedule
from taskvec.vectors import LowRank, TaskVector

SEEDS = pytest.mark.parametrize("seed", [3, 1234])


PLAIN = {"augment": "none", "warmup": 2, "batch_size": 4, "lr": 1e-2, "steps": 4}


def schedule(**settings) -> Schedule:
    """A schedule without augmentation."""
    return Schedule(**PLAIN | settings)


def recipe(**settings) -> Recipe:
    """A recipe without augmentation."""
    return Full(**PLAIN | settings)


# --- schedule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "warmup", "total", "expected"),
    [
        (0, 500, 2000, 2 / 500),
        (499, 500, 2000, 2.0),
        (500, 500, 2000, 2.0),
        (1250, 500, 2000, 1.0),
        (1999, 500, 2000, 2 * math.sin(math.pi / 3000) ** 2),
        (0, 4, 10, 0.5),
        (3, 4, 10, 2.0),
        (7, 4, 10, 1.0),
        (9, 4, 10, 2 * math.sin(math.pi / 12) ** 2),
        (0, 0, 10, 2.0),
        (5, 0, 10, 1.0),
        (0, 0, 1, 2.0),
        (0, 5, 5, 0.4),
        (4, 5, 5, 2.0),
        (5, 5, 5, 2.0),
        (0, 1, 1, 2.0),
    ],
)
def test_the_rate_warms_up_linearly_and_decays_as_a_cosine(step, warmup, total, expected):
    assert schedule(lr=2.0, warmup=warmup).rate(step, total) == pytest.approx(expected, rel=1e-12)


def test_a_constant_rate_warms_up_and_stays():
    found = [schedule(lr=2.0, warmup=2, shape="constant").rate(step, 5) for step in range(5)]
    assert found == [1.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(("epochs", "steps"), [(None, 77), (1, 3), (4, 12)])
def test_epochs_replace_steps(epochs, steps):
    assert schedule(steps=77, epochs=epochs).total(per_epoch=3) == steps


def test_a_batch_that_does_not_divide_is_refused():
    for made in (schedule, recipe):
        with pytest.raises(ValidationError, match="batch_size 10 does not divide into 4"):
            made(batch_size=10, accumulation=4)


# --- the recipe that suits a backbone ---------------------------------------------------------------------------------


class Suited:
    """A backbone with a recipe of its own."""

    class recipe:  # noqa: N801 (stands for an attribute)
        lr, steps, warmup, batch_size, drift_weight = 3e-4, 200, 20, 32, 7.0


def test_what_is_left_open_is_the_backbones():
    found = Full(steps=10).resolved(Suited)
    assert (found.lr, found.steps, found.warmup, found.batch_size) == (3e-4, 10, 20, 32)
    assert Kfac().resolved(Suited).penalty.weight == 7.0
    assert Kfac(penalty={"weight": 0.5}, lr=1.0).resolved(Suited).penalty == PenaltySettings(
        weight=0.5
    )
    with pytest.raises(
        UserError, match="finetune=full: batch_size 32 does not divide into 5 micro-batches"
    ):
        Full(accumulation=5).resolved(Suited)


def test_a_users_method_takes_it_the_same_way():
    class Mine(Recipe):
        kind: str = "mine"
        weight: float = 2.0

    found = Mine(weight=3.0).resolved(Suited)
    assert (type(found), found.weight, found.lr, found.steps) == (Mine, 3.0, 3e-4, 200)


def test_where_a_checkpoint_is_taken_changes_no_identity():
    assert (
        recipe(checkpoint_every=1.0, gradient_checkpointing=True).identity() == recipe().identity()
    )
    assert recipe(objective="entropy").identity()["objective"] == {"kind": "entropy", "code": 1}
    assert Full(objective={"kind": "entropy"}).objective == Entropy()
    with pytest.raises(ValueError, match="unknown objective 'entrop'; did you mean 'entropy'"):
        recipe(objective="entrop")


# --- batches --------------------------------------------------------------------------------------------------------


def numbered(*sizes: int) -> dict[str, Memory]:
    """Tasks whose images are constant and say which example of which task they are, whatever the crop."""
    views = {}
    for index, size in enumerate(sizes):
        images = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
        images[:, 1] = index
        views[f"task{index}"] = Memory(images, torch.arange(size), torch.empty(0))
    return views


def examples(batches: list[Batch]) -> list[tuple[str, int]]:
    """Return (task, number) of every example in order, after checking that inputs, rows and labels agree."""
    found = []
    for batch in batches:
        covered = torch.zeros(len(batch.inputs), dtype=torch.long)
        for task, rows in batch.rows.items():
            covered[rows] += 1
            inputs = batch.inputs[rows]
            assert (inputs[:, 0].float().round() == batch.labels[task].view(-1, 1, 1)).all()
            assert (inputs[:, 1].float().round() == int(task.removeprefix("task"))).all()
            found += [(task, label) for label in batch.labels[task].tolist()]
        assert (covered == 1).all()
        assert batch.rows.keys() == batch.labels.keys()
    return found


@SEEDS
@pytest.mark.parametrize("crop", [None, 0.9])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("sizes", [(12,), (13,), (4,), (20, 3, 9)])
def test_every_epoch_is_a_permutation_of_the_union(seed, sizes, accumulation, crop):
    batches = Batches(
        numbered(*sizes), batch_size=6, accumulation=accumulation, seed=seed, crop=crop
    )
    everything = [(f"task{i}", n) for i, size in enumerate(sizes) for n in range(size)]
    assert len(batches) == len(everything)
    per_epoch = math.ceil(len(everything) / 6)
    orders = []
    for epoch in range(3):
        steps = [examples(batches.at(epoch * per_epoch + step)) for step in range(per_epoch)]
        assert [len(step) for step in steps] == [6] * (len(everything) // 6) + [
            len(everything) % 6
        ] * (len(everything) % 6 > 0)
        orders.append(sum(steps, []))
        assert sorted(orders[-1]) == sorted(everything)
    assert orders[0] != orders[1] != orders[2]


def random_views(seed: int, *sizes: int) -> dict[str, Memory]:
    """Tasks of random images."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"task{i}": Memory(
            torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8),
            torch.arange(n),
            torch.empty(0),
        )
        for i, n in enumerate(sizes)
    }


@SEEDS
def test_seed_and_step_alone_determine_a_batch_and_its_crops(seed):
    views = random_views(seed, 11, 6)
    settings = {"batch_size": 5, "accumulation": 1, "crop": 0.5}
    forwards = Batches(views, seed=seed, **settings)
    expected = [forwards.at(step)[0] for step in range(9)]
    for step in (8, 0, 3, 4, 7, 3):
        again = Batches(views, seed=seed, **settings).at(step)[0]
        assert torch.equal(again.inputs, expected[step].inputs)
        assert again.rows == expected[step].rows
        assert torch.equal(forwards.at(step)[0].inputs, again.inputs)
    other = Batches(views, seed=seed + 1, **settings)
    assert all(
        not torch.equal(other.at(step)[0].inputs, batch.inputs)
        for step, batch in enumerate(expected)
    )


@SEEDS
@pytest.mark.parametrize("accumulation", [2, 3, 5])
def test_micro_batches_are_a_cut_of_the_batch_with_the_same_crops(seed, accumulation):
    views = random_views(seed, 23, 9)
    whole = Batches(views, batch_size=12, accumulation=1, seed=seed, crop=0.5)
    cut = Batches(views, batch_size=12, accumulation=accumulation, seed=seed, crop=0.5)
    for step in range(6):  # two epochs; the third batch of each has 8 examples
        parts, (full,) = cut.at(step), whole.at(step)
        sizes = [len(part.inputs) for part in parts]
        assert sum(sizes) == len(full.inputs) and max(sizes) - min(sizes) <= 1
        key = torch.cat([part.inputs for part in parts]).flatten(1)
        assert sorted(key.tolist()) == sorted(full.inputs.flatten(1).tolist())


# --- the loop -------------------------------------------------------------------------------------------------------


class Regression:
    """Least squares in float64 with a gradient that is known in closed form."""

    def __init__(self, seed: int, examples: int = 31, width: int = 5):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(examples, width, generator=generator, dtype=torch.float64)
        self.y = torch.randn(examples, generator=generator, dtype=torch.float64)
        self.start = {
            "w": torch.randn(width, generator=generator, dtype=torch.float64),
            "b": torch.zeros(1).double(),
        }
        self.views = {"t": Memory(self.x, torch.arange(examples), torch.empty(0))}

    def parameters(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone().requires_grad_() for name, tensor in self.start.items()}

    def batches(self, seed: int, settings: Schedule) -> Batches:
        return Batches(
            self.views,
            batch_size=settings.batch_size,
            accumulation=settings.accumulation,
            seed=seed,
            crop=None,
        )

    def loss(self, trainable: dict[str, torch.Tensor]):
        return lambda batch, state: (
            (batch.inputs @ trainable["w"] + trainable["b"] - self.y[batch.labels["t"]])
            .square()
            .mean()
            / 2
        )

    def train(self, settings: Schedule, seed: int, total: int, *, steps=None, **more):
        """Return the trained parameters and the curve."""
        trainable = self.parameters()
        steps = steps or self.batches(seed, settings)
        return trainable, self.run(trainable, steps, settings, total, **more)

    def run(self, trainable, steps, settings: Schedule, total: int, **more) -> list:
        settings = settings.model_copy(update={"steps": total})
        return train([Group(trainable)], self.loss(trainable), steps, settings, **more)


def adamw(
    problem: Regression, settings: Schedule, seed: int, total: int
) -> tuple[np.ndarray, list[float]]:
    """Loshchilov & Hutter's algorithm with clipping, in NumPy, for all parameters stacked as one vector."""
    theta = np.concatenate([t.numpy() for t in problem.start.values()])
    first, second, norms = np.zeros_like(theta), np.zeros_like(theta), []
    batches = problem.batches(seed, settings)
    for step in range(total):
        chosen = np.concatenate([batch.labels["t"].numpy() for batch in batches.at(step)])
        inputs = np.c_[problem.x.numpy(), np.ones(len(problem.x))][chosen]
        gradient = inputs.T @ (inputs @ theta - problem.y.numpy()[chosen]) / len(chosen)
        norms.append(np.linalg.norm(gradient))
        gradient = gradient * min(1.0, settings.clip_norm / (norms[-1] + 1e-6))
        rate = settings.rate(step, total)
        theta = theta * (1 - rate * settings.weight_decay)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        theta = theta - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return theta, norms


@SEEDS
@pytest.mark.parametrize("total", [1, 7])
@pytest.mark.parametrize("clip", [0.05, 1e9])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_are_clipped_adamw_with_decay_on_every_parameter(seed, total, clip, decay):
    problem = Regression(seed)
    problem.start["b"] += 0.7
    settings = schedule(lr=0.05, weight_decay=decay, clip_norm=clip, batch_size=8, warmup=3)
    trained, curve = problem.train(settings, seed, total)
    expected, norms = adamw(problem, settings, seed, total)
    found = torch.cat([tensor.detach() for tensor in trained.values()])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose([point["grad_norm"] for point in curve], norms, rtol=1e-12)
    assert (clip > max(norms)) == (clip == 1e9)


@SEEDS
@pytest.mark.parametrize("accumulation", [2, 3, 4, 6, 12])
def test_accumulated_micro_batches_give_the_update_of_the_whole_batch(seed, accumulation):
    problem = Regression(seed, examples=31)  # batches of 12, 12 and 7: no cut of the last is even
    whole, curve = problem.train(schedule(batch_size=12), seed, total=6)
    cut, cut_curve = problem.train(
        schedule(batch_size=12, accumulation=accumulation), seed, total=6
    )
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-11, atol=1e-12)
    for key in ("loss", "grad_norm", "lr"):
        assert [p[key] for p in cut_curve] == pytest.approx([p[key] for p in curve], rel=1e-6)


@SEEDS
def test_a_regulariser_adds_its_gradient_once_whatever_the_accumulation(seed):
    problem = Regression(seed)
    ends = []
    for accumulation in (1, 4):
        trainable, settings = (
            problem.parameters(),
            schedule(batch_size=8, accumulation=accumulation),
        )

        def ridge(step: int, w=trainable["w"]) -> torch.Tensor:
            return (step + 1) * w.square().sum()

        problem.run(trainable, problem.batches(seed, settings), settings, 3, penalties=[ridge])
        ends.append(trainable["w"].detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-11, atol=1e-12)
    assert not torch.allclose(
        ends[0], problem.train(schedule(batch_size=8), seed, 3)[0]["w"].detach()
    )


@pytest.mark.parametrize(("total", "interval"), [(7, 1), (120, 2)])
def test_the_curve_has_about_fifty_points_and_the_last_step(total, interval):
    seen = []
    _, curve = Regression(5).train(
        schedule(), 5, total, observe=lambda step, of, point: seen.append((step, of, point))
    )
    assert [point["step"] for point in curve] == list(range(interval, total + 1, interval))
    assert seen == [(point["step"], total, point) for point in curve]


@pytest.mark.parametrize("at", [1, 30])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_error_that_names_its_step(at, value):
    problem, told = Regression(1), []
    trainable = problem.parameters()

    def loss(batch: Batch, state) -> torch.Tensor:
        told.append(batch)
        return trainable["w"].square().sum() * (value if len(told) == at else 1.0)

    settings = schedule(steps=200)  # a point of the curve every 4 steps
    with pytest.raises(
        NotFinite, match=f"the training loss is not finite at step {at}; lower the learning rate"
    ):
        train([Group(trainable)], loss, problem.batches(0, settings), settings)
    assert len(told) == math.ceil(at / 4) * 4


def test_a_gradient_or_weight_that_is_not_finite_is_an_error_that_names_it():
    problem = Regression(1)

    def kink(step: int, w) -> torch.Tensor:
        return (w - w.detach()).sum().sqrt()  # 0, with an infinite slope

    trainable = problem.parameters()
    with pytest.raises(NotFinite, match="the gradient is not finite at step 1"):
        problem.run(
            trainable,
            problem.batches(0, schedule()),
            schedule(),
            4,
            penalties=[lambda s: kink(s, trainable["w"])],
        )
    trainable = problem.parameters()
    settings = schedule(optimiser="sgd", lr=1e38, warmup=0, clip_norm=None, weight_decay=1e300)
    with pytest.raises(NotFinite, match="w is not finite after step 1"):
        problem.run(trainable, problem.batches(0, settings), settings, 1)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    problem = Regression(1)
    trainable = problem.parameters()
    settings, checkpoint = schedule(steps=200), Checkpoint(tmp_path, every=0)

    def loss(batch: Batch, state) -> torch.Tensor:
        return trainable["w"].sum() * math.nan

    with pytest.raises(NotFinite, match="at step 1;"):
        train(
            [Group(trainable)], loss, problem.batches(0, settings), settings, checkpoint=checkpoint
        )
    assert not checkpoint.path.exists()


@SEEDS
def test_groups_have_rates_and_decays_of_their_own(seed):
    problem, settings = (
        Regression(seed),
        schedule(batch_size=8, clip_norm=None, weight_decay=0.5, warmup=0),
    )
    slow = problem.parameters()
    groups = [
        Group({"w": slow["w"]}, factor=0.1),
        Group({"b": slow["b"]}, factor=0.0, weight_decay=0.0),
    ]
    train(groups, problem.loss(slow), problem.batches(seed, settings), settings)
    assert torch.equal(slow["b"], problem.start["b"])
    only = Regression(seed)
    only.start["b"].requires_grad_(False)
    alone = {"w": only.start["w"].clone().requires_grad_(), "b": only.start["b"]}
    tenth = settings.model_copy(update={"lr": settings.lr / 10})
    train([Group({"w": alone["w"]})], only.loss(alone), only.batches(seed, tenth), tenth)
    torch.testing.assert_close(slow["w"], alone["w"], rtol=1e-12, atol=0)


@SEEDS
def test_sgd_has_momentum(seed):
    problem = Regression(seed)
    settings = schedule(
        optimiser="sgd", momentum=0.7, batch_size=8, clip_norm=None, weight_decay=0.3
    )
    trained, _ = problem.train(settings, seed, 5)
    theta = np.concatenate([t.numpy() for t in problem.start.values()])
    speed = np.zeros_like(theta)
    for step in range(5):
        chosen = problem.batches(seed, settings).at(step)[0].labels["t"].numpy()
        inputs = np.c_[problem.x.numpy(), np.ones(len(problem.x))][chosen]
        gradient = (
            inputs.T @ (inputs @ theta - problem.y.numpy()[chosen]) / len(chosen) + 0.3 * theta
        )
        speed = gradient if step == 0 else 0.7 * speed + gradient
        theta = theta - settings.rate(step, 5) * speed
    np.testing.assert_allclose(torch.cat([t.detach() for t in trained.values()]), theta, rtol=1e-12)


class Climber(torch.optim.SGD):
    """Sharpness-aware: the gradient is taken where a step uphill leads (Foret et al., arXiv 2010.01412)."""

    def step(self, closure):
        with torch.enable_grad():
            value = closure()
        leaves = [leaf for group in self.param_groups for leaf in group["params"]]
        start = [leaf.detach().clone() for leaf in leaves]
        norm = torch.stack([leaf.grad.norm() for leaf in leaves]).norm()
        with torch.no_grad():
            for leaf in leaves:
                leaf += 0.05 * leaf.grad / norm
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for leaf, old in zip(leaves, start, strict=True):
                leaf.copy_(old)
        super().step()
        return value


def test_the_loss_may_be_asked_again_at_moved_weights(monkeypatch):
    problem, settings = (
        Regression(3),
        schedule(batch_size=8, warmup=0, clip_norm=None, shape="constant"),
    )
    monkeypatch.setattr(
        loop, "optimiser", lambda groups, _: Climber(groups[0].leaves.values(), lr=1.0)
    )
    trained, curve = problem.train(settings, 3, 1)
    theta = np.concatenate([t.numpy() for t in problem.start.values()])
    chosen = problem.batches(3, settings).at(0)[0].labels["t"].numpy()
    inputs, wanted = (
        np.c_[problem.x.numpy(), np.ones(len(problem.x))][chosen],
        problem.y.numpy()[chosen],
    )

    def gradient(at):
        return inputs.T @ (inputs @ at - wanted) / len(chosen)

    uphill = theta + 0.05 * gradient(theta) / np.linalg.norm(gradient(theta))
    expected = theta - settings.lr * gradient(uphill)
    np.testing.assert_allclose(
        torch.cat([t.detach() for t in trained.values()]), expected, rtol=1e-12
    )
    assert curve[0]["loss"] == pytest.approx(((inputs @ theta - wanted) ** 2).mean() / 2, rel=1e-6)
    assert curve[0]["grad_norm"] == pytest.approx(np.linalg.norm(gradient(theta)), rel=1e-12)


# --- resumption -----------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


class Stopping:
    """Batches of an interrupted process."""

    def __init__(self, batches: Batches, at: int):
        self.batches, self.stop, self.per_epoch = batches, at, batches.per_epoch

    def at(self, step: int, state) -> list[Batch]:
        if step == self.stop:
            raise Stop
        return self.batches.at(step, state)


TOTAL = 7


@SEEDS
@pytest.mark.parametrize("saved", range(TOTAL + 1))
@pytest.mark.parametrize("lost", [0, 2])
def test_a_resumed_training_is_bit_identical_at_every_step(seed, saved, lost, tmp_path):
    problem, settings = Regression(seed), schedule(batch_size=6, accumulation=2)
    expected, curve = problem.train(settings, seed, TOTAL)
    checkpoint = Checkpoint(tmp_path / "partial", every=0 if saved else 1e9)

    def observe(step: int, *_) -> None:
        if step > saved:  # the last state on disk is that after step ``saved``
            checkpoint.every = 1e9

    trainable = problem.parameters()
    stopping = Stopping(problem.batches(seed, settings), at=saved + lost)
    try:
        problem.run(trainable, stopping, settings, TOTAL, checkpoint=checkpoint, observe=observe)
    except Stop:
        pass
    else:
        assert saved + lost >= TOTAL
    assert checkpoint.path.exists() == (saved > 0)
    resumed, resumed_curve = problem.train(
        settings, seed, TOTAL, checkpoint=Checkpoint(tmp_path / "partial", every=1e9)
    )
    for name in expected:
        assert torch.equal(resumed[name], expected[name]), name
    assert resumed_curve == curve


@pytest.mark.parametrize("saved", range(1, TOTAL))
def test_what_is_kept_of_a_resumed_training_is_that_of_an_undisturbed_one(saved, tmp_path):
    """Each share is what a training of the same length holds after that many steps, at least one."""
    problem, settings, shares = Regression(4), schedule(batch_size=6), (0.01, 0.3, 0.6, 1.0)
    expected = {}
    for share, step in zip(shares, (1, 2, 4, 7), strict=True):
        trainable = problem.parameters()
        stopping = Stopping(problem.batches(4, settings), at=step)
        with pytest.raises(Stop) if step < TOTAL else nullcontext():
            problem.run(trainable, stopping, settings, TOTAL)
        expected[share] = {name: leaf.detach() for name, leaf in trainable.items()}
    trainable = problem.parameters()
    stopping = Stopping(problem.batches(4, settings), at=saved)
    before, checkpoint = Kept(trainable, shares), Checkpoint(tmp_path, every=0)
    with pytest.raises(Stop):
        problem.run(trainable, stopping, settings, TOTAL, after=[before], checkpoint=checkpoint)
    trainable = problem.parameters()
    kept = Kept(trainable, shares)
    steps = problem.batches(4, settings)
    problem.run(trainable, steps, settings, TOTAL, after=[kept], checkpoint=Checkpoint(tmp_path, 1))
    for share in shares:
        for name, leaf in kept.at(share).items():
            assert torch.equal(leaf, expected[share][name])


def test_only_work_after_the_checkpoint_is_done_again(tmp_path):
    problem, steps = Regression(2), []
    problem.train(schedule(), 2, 4, checkpoint=Checkpoint(tmp_path, every=0))

    class Spy(Stopping):
        def at(self, step: int, state) -> list[Batch]:
            steps.append(step)
            return super().at(step, state)

    trainable = problem.parameters()
    spy = Spy(problem.batches(2, schedule()), at=-1)
    problem.run(trainable, spy, schedule(), 6, checkpoint=Checkpoint(tmp_path, every=1e9))
    assert steps == [4, 5]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def garble(path):
    path.write_bytes(b"\x00" * 200)


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def drop_header(path):
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    "damage", [truncate, garble, empty, flip, drop_header], ids=lambda f: f.__name__
)
def test_a_damaged_checkpoint_means_a_fresh_start_with_a_warning(damage, tmp_path, caplog):
    problem = Regression(8)
    expected, curve = problem.train(schedule(), 8, 5)
    problem.train(schedule(), 8, 3, checkpoint=Checkpoint(tmp_path, every=0))
    damage(tmp_path / "training.safetensors")
    with caplog.at_level(logging.WARNING, logger="taskvec"):
        found, found_curve = problem.train(
            schedule(), 8, 5, checkpoint=Checkpoint(tmp_path, every=1e9)
        )
    assert "training starts again" in caplog.text
    assert str(tmp_path) in caplog.text
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found_curve == curve


@pytest.mark.parametrize(
    "start", [{"w": torch.zeros(4)}, {"v": torch.zeros(5), "b": torch.zeros(1)}]
)
def test_the_checkpoint_of_another_model_is_not_taken(start, tmp_path, caplog):
    Regression(8).train(schedule(), 8, 3, checkpoint=Checkpoint(tmp_path, every=0))
    trainable = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    checkpoint = Checkpoint(tmp_path, every=1e9)
    steps = Regression(8).batches(8, schedule())

    def loss(batch: Batch, state) -> torch.Tensor:
        return sum(tensor.sum() for tensor in trainable.values())

    curve = train([Group(trainable)], loss, steps, schedule(), checkpoint=checkpoint)
    assert "training starts again" in caplog.text
    assert [point["step"] for point in curve] == [1, 2, 3, 4]


def test_a_parameter_without_gradient_is_left_alone_and_resumes(tmp_path):
    problem, settings = Regression(4), schedule(weight_decay=0.5)
    problem.start["unused"] = torch.ones(3).double()
    expected, _ = problem.train(settings, 4, 6)
    assert torch.equal(expected["unused"], problem.start["unused"])  # not even weight decay
    partial = Checkpoint(tmp_path, every=0)
    trainable = problem.parameters()
    with pytest.raises(Stop):
        stopping = Stopping(problem.batches(4, settings), at=3)
        problem.run(trainable, stopping, settings, 6, checkpoint=partial)
    resumed, _ = problem.train(settings, 4, 6, checkpoint=Checkpoint(tmp_path, every=0))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_checkpoint_leaves_no_temporary_file(tmp_path):
    Regression(4).train(
        schedule(), 4, 3, checkpoint=Checkpoint(tmp_path / "new" / "folder", every=0)
    )
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [
        "training.safetensors"
    ]


def test_a_checkpoint_keeps_any_nested_state(tmp_path):
    shared = torch.randn(3, 4)
    state = {
        "a/b": {"x": shared.T, "y": shared[1:], "none": None, "big": math.inf, "0": {}},
        "n": 3,
        "list": [1, {"k": [2]}],
        "half": torch.randn(2).bfloat16(),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
    Checkpoint(tmp_path, every=0).save_if_due(lambda: state)
    found = Checkpoint(tmp_path, every=0).restore()

    def same(left, right) -> None:
        assert type(left) is type(right)
        if isinstance(left, dict):
            assert list(left) == list(right)
            for key in left:
                same(left[key], right[key])
        elif isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype and torch.equal(left, right)
        else:
            assert left == right

    same(found, state)
    with pytest.raises(TypeError, match="keys are strings, got 1"):
        Checkpoint(tmp_path, every=0).save_if_due(lambda: {1: 2})
    Checkpoint(tmp_path, every=1e9).save_if_due(
        lambda: pytest.fail("a state was made before it was due")
    )


class Best:
    """Remembers the smallest loss at the end of an epoch with its weights, and the mean of all weights seen."""

    def __init__(self, trainable: dict[str, torch.Tensor], patience: int = 99):
        self.trainable, self.patience = trainable, patience
        self.seen = {"best": math.inf, "count": 0, "weights": {}, "mean": self.copy()}

    def copy(self) -> dict[str, torch.Tensor]:
        return {name: leaf.detach().clone() for name, leaf in self.trainable.items()}

    def __call__(self, moment: loop.Moment) -> bool:
        weights, mean, count = self.copy(), self.seen["mean"], self.seen["count"] + 1
        mean = {name: mean[name] + (weights[name] - mean[name]) / count for name in weights}
        self.seen |= {"mean": mean, "count": count}
        if moment.ends_epoch and moment.loss < self.seen["best"]:
            self.seen |= {"best": moment.loss.item(), "weights": weights}
        return moment.done == self.patience

    def state(self):
        return self.seen

    def load(self, state) -> None:
        self.seen = dict(state)


class Drifting:
    """An objective whose batches and loss depend on a state that is estimated anew with the weights of each epoch."""

    def __init__(
        self, problem: Regression, trainable: dict[str, torch.Tensor], batches: Batches, stop: int
    ):
        self.trainable, self.batches, self.per_epoch, self.stop = (
            trainable,
            batches,
            batches.per_epoch,
            stop,
        )
        self.plain = problem.loss(trainable)

    def epoch(self, epoch: int, epochs: int, state):
        assert not torch.is_grad_enabled()
        assert epochs == math.ceil(TOTAL / self.per_epoch)
        return {"centre": self.trainable["w"].detach().clone(), "shift": epoch}

    def at(self, step: int, state) -> list[Batch]:
        if step == self.stop:
            raise Stop
        return self.batches.at(step + 3 * state["shift"], state)

    def loss(self, batch: Batch, state) -> torch.Tensor:
        return self.plain(batch, state) + (self.trainable["w"] - state["centre"]).square().sum()


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("saved", range(1, TOTAL + 1))
def test_objective_and_callbacks_resume_with_their_state(saved, optimiser, tmp_path):
    problem, settings = (
        Regression(5, examples=18),
        schedule(batch_size=6, optimiser=optimiser, steps=TOTAL),
    )

    def go(stop: int, checkpoint: Checkpoint | None):
        trainable = problem.parameters()
        drifting = Drifting(problem, trainable, problem.batches(5, settings), stop)
        best = Best(trainable, patience=TOTAL - 1)
        more = {"epoch": drifting.epoch, "after": [best], "checkpoint": checkpoint}
        curve = train([Group(trainable)], drifting.loss, drifting, settings, **more)
        return trainable, best.seen, curve

    expected, seen, curve = go(TOTAL, None)
    assert curve[-1]["step"] == TOTAL - 1, "a callback ended the training"
    try:
        go(saved, Checkpoint(tmp_path, every=0))
    except Stop:
        assert saved < TOTAL - 1
    resumed, again, resumed_curve = go(TOTAL, Checkpoint(tmp_path, every=0))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert resumed_curve == curve
    assert (again["best"], again["count"]) == (seen["best"], seen["count"])
    for kept in ("weights", "mean"):
        assert all(torch.equal(again[kept][name], tensor) for name, tensor in seen[kept].items())


# --- fine-tuning through heads --------------------------------------------------------------------------------------


class Tower(Model):
    """Two layers in float64 with a cosine head, as small as a backbone can be."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        layers = [
            torch.nn.Flatten(),
            torch.nn.Linear(12, 6),
            torch.nn.Tanh(),
            torch.nn.Linear(6, 4),
        ]
        super().__init__(torch.nn.Sequential(*layers).double())
        self.layers = []

    def prepare(self, inputs):
        return (inputs.double() / 255,)

    def logits(self, features, head, parameters=None):
        return 5 * F.normalize(features, dim=-1) @ head.to(features).T


def classification(seed: int, **sizes: int) -> dict[str, Memory]:
    """Tasks of random images, labels and heads, with different numbers of classes."""
    generator = torch.Generator().manual_seed(seed)
    views = {}
    for classes, (task, size) in enumerate(sizes.items(), start=3):
        images = torch.randint(0, 256, (size, 3, 2, 2), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, classes, (size,), generator=generator)
        views[task] = Memory(
            images, labels, torch.randn(classes, 4, generator=generator, dtype=torch.float64)
        )
    return views


@SEEDS
def test_the_joint_loss_is_the_mean_over_all_examples(seed):
    model, views = Tower(seed), classification(seed, a=17, b=5, c=2)
    (batch,) = Batches(views, batch_size=24, accumulation=1, seed=seed, crop=None).at(0)
    ask = Evaluator(model, views.get)
    joint = CrossEntropy().loss(
        lambda task, x: ask.scores(x, views[task].head, model.parameters), batch, {}
    )
    total = 0.0
    for view in views.values():
        for image, label in zip(view.inputs, view.targets, strict=True):
            logits = model.logits(model.features(model.parameters, image[None]), view.head)[0]
            total += math.log(sum(math.exp(s) for s in logits.tolist())) - logits[label].item()
    assert joint.item() == pytest.approx(total / 24, rel=1e-12)


@SEEDS
def test_joint_training_is_training_on_the_union(seed):
    """With one class list the joint run and the run on the concatenated data see the same batches."""
    model, views = Tower(seed), classification(seed, a=14, b=9)
    head = views["a"].head
    views = {
        task: Memory(view.inputs, view.targets.clamp(max=2), head) for task, view in views.items()
    }
    union = {
        "u": Memory(
            *(torch.cat([getattr(v, f) for v in views.values()]) for f in ("inputs", "targets")),
            head,
        )
    }
    settings = recipe(steps=7, batch_size=8)
    joint = settings.learn(Given(model, views, seed=seed))
    # Joint: the steps of both tasks
    single = recipe(steps=14, batch_size=8).learn(Given(model, union, seed=seed))
    for name in joint.vector:
        torch.testing.assert_close(joint.vector[name], single.vector[name], rtol=1e-4, atol=1e-7)
    assert [p["loss"] for p in joint.curve] == pytest.approx(
        [p["loss"] for p in single.curve], rel=1e-5
    )


@SEEDS
def test_ascent_turns_the_gradient(seed):
    model, views = Tower(seed), classification(seed, a=16)
    settings = recipe(steps=1, warmup=0, batch_size=16, weight_decay=0.0)
    down, up = (
        settings.learn(Given(model, views, seed=seed, ascend=ascend)) for ascend in (False, True)
    )
    for name in down.vector:
        torch.testing.assert_close(up.vector[name], -down.vector[name], rtol=1e-9, atol=1e-12)
    assert up.curve[0]["loss"] == -down.curve[0]["loss"]
    assert up.curve[0]["grad_norm"] == pytest.approx(down.curve[0]["grad_norm"])


@SEEDS
def test_descent_lowers_the_loss_and_ascent_raises_it(seed):
    model, views = Tower(seed), classification(seed, a=32)

    def loss(vector) -> float:
        view = views["a"]
        features = model.features(vector.apply_to(model.parameters), view.inputs)
        return F.cross_entropy(model.logits(features, view.head), view.targets).item()

    settings = recipe(steps=30, batch_size=32)
    down, up = (
        settings.learn(Given(model, views, seed=seed, ascend=ascend)).vector
        for ascend in (False, True)
    )
    assert loss(down) < loss(0 * down) < loss(up)


@SEEDS
def test_only_selected_parameters_move_and_are_stored(seed):
    model, views = Tower(seed), classification(seed, a=16)
    before = {name: tensor.clone() for name, tensor in model.parameters.items()}
    settings = recipe(select=r"^3\.weight$", steps=3, warmup=0, batch_size=8)
    vector = settings.learn(Given(model, views, seed=seed)).vector
    assert list(vector) == ["3.weight"]
    assert vector["3.weight"].abs().min() > 0
    assert all(torch.equal(model.parameters[name], before[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters())


@SEEDS
def test_fit_is_a_function_of_its_seed(seed):
    model, views = Tower(seed), classification(seed, a=20)
    settings = recipe(steps=5, augment="random_resized_crop", crop_scale=0.5)
    first, again, other = (
        settings.learn(Given(model, views, seed=s)).vector for s in (seed, seed, seed + 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@SEEDS
@pytest.mark.parametrize("decay", ["zero", "base"])
def test_a_warm_start_begins_at_the_vector_and_keeps_what_is_not_trained(seed, decay):
    model, views = Tower(seed), classification(seed, a=16)
    start = recipe(steps=5, batch_size=8, warmup=0).learn(Given(model, views, seed=seed)).vector
    settings = recipe(select=r"^3\.weight$", steps=4, warmup=0, batch_size=8, decay_towards=decay)
    found = settings.learn(Given(model, views, seed=seed, start=start)).vector
    assert found.keys() == start.keys()
    for name in start:
        assert torch.equal(found[name], start[name]) == (name != "3.weight")
    if decay == "zero":
        moved = Tower(seed)  # a model that starts there by itself
        moved.module.load_state_dict(start.apply_to(model.parameters))
        again = settings.learn(Given(moved, views, seed=seed)).vector
        torch.testing.assert_close(
            start["3.weight"] + again["3.weight"], found["3.weight"], rtol=1e-9, atol=1e-12
        )


@SEEDS
def test_low_rank_training_gives_factors_and_on_a_start_their_sum(seed):
    model, views = Tower(seed), classification(seed, a=16)
    model.layers = [LinearLayer("1", "mlp.fc"), LinearLayer("3", "mlp.proj")]
    settings = recipe(select="lora", rank=2, lora_alpha=4.0, steps=4, warmup=0, batch_size=8)
    first = settings.learn(Given(model, views, seed=seed)).vector
    assert first.factors.keys() == first.keys() == {"1.weight", "3.weight"}
    assert isinstance(first.factors["1.weight"], LowRank) and first.factors["1.weight"].scale == 2.0
    assert not any(f.up.requires_grad or f.down.requires_grad for f in first.factors.values())
    bias = TaskVector({"1.bias": torch.ones(6).double()})
    second = settings.learn(Given(model, views, seed=seed + 1, start=first + bias)).vector
    assert not second.factors and torch.equal(second["1.bias"], bias["1.bias"])
    assert torch.linalg.matrix_rank(second["1.weight"] - first["1.weight"], rtol=1e-9) == 2


@SEEDS
def test_heads_are_learned_with_the_vector_where_the_backbone_learns_them(seed):
    model, views = Tower(seed), classification(seed, a=16, b=9)
    before = {task: view.head.clone() for task, view in views.items()}
    found = recipe(steps=3, batch_size=8).learn(Given(model, views, seed=seed, learned_heads=True))
    assert found.heads.keys() == views.keys()
    for task, view in views.items():
        assert torch.equal(view.head, before[task]), "the initial head is nobody's to change"
        assert found.heads[task].shape == view.head.shape and not torch.equal(
            found.heads[task], view.head
        )
    assert not recipe(steps=3, batch_size=8).learn(Given(model, views, seed=seed)).heads


def test_what_breaks_in_fine_tuning_names_the_tasks():
    model, views = Tower(1), classification(1, a=16, b=9)
    views["b"].head.fill_(math.inf)
    with pytest.raises(
        NotFinite, match="fine-tuning on a, b: the training loss is not finite at step 1"
    ):
        recipe(steps=3, batch_size=8).learn(Given(model, views))


# --- objectives -----------------------------------------------------------------------------------------------------


@SEEDS
def test_entropy_is_that_of_the_predictions_and_asks_for_no_labels(seed):
    model, views = Tower(seed), classification(seed, a=17, b=5)
    views = {task: Memory(view.inputs, None, view.head) for task, view in views.items()}
    (batch,) = Entropy().steps(views, schedule(batch_size=22), seed).at(0, {})
    assert not batch.labels
    ask = Evaluator(model, views.get)
    found = Entropy().loss(
        lambda task, x: ask.scores(x, views[task].head, model.parameters), batch, {}
    )
    total = 0.0
    for view in views.values():
        for p in ask.scores(view.inputs, view.head, model.parameters).softmax(1).tolist():
            total -= sum(q * math.log(q) for q in p)
    assert found.item() == pytest.approx(total / 22, rel=1e-12)
    with pytest.raises(UserError, match="task a has one output and no classes"):
        Entropy().loss(lambda task, x: torch.zeros(len(x), 1), batch, {})
    vector = (
        recipe(objective="entropy", steps=20, batch_size=22)
        .learn(Given(model, views, seed=seed))
        .vector
    )
    moved = vector.apply_to(model.parameters)
    assert Entropy().loss(lambda task, x: ask.scores(x, views[task].head, moved), batch, {}) < found


def test_a_users_objective_is_one_class(monkeypatch):
    # What a user registers here stays here
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @registry.register("objective", "mine")
    class Mine(Objective):
        kind: str = "mine"
        power: float = 2.0

        labels = False

        def loss(self, logits_of, batch, state):
            (rows,) = batch.rows.values()
            return (
                state["scale"]
                * logits_of("a", batch.inputs[rows]).abs().pow(self.power).sum()
                / batch.size
            )

        def epoch(self, logits_of, views, epoch, epochs, state):
            return {"scale": float(logits_of("a", views["a"].take(slice(0, 4))).norm() > 0)}

    model, views = Tower(1), classification(1, a=16)
    settings = recipe(objective={"kind": "mine", "power": 3.0}, steps=8, batch_size=8)
    assert settings.objective == Mine(power=3.0)
    assert settings.identity()["objective"]["power"] == 3.0
    curve = settings.learn(Given(model, views)).curve
    assert curve[-1]["loss"] < curve[0]["loss"]


# --- crops ----------------------------------------------------------------------------------------------------------

SIDE = 32


def ramps(count: int) -> torch.Tensor:
    """Images whose first channel is 4 x and whose second is 4 y, from which the crop can be read."""
    x = (4 * torch.arange(SIDE, dtype=torch.uint8)).expand(SIDE, SIDE)
    return torch.stack([x, x.T, torch.zeros_like(x)]).expand(count, -1, -1, -1)


def boxes(crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sizes and centres (x, y) [N, 2] of crops of ramps, in fractions of the image."""
    # These pixels are off the border, where a ramp is clamped
    low, high = SIDE // 4, 3 * SIDE // 4 - 1
    rows = torch.stack([crops[:, 0, low], crops[:, 1, :, low]], 1).double()
    size = (rows[:, :, high] - rows[:, :, low]) / 4 / (high - low)
    centre = ((rows[:, :, high] + rows[:, :, low]) / 2 / 4 + 0.5) / SIDE
    return size, centre


def draws(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, CROP_DRAWS, generator=torch.Generator().manual_seed(seed))


@SEEDS
def test_a_crop_at_full_scale_is_the_image(seed):
    images = random_views(seed, 50)["task0"].inputs
    torch.testing.assert_close(
        random_resized_crop(images, 1.0, draws(50, seed)), images.float(), rtol=0, atol=1e-3
    )


@SEEDS
@pytest.mark.parametrize("scale", [0.9, 0.5, 0.08])
def test_crops_lie_inside_the_image_with_area_and_aspect_in_range(seed, scale):
    size, centre = boxes(random_resized_crop(ramps(4000), scale, draws(4000, seed)))
    area, aspect = size.prod(1), size[:, 0] / size[:, 1]
    tolerance = 1e-4
    assert area.min() >= scale - tolerance and area.max() <= 1 + tolerance
    assert aspect.min() >= 3 / 4 - tolerance and aspect.max() <= 4 / 3 + tolerance
    assert (centre - size / 2).min() >= -tolerance and (centre + size / 2).max() <= 1 + tolerance
    room = 1 - size
    moved = room.min(1).values > 0.01
    place = (centre[moved] - size[moved] / 2) / room[moved]
    for axis in range(2):  # uniform over the room there is, independently in x and y
        quantiles = np.quantile(place[:, axis], [0.1, 0.25, 0.5, 0.75, 0.9])
        np.testing.assert_allclose(quantiles, [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.05)
    assert abs(np.corrcoef(place.T)[0, 1]) < 0.06


@SEEDS
@pytest.mark.parametrize("scale", [0.9, 0.5])
def test_area_and_aspect_are_distributed_as_in_torchvision(seed, scale):
    count = 2000
    size, _ = boxes(random_resized_crop(ramps(count), scale, draws(count, seed)))
    torch.manual_seed(seed)
    huge = torch.empty(1, 100_000, 100_000, device="meta")
    theirs = [
        RandomResizedCrop.get_params(huge, [scale, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(count)
    ]
    height, width = np.array(theirs, dtype=float).T / 1e5
    for ours, reference in (
        (size.prod(1), width * height),
        (size[:, 0] / size[:, 1], width / height),
    ):
        ours, reference = np.round(ours.numpy(), 3), np.round(reference, 3)
        points = np.union1d(ours, reference)
        distance = np.abs(
            np.searchsorted(np.sort(ours), points, "right")
            - np.searchsorted(np.sort(reference), points, "right")
        ).max()
        assert distance / count < 1.95 * math.sqrt(2 / count)  # Kolmogorov-Smirnov at 0.1 %


@SEEDS
def test_each_crop_depends_on_its_own_draws_alone(seed):
    images, drawn = random_views(seed, 9)["task0"].inputs, draws(9, seed)
    together = random_resized_crop(images, 0.3, drawn)
    alone = torch.cat(
        [random_resized_crop(images[i : i + 1], 0.3, drawn[i : i + 1]) for i in range(9)]
    )
    assert torch.equal(together, alone)
    size, _ = boxes(random_resized_crop(ramps(9), 0.3, drawn))
    assert len({tuple(box) for box in size.tolist()}) == 9
