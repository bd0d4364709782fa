"""Training batches that depend on (seed, step) alone, so that a resumed run sees what an undisturbed one sees."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.data.views import TaskView


class Batch(NamedTuple):
    """Examples of one or several tasks: ``inputs`` stacked, and per task the rows it owns with their labels."""

    inputs: Tensor
    rows: dict[str, slice]
    labels: dict[str, Tensor]


class Batches:
    """Epochs of shuffled examples over the union of some tasks, cut into micro-batches.

    The permutation of epoch e and the augmentation of step s are drawn from generators seeded with (seed, e) and
    (seed, s); the last batch of an epoch is the shorter one.
    """

    def __init__(
        self, views: Mapping[str, TaskView], *, batch_size: int, accumulation: int, seed: int, crop: float | None
    ):
        self.views, self.batch_size, self.accumulation, self.seed, self.crop = (
            views,
            batch_size,
            accumulation,
            seed,
            crop,
        )
        self.owner = torch.cat([torch.full((len(v.labels),), i) for i, v in enumerate(views.values())])
        self.local = torch.cat([torch.arange(len(v.labels)) for v in views.values()])
        self.per_epoch = math.ceil(len(self.owner) / batch_size)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.owner)

    def at(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = torch.randperm(len(self), generator=self._generator(2 * epoch))
            self._epoch = epoch
        chosen = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        generator = self._generator(2 * step + 1)
        return [self._batch(part, generator) for part in chosen.tensor_split(self.accumulation) if len(part)]

    def _batch(self, chosen: Tensor, generator: torch.Generator) -> Batch:
        inputs, rows, labels, start = [], {}, {}, 0
        for index, (task, view) in enumerate(self.views.items()):
            local = self.local[chosen[self.owner[chosen] == index]]
            if len(local):
                inputs.append(view.inputs[local])
                labels[task] = view.labels[local]
                rows[task] = slice(start, start := start + len(local))
        stacked = torch.cat(inputs)
        return Batch(random_resized_crop(stacked, self.crop, generator) if self.crop else stacked, rows, labels)

    def _generator(self, stream: int) -> torch.Generator:
        # torch's CPU generator uses 32 bits of its seed, so seed and stream are mixed instead of put side by side
        digest = hashlib.blake2b(f"{self.seed}/{stream}".encode(), digest_size=4).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def random_resized_crop(images: Tensor, min_scale: float, generator: torch.Generator) -> Tensor:
    """Return crops of uint8 ``images`` [N, 3, H, W], each of its own area, aspect and place, resized back (bilinear).

    Area fraction uniform in [min_scale, 1], log aspect uniform in [log 3/4, log 4/3], clipped to the image: the
    distribution of torchvision's RandomResizedCrop, whose crop the papers' recipe uses with scale 0.9 to 1.
    """
    draw = torch.rand(4, len(images), generator=generator)
    area = min_scale + (1 - min_scale) * draw[0]
    ratio = torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = (2 * draw[2] - 1) * (1 - width), (2 * draw[3] - 1) * (1 - height)
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
