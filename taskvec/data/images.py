"""Decoding a split's images once, into one uint8 tensor at the resolution the backbone sees."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from taskvec.data.rows import read_rows
from taskvec.data.tasks import Task
from taskvec.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def decode_split(name: str, task: Task, split: str, preprocessing: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return ``inputs`` [N, 3, H, W] uint8 (resized, cropped, not yet normalised) and ``labels`` [N] int64.

    Raises:
        UserError: if a split is empty or an image cannot be decoded; the message names the row.
    """
    import numpy as np
    import torch

    (encoded,), labels, rows = read_rows(name, task, split)
    if task.folder is not None:  # a path in place of bytes would escape the fingerprint
        encoded = [cell["bytes"] if isinstance(cell, Mapping) else cell for cell in encoded]

    def decode(position: int) -> np.ndarray:
        try:
            return np.asarray(resize_and_crop(_open(encoded[position]), preprocessing))
        except Exception as error:
            raise UserError(f"task {name}: {split} image {rows[position]} cannot be decoded: {error}") from error

    height, width = preprocessing["size"]
    images = torch.empty(len(labels), 3, height, width, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for position, array in enumerate(pool.map(decode, range(len(labels)))):
            images[position] = torch.from_numpy(array.copy()).permute(2, 0, 1)
    return {"inputs": images, "labels": torch.tensor(labels)}


def resize_and_crop(image: Image, preprocessing: Mapping[str, Any]) -> Image:
    """Return the RGB image at ``size`` [H, W]: open_clip's evaluation transform up to the tensor, bit for bit.

    ``resize_mode`` is ``shortest`` (scale the shorter side, crop the centre) or ``squash`` (ignore the aspect).

    Raises:
        UserError: for another resize mode.
    """
    from PIL import Image as pil

    method = pil.Resampling[preprocessing["interpolation"].upper()]
    height, width = preprocessing["size"]
    if preprocessing["resize_mode"] == "squash":
        return image.resize((width, height), method).convert("RGB")
    if preprocessing["resize_mode"] != "shortest":
        raise UserError(f"preprocessing: resize_mode {preprocessing['resize_mode']!r} is not supported")
    old_width, old_height = image.size
    if height == width:
        scale = width / min(image.size)
        long = int(width * max(image.size) / min(image.size))
        size = (width, long) if old_width <= old_height else (long, width)
    else:
        method = pil.Resampling.BICUBIC  # open_clip's own for a target that is not square, whatever the setting
        scale = max(height / old_height, width / old_width)
        size = (round(old_width * scale), round(old_height * scale))
    image = image if image.size == size else image.resize(size, method)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return image.crop((left, top, left + width, top + height)).convert("RGB")


def _open(cell: Any) -> Image:
    """Return an encoded image; a path is that of a cached file of the hub, whose content its name identifies.

    Raises:
        ValueError: if there is none, or it is of no known format.
    """
    from PIL import Image as pil

    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if content is None and path is None:
        raise ValueError("its bytes are missing")
    try:
        return pil.open(path if content is None else io.BytesIO(content))
    except pil.UnidentifiedImageError as error:
        raise ValueError("its format is not known") from error


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield the slices that cut ``count`` examples into batches of ``size``, the last one shorter."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
