"""A folder of images for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from taskvec.data.tables.base import BATCH, Batch, Table
from taskvec.errors import UserError

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".avif", ".tga", ".ico",
}  # fmt: skip
LITTER = {"thumbs.db", "desktop.ini"}  # beside the hidden files


class FolderTable(Table):
    """``SPLIT/CLASS/**/*.png``: rows sorted by class, then by path; the classes are the folders' names, sorted."""

    labels_are_words: ClassVar[bool] = True

    def __init__(self, owner: str, root: Path, image: str, label: str):
        super().__init__(owner, [root])
        self.image, self.label = image, label

    @cached_property
    def _listed(self) -> tuple[tuple[str, ...], pa.StringArray, pa.Int32Array]:
        """The class names, and for each image its path below the split's folder and its class's number.

        Raises:
            UserError: for an image outside the classes' folders, a class without images, or another file.
        """
        root = self.files[0]
        names = []
        for path in sorted(root.iterdir()):
            if _hidden(path.name):
                continue
            if not path.is_dir():
                raise UserError(f"{self.owner}: {path} is in no folder of a class")
            names.append(path.name)
        paths: list[str] = []
        classes: list[int] = []
        for number, name in enumerate(names):
            own = sorted(self._images(root / name))
            if not own:
                raise UserError(f"{self.owner}: {root / name} holds no image")
            paths += own
            classes += [number] * len(own)
        return tuple(names), pa.array(paths, pa.string()), pa.array(classes, pa.int32())

    def _images(self, folder: Path) -> Iterator[str]:
        for place, inside, files in os.walk(folder):
            inside[:] = [name for name in inside if not _hidden(name)]
            for name in files:
                path = Path(place, name)
                if _hidden(name):
                    continue
                if path.suffix.lower() not in SUFFIXES:
                    raise UserError(
                        f"{self.owner}: {path} is no image (by its suffix); take it out"
                    )
                yield path.relative_to(self.files[0]).as_posix()

    @property
    def folder(self) -> Path:
        """The split's folder."""
        return self.files[0]

    @property
    def schema(self) -> pa.Schema:
        """The image's path and the class's name."""
        return pa.schema([(self.image, pa.string()), (self.label, pa.string())])

    def __len__(self) -> int:
        return len(self._listed[1])

    def class_names(self, column: str) -> tuple[str, ...]:
        """Return the folders' names, sorted."""
        return self._listed[0]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return the paths or the labels."""
        names, paths, classes = self._listed
        if name == self.image:
            return pa.chunked_array([paths])
        words = pa.array(names, pa.string())
        labels = pa.DictionaryArray.from_arrays(classes, words)
        return pa.chunked_array([labels])

    def batches(
        self, columns: Sequence[str], rows: np.ndarray, size: int = BATCH
    ) -> Iterator[Batch]:
        """Yield the wanted rows."""
        whole = {name: self.column(name).chunk(0) for name in columns}
        for start in range(0, len(rows), size):
            own = rows[start : start + size]
            taken = []
            for name in columns:
                taken.append(whole[name].take(pa.array(own)))
            yield Batch(own, pa.RecordBatch.from_arrays(taken, list(columns)))

    def where(self, row: int) -> str:
        """Return the image's file."""
        return str(self.folder / self._listed[1][row].as_py())


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER
