"""The training loop against hand-written references: schedule, batches, AdamW, resumption, joint training, crops."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import world
from safetensors.torch import load_file, save_file
from torchvision.transforms import RandomResizedCrop

from taskvec.data.views import View
from taskvec.models.base import Model
from taskvec.training.batches import CROP_DRAWS, Batch, Batches, random_resized_crop
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.fit import cross_entropy, fit, scores
from taskvec.training.loop import train
from taskvec.training.recipe import Recipe, learning_rate

SEEDS = pytest.mark.parametrize("seed", [3, 1234])


def recipe(**settings) -> Recipe:
    """A recipe without augmentation."""
    return Recipe(**{"kind": "full", "augment": "none", "warmup": 2, "batch_size": 4, "lr": 1e-2} | settings)


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
    assert learning_rate(step, peak=2.0, warmup=warmup, total=total) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("epochs", "steps"), [(None, 77), (1, 3), (4, 12)])
def test_epochs_replace_steps(epochs, steps):
    assert recipe(steps=77, epochs=epochs, batch_size=4).total_steps(10) == steps


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch_size 10 does not divide into 4"):
        recipe(batch_size=10, accumulation=4)


# --- batches --------------------------------------------------------------------------------------------------------


def numbered(*sizes: int) -> dict[str, View]:
    """Tasks whose images are constant and say which example of which task they are, whatever the crop."""
    views = {}
    for index, size in enumerate(sizes):
        images = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
        images[:, 1] = index
        views[f"task{index}"] = world.view(images, torch.arange(size), torch.empty(0))
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
    batches = Batches(numbered(*sizes), batch_size=6, accumulation=accumulation, seed=seed, crop=crop)
    everything = [(f"task{i}", n) for i, size in enumerate(sizes) for n in range(size)]
    assert len(batches) == len(everything)
    per_epoch = math.ceil(len(everything) / 6)
    orders = []
    for epoch in range(3):
        steps = [examples(batches.at(epoch * per_epoch + step)) for step in range(per_epoch)]
        assert [len(step) for step in steps] == [6] * (len(everything) // 6) + [len(everything) % 6] * (
            len(everything) % 6 > 0
        )
        orders.append(sum(steps, []))
        assert sorted(orders[-1]) == sorted(everything)
    assert orders[0] != orders[1] != orders[2]


def random_views(seed: int, *sizes: int) -> dict[str, View]:
    """Tasks of random images."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"task{i}": world.view(
            torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(n), torch.empty(0)
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
    assert all(not torch.equal(other.at(step)[0].inputs, batch.inputs) for step, batch in enumerate(expected))


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
        self.start = {"w": torch.randn(width, generator=generator, dtype=torch.float64), "b": torch.zeros(1).double()}
        self.views = {"t": world.view(self.x, torch.arange(examples), torch.empty(0))}

    def parameters(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone().requires_grad_() for name, tensor in self.start.items()}

    def batches(self, seed: int, settings: Recipe) -> Batches:
        return Batches(
            self.views, batch_size=settings.batch_size, accumulation=settings.accumulation, seed=seed, crop=None
        )

    def loss(self, trainable: dict[str, torch.Tensor]):
        return lambda batch: (
            (batch.inputs @ trainable["w"] + trainable["b"] - self.y[batch.labels["t"]]).square().mean() / 2
        )

    def train(self, settings: Recipe, seed: int, total: int, **more) -> tuple[dict[str, torch.Tensor], list]:
        trainable = self.parameters()
        return trainable, train(trainable, self.loss(trainable), self.batches(seed, settings), settings, total, **more)


def adamw(problem: Regression, settings: Recipe, seed: int, total: int) -> tuple[np.ndarray, list[float]]:
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
        rate = learning_rate(step, peak=settings.lr, warmup=min(settings.warmup, total), total=total)
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
    settings = recipe(lr=0.05, weight_decay=decay, clip_norm=clip, batch_size=8, warmup=3)
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
    whole, curve = problem.train(recipe(batch_size=12), seed, total=6)
    cut, cut_curve = problem.train(recipe(batch_size=12, accumulation=accumulation), seed, total=6)
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-11, atol=1e-12)
    for key in ("loss", "grad_norm", "lr"):
        assert [p[key] for p in cut_curve] == pytest.approx([p[key] for p in curve], rel=1e-6)


