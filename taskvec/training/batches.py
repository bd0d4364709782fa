"""Training batches that depend on (seed, step) alone, so that a resumed run sees what an undisturbed one sees."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.needs import View
from taskvec.training.schedule import Schedule

TRIES = 10
CROP_DRAWS = 2 * TRIES + 2  # area and aspect of each try, and the place


class Batch(NamedTuple):
    """Examples of one or several tasks: ``inputs`` stacked, and per task the rows it owns, with labels if granted."""

    inputs: Tensor
    rows: dict[str, slice]
    labels: dict[str, Tensor]

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.inputs)


class Batches:
    """Epochs of shuffled examples over the union of some tasks, cut into micro-batches.

    The permutation of epoch e and the augmentation of step s are drawn from generators seeded with (seed, e) and
    (seed, s); the last batch of an epoch is the shorter one. ``crop`` is the smallest area of a random crop, None takes
    images as they are. Labels are asked for only with ``labels``.
    """

    def __init__(
        self,
        views: Mapping[str, View],
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        crop: float | None,
        labels: bool = True,
    ):
        self.views, self.labels = views, labels
        self.batch_size, self.accumulation = batch_size, accumulation
        self.seed, self.crop = seed, crop
        sizes = [len(view) for view in views.values()]
        # Of each example of the union
        self.owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.local = torch.cat([torch.arange(size) for size in sizes])
        self.per_epoch = math.ceil(len(self) / batch_size)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.owner)

    def at(self, step: int, state: Mapping[str, Any] | None = None) -> list[Batch]:
        """Return the micro-batches of a step; the state of the objective makes no difference."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = torch.randperm(len(self), generator=generator(self.seed, 2 * epoch))
            self._epoch = epoch
        start = position * self.batch_size
        chosen = self._order[start : start + self.batch_size]
        draws = torch.rand(len(chosen), CROP_DRAWS, generator=generator(self.seed, 2 * step + 1))
        parts = zip(
            chosen.tensor_split(self.accumulation),
            draws.tensor_split(self.accumulation),
            strict=True,
        )
        return [self._batch(part, drawn) for part, drawn in parts if len(part)]

    def _batch(self, chosen: Tensor, draws: Tensor) -> Batch:
        inputs, rows, labels, drawn = [], {}, {}, []
        start = 0
        for index, (task, view) in enumerate(self.views.items()):
            own = self.owner[chosen] == index
            mine = chosen[own]
            local = self.local[mine]
            if not len(local):
                continue
            inputs.append(view.take(local))
            if self.labels:
                labels[task] = view.labels(local)
            drawn.append(draws[own])
            rows[task] = slice(start, start + len(local))
            start += len(local)
        stacked = torch.cat(_same_length(inputs))
        if self.crop and stacked.ndim == 4:  # texts are not augmented
            stacked = random_resized_crop(stacked, self.crop, torch.cat(drawn))
        return Batch(stacked, rows, labels)


def augment(inputs: Tensor, schedule: Schedule, seed: int, stream: str) -> Tensor:
    """Return images [n, 3, H, W] cropped as the schedule says by the draws of a stream; texts as they are."""
    if schedule.crop is None or inputs.ndim != 4:
        return inputs
    draws = torch.rand(len(inputs), CROP_DRAWS, generator=generator(seed, stream))
    return random_resized_crop(inputs, schedule.crop, draws)


def generator(seed: int, stream: int | str) -> torch.Generator:
    """Return the generator of one stream of random numbers: an epoch's, a step's, or one by name."""
    # torch's CPU generator uses 32 bits of its seed, so seed and stream are mixed instead of put side by side
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def _same_length(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return token ids [N, L] padded with -1 to the longest L; images are returned as they are."""
    if inputs[0].ndim != 2:
        return list(inputs)
    longest = max(part.shape[1] for part in inputs)
    return [F.pad(part, (0, longest - part.shape[1]), value=-1) for part in inputs]


def random_resized_crop(images: Tensor, min_scale: float, draws: Tensor) -> Tensor:
    """Return crops of uint8 ``images`` [N, 3, H, W], each of its own area, aspect and place, resized back (bilinear).

    The distribution of torchvision's RandomResizedCrop on a square image, without its rounding to whole pixels (the
    papers' recipe uses scale 0.9 to 1): area fraction uniform in [min_scale, 1], log aspect uniform in
    [log 3/4, log 4/3], the first of ten tries that fits, else the whole image. ``draws`` [N, CROP_DRAWS] are uniform in
    [0, 1); each image depends on its own row alone.
    """
    draws = draws.to(images.device)
    of_area, of_aspect, of_place = draws.tensor_split([TRIES, 2 * TRIES], dim=1)
    area = min_scale + (1 - min_scale) * of_area
    ratio = torch.exp((2 * of_aspect - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    sides = torch.stack([width, height], 2)
    fits = (sides <= 1).all(2)
    first = fits.int().argmax(1)
    chosen = sides[torch.arange(len(images)), first]
    size = torch.where(fits.any(1, keepdim=True), chosen, 1.0)
    place = (2 * of_place - 1) * (1 - size)
    theta = torch.cat([torch.diag_embed(size), place.unsqueeze(2)], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
