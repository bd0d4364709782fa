"""Decoding a split's images once, into uint8 shards at the resolution that the backbone sees."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from taskvec.data.pictures import open_picture
from taskvec.data.rows import SplitRows, TaskData
from taskvec.data.tasks import Task
from taskvec.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

    from taskvec.data.tables.base import Table
    from taskvec.vectors.deferred import Deferred


def decode_split(name: str, task: Task, split: str, preprocessing: Mapping[str, Any]) -> Deferred:
    """Return a split's images, resized and cropped but not yet normalised, and their labels.

    The inputs [n, 3, H, W] uint8 are shards, decoded as they are looked at (see
    :func:`taskvec.data.shards.sharded`); ``labels`` [N] int64.

    Raises:
        UserError: if the split is empty, and when a shard is looked at, if an image cannot be decoded; the message
            names file and row.
    """
    import torch

    from taskvec.data.shards import sharded

    data = TaskData(name, task).read(split)
    height, width = preprocessing["size"]

    def images() -> Iterator[Tensor]:
        return _decoded(f"task {name}: {split}", data, task.columns[0], preprocessing)

    labels = torch.from_numpy(data.labels)
    return sharded(images, len(data.rows), (3, height, width), beside={"labels": labels})


def _decoded(
    split: str, data: SplitRows, column: str, preprocessing: Mapping[str, Any]
) -> Iterator[Tensor]:
    """Yield each image [3, H, W], in the order of the rows; one batch of the table is decoded at a time."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch

    from taskvec.data.tables.base import cells

    def decode(numbered: tuple[int, list[Any]]) -> np.ndarray:
        row, (cell,) = numbered
        try:
            picture = open_picture(data.table.encoded(cell))
            return np.asarray(resize_and_crop(picture, preprocessing))
        except Exception as error:  # decoders raise whatever a damaged file makes them raise
            where = data.table.where(row)
            raise UserError(f"{split} image {row} cannot be decoded: {error} ({where})") from error

    with ThreadPoolExecutor() as pool:
        for batch in data.table.batches([column], data.rows):
            for array in pool.map(decode, cells(batch)):
                yield torch.from_numpy(array.copy()).permute(2, 0, 1)


def resize_and_crop(image: Image, preprocessing: Mapping[str, Any]) -> Image:
    """Return an RGB image at ``size`` [H, W]: open_clip's evaluation transform up to the tensor, bit for bit.

    ``resize_mode`` is ``shortest`` (scale the shorter side, crop the centre) or ``squash`` (ignore the aspect).

    Raises:
        UserError: for another resize mode.
    """
    from PIL import Image as pil

    method = pil.Resampling[preprocessing["interpolation"].upper()]
    height, width = preprocessing["size"]
    if preprocessing["resize_mode"] == "squash":
        return image.resize((width, height), method)
    if preprocessing["resize_mode"] != "shortest":
        raise UserError(
            f"preprocessing: resize_mode {preprocessing['resize_mode']!r} is not supported"
        )
    old_width, old_height = image.size
    if height == width:
        scale = width / min(image.size)
        long = int(width * max(image.size) / min(image.size))
        size = (width, long) if old_width <= old_height else (long, width)
    else:
        # open_clip's own for a target that is not square, whatever the setting
        method = pil.Resampling.BICUBIC
        scale = max(height / old_height, width / old_width)
        size = (round(old_width * scale), round(old_height * scale))
    image = image if image.size == size else image.resize(size, method)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def image_files(table: Table, column: str) -> list[Path]:
    """Return the files that the cells of an image column name in place of bytes, in the order of the rows.

    Raises:
        UserError: if one does not exist.
    """
    import numpy as np
    from pyarrow import types

    from taskvec.data.tables.base import cells

    kind = table.schema.field(column).type
    if not types.is_string(kind) and table.embedded(column):
        return []
    found: list[Path] = []
    for batch in table.batches([column], np.arange(len(table))):
        for row, (cell,) in cells(batch):
            try:
                encoded = table.encoded(cell)
            except ValueError:
                continue  # told with its row when it is decoded
            if isinstance(encoded, bytes):
                continue
            if not os.path.isfile(encoded):
                raise UserError(f"{table.owner}: no file {encoded} ({table.where(row)})")
            found.append(encoded)
    return found