@SEEDS
def test_a_regulariser_adds_its_gradient_once_whatever_the_accumulation(seed):
    problem = Regression(seed)
    ends = []
    for accumulation in (1, 4):
        trainable, settings = problem.parameters(), recipe(batch_size=8, accumulation=accumulation)

        def ridge(step: int, w=trainable["w"]) -> torch.Tensor:
            return (step + 1) * w.square().sum()

        train(trainable, problem.loss(trainable), problem.batches(seed, settings), settings, 3, regularisers=[ridge])
        ends.append(trainable["w"].detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-11, atol=1e-12)
    assert not torch.allclose(ends[0], problem.train(recipe(batch_size=8), seed, 3)[0]["w"].detach())


@pytest.mark.parametrize(("total", "interval"), [(7, 1), (120, 2)])
def test_the_curve_has_about_fifty_points_and_the_last_step(total, interval):
    seen = []
    _, curve = Regression(5).train(recipe(), 5, total, observe=lambda step, of, point: seen.append((step, of, point)))
    assert [point["step"] for point in curve] == list(range(interval, total + 1, interval))
    assert seen == [(point["step"], total, point) for point in curve]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(value):
    problem = Regression(1)
    trainable = problem.parameters()

    def loss(batch: Batch) -> torch.Tensor:
        return trainable["w"].sum() * value

    with pytest.raises(FloatingPointError, match=r"at step 1; lower finetune\.lr"):
        train(trainable, loss, problem.batches(0, recipe()), recipe(), 5)


# --- resumption -----------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


class Stopping:
    """Batches of an interrupted process."""

    def __init__(self, batches: Batches, at: int):
        self.batches, self.stop = batches, at

    def at(self, step: int) -> list[Batch]:
        if step == self.stop:
            raise Stop
        return self.batches.at(step)


TOTAL = 7


@SEEDS
@pytest.mark.parametrize("saved", range(TOTAL + 1))
@pytest.mark.parametrize("lost", [0, 2])
def test_a_resumed_training_is_bit_identical_at_every_step(seed, saved, lost, tmp_path):
    problem, settings = Regression(seed), recipe(batch_size=6, accumulation=2)
    expected, curve = problem.train(settings, seed, TOTAL)
    checkpoint = Checkpoint(tmp_path / "partial", every=0 if saved else 1e9)

    def observe(step: int, *_) -> None:
        if step > saved:  # the last state on disk is that after step ``saved``
            checkpoint.every = 1e9

    trainable = problem.parameters()
    stopping = Stopping(problem.batches(seed, settings), at=saved + lost)
    try:
        train(trainable, problem.loss(trainable), stopping, settings, TOTAL, checkpoint=checkpoint, observe=observe)
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


def test_only_work_after_the_checkpoint_is_done_again(tmp_path):
    problem, steps = Regression(2), []
    problem.train(recipe(), 2, 4, checkpoint=Checkpoint(tmp_path, every=0))

    class Spy(Stopping):
        def at(self, step: int) -> list[Batch]:
            steps.append(step)
            return super().at(step)

    trainable = problem.parameters()
    spy = Spy(problem.batches(2, recipe()), at=-1)
    train(trainable, problem.loss(trainable), spy, recipe(), 6, checkpoint=Checkpoint(tmp_path, every=1e9))
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


@pytest.mark.parametrize("damage", [truncate, garble, empty, flip, drop_header], ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_means_a_fresh_start_with_a_warning(damage, tmp_path, caplog):
    problem = Regression(8)
    expected, curve = problem.train(recipe(), 8, 5)
    problem.train(recipe(), 8, 3, checkpoint=Checkpoint(tmp_path, every=0))
    damage(tmp_path / "training.safetensors")
    with caplog.at_level(logging.WARNING, logger="taskvec"):
        found, found_curve = problem.train(recipe(), 8, 5, checkpoint=Checkpoint(tmp_path, every=1e9))
    assert "training starts again" in caplog.text
    assert str(tmp_path) in caplog.text
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found_curve == curve


@pytest.mark.parametrize("start", [{"w": torch.zeros(4)}, {"v": torch.zeros(5), "b": torch.zeros(1)}])
def test_the_checkpoint_of_another_model_is_not_taken(start, tmp_path, caplog):
    Regression(8).train(recipe(), 8, 3, checkpoint=Checkpoint(tmp_path, every=0))
    trainable = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimiser = torch.optim.AdamW(trainable.values())
    assert Checkpoint(tmp_path, every=0).restore(trainable, optimiser) == (0, [])
    assert "training starts again" in caplog.text
    assert not any(tensor.any() for tensor in trainable.values()) and not optimiser.state


def test_a_parameter_without_gradient_is_left_alone_and_resumes(tmp_path):
    problem, settings = Regression(4), recipe(weight_decay=0.5)
    problem.start["unused"] = torch.ones(3).double()
    expected, _ = problem.train(settings, 4, 6)
    assert torch.equal(expected["unused"], problem.start["unused"])  # not even weight decay
    partial = Checkpoint(tmp_path, every=0)
    trainable = problem.parameters()
    with pytest.raises(Stop):
        stopping = Stopping(problem.batches(4, settings), at=3)
        train(trainable, problem.loss(trainable), stopping, settings, 6, checkpoint=partial)
    resumed, _ = problem.train(settings, 4, 6, checkpoint=Checkpoint(tmp_path, every=0))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_checkpoint_leaves_no_temporary_file(tmp_path):
    Regression(4).train(recipe(), 4, 3, checkpoint=Checkpoint(tmp_path / "new" / "folder", every=0))
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["training.safetensors"]


# --- fine-tuning through heads --------------------------------------------------------------------------------------


class Tower(Model):
    """Two layers in float64 with a cosine head, as small as a backbone can be."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        layers = [torch.nn.Flatten(), torch.nn.Linear(12, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4)]
        super().__init__(torch.nn.Sequential(*layers).double())

    def prepare(self, inputs):
        return (inputs.double() / 255,)

    def logits(self, features, head, parameters=None):
        return 5 * F.normalize(features, dim=-1) @ head.to(features).T


def classification(seed: int, **sizes: int) -> dict[str, View]:
    """Tasks of random images, labels and heads, with different numbers of classes."""
    generator = torch.Generator().manual_seed(seed)
    views = {}
    for classes, (task, size) in enumerate(sizes.items(), start=3):
        images = torch.randint(0, 256, (size, 3, 2, 2), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, classes, (size,), generator=generator)
        views[task] = world.view(images, labels, torch.randn(classes, 4, generator=generator, dtype=torch.float64))
    return views


@SEEDS
def test_the_joint_loss_is_the_mean_over_all_examples(seed):
    model, views = Tower(seed), classification(seed, a=17, b=5, c=2)
    (batch,) = Batches(views, batch_size=24, accumulation=1, seed=seed, crop=None).at(0)
    joint = cross_entropy(lambda task, x: scores(model, model.parameters, None, x, views[task].head), batch)
    total = 0.0
    for view in views.values():
        for image, label in zip(view.take(slice(None)), view.labels(), strict=True):
            logits = model.logits(model.features(model.parameters, image[None]), view.head)[0]
            total += math.log(sum(math.exp(s) for s in logits.tolist())) - logits[label].item()
    assert joint.item() == pytest.approx(total / 24, rel=1e-12)


@SEEDS
def test_joint_training_is_training_on_the_union(seed):
    """With one class list the joint run and the run on the concatenated data see the same batches."""
    model, views = Tower(seed), classification(seed, a=14, b=9)
    head = views["a"].head
    views = {task: world.view(view.take(slice(None)), view.labels().clamp(max=2), head) for task, view in views.items()}
    inputs = torch.cat([view.take(slice(None)) for view in views.values()])
    labels = torch.cat([view.labels() for view in views.values()])
    union = {"u": world.view(inputs, labels, head)}
    settings = recipe(steps=7, batch_size=8)
    joint, _, curve = fit(model, [], views, settings, seed=seed)
    single, _, single_curve = fit(model, [], union, settings, seed=seed)
    for name in joint:
        torch.testing.assert_close(joint[name], single[name], rtol=1e-4, atol=1e-7)
    assert [p["loss"] for p in curve] == pytest.approx([p["loss"] for p in single_curve], rel=1e-5)


@SEEDS
def test_ascent_turns_the_gradient(seed):
    model, views = Tower(seed), classification(seed, a=16)
    settings = recipe(steps=1, warmup=0, batch_size=16, weight_decay=0.0)
    down, _, down_curve = fit(model, [], views, settings, seed=seed)
    up, _, up_curve = fit(model, [], views, settings, seed=seed, ascend=True)
    for name in down:
        torch.testing.assert_close(up[name], -down[name], rtol=1e-9, atol=1e-12)
    assert up_curve[0]["loss"] == -down_curve[0]["loss"]
    assert up_curve[0]["grad_norm"] == pytest.approx(down_curve[0]["grad_norm"])


@SEEDS
def test_descent_lowers_the_loss_and_ascent_raises_it(seed):
    model, views = Tower(seed), classification(seed, a=32)

    def loss(vector) -> float:
        view = views["a"]
        features = model.features(vector.apply_to(model.parameters), view.take(slice(None)))
        return F.cross_entropy(model.logits(features, view.head), view.labels()).item()

    settings = recipe(steps=30, batch_size=32)
    down, up = (fit(model, [], views, settings, seed=seed, ascend=ascend).vector for ascend in (False, True))
    assert loss(down) < loss(0 * down) < loss(up)


@SEEDS
def test_only_selected_parameters_move_and_are_stored(seed):
    model, views = Tower(seed), classification(seed, a=16)
    before = {name: tensor.clone() for name, tensor in model.parameters.items()}
    vector = fit(model, [], views, recipe(select=r"^3\.weight$", steps=3, warmup=0, batch_size=8), seed=seed).vector
    assert list(vector) == ["3.weight"]
    assert vector["3.weight"].abs().min() > 0
    assert all(torch.equal(model.parameters[name], before[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters())


@SEEDS
def test_fit_is_a_function_of_its_seed(seed):
    model, views = Tower(seed), classification(seed, a=20)
    settings = recipe(steps=5, augment="random_resized_crop", crop_scale=0.5)
    first, again, other = (fit(model, [], views, settings, seed=s).vector for s in (seed, seed, seed + 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


# --- crops ----------------------------------------------------------------------------------------------------------

SIDE = 32


def ramps(count: int) -> torch.Tensor:
    """Images whose first channel is 4 x and whose second is 4 y, from which the crop can be read."""
    x = (4 * torch.arange(SIDE, dtype=torch.uint8)).expand(SIDE, SIDE)
    return torch.stack([x, x.T, torch.zeros_like(x)]).expand(count, -1, -1, -1)


def boxes(crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sizes and centres (x, y) [N, 2] of crops of ramps, in fractions of the image."""
    low, high = SIDE // 4, 3 * SIDE // 4 - 1  # these pixels are off the border, where a ramp is clamped
    rows = torch.stack([crops[:, 0, low], crops[:, 1, :, low]], 1).double()
    size = (rows[:, :, high] - rows[:, :, low]) / 4 / (high - low)
    centre = ((rows[:, :, high] + rows[:, :, low]) / 2 / 4 + 0.5) / SIDE
    return size, centre


def draws(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, CROP_DRAWS, generator=torch.Generator().manual_seed(seed))


@SEEDS
def test_a_crop_at_full_scale_is_the_image(seed):
    images = random_views(seed, 50)["task0"].take(slice(None))
    torch.testing.assert_close(random_resized_crop(images, 1.0, draws(50, seed)), images.float(), rtol=0, atol=1e-3)


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
    theirs = [RandomResizedCrop.get_params(huge, [scale, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(count)]
    height, width = np.array(theirs, dtype=float).T / 1e5
    for ours, reference in ((size.prod(1), width * height), (size[:, 0] / size[:, 1], width / height)):
        ours, reference = np.round(ours.numpy(), 3), np.round(reference, 3)
        points = np.union1d(ours, reference)
        distance = np.abs(
            np.searchsorted(np.sort(ours), points, "right") - np.searchsorted(np.sort(reference), points, "right")
        ).max()
        assert distance / count < 1.95 * math.sqrt(2 / count)  # Kolmogorov-Smirnov at 0.1 %


@SEEDS
def test_each_crop_depends_on_its_own_draws_alone(seed):
    images, drawn = random_views(seed, 9)["task0"].take(slice(None)), draws(9, seed)
    together = random_resized_crop(images, 0.3, drawn)
    alone = torch.cat([random_resized_crop(images[i : i + 1], 0.3, drawn[i : i + 1]) for i in range(9)])
    assert torch.equal(together, alone)
    size, _ = boxes(random_resized_crop(ramps(9), 0.3, drawn))
    assert len({tuple(box) for box in size.tolist()}) == 9
