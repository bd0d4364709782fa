"""Decoding, shuffled batches and a sequential pass over many images, with the memory that is not a mapped file.

    python tests/bench/data.py [IMAGES]      (200,000 by default: 615 MB decoded)

Writes random 32x32 pictures as Parquet, decodes them into shards, then reads an epoch of shuffled batches of 1,024 and
all rows in order. Anonymous memory above what the imports take must stay under 500 MB and not grow with IMAGES.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image
from safetensors.torch import load_file

from taskvec.data.images import decode_split
from taskvec.data.tasks import ImageTask
from taskvec.data.views import View
from taskvec.vectors.deferred import save_tensors

BAR_MB, BATCH = 500, 1024
SETTINGS = {"size": (32, 32), "interpolation": "bicubic", "resize_mode": "shortest"}


def anonymous_mb() -> int:
    """Return the process's anonymous memory, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) >> 10
    return 0


def write(folder: Path, images: int) -> None:
    """Write ``images`` random pictures as train, and a few as test."""
    rng = np.random.default_rng(0)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    for split, count in (("train", images), ("test", 8)):
        with parquet.ParquetWriter(folder / f"{split}.parquet", schema) as writer:
            for start in range(0, count, 4096):
                size = min(4096, count - start)
                cells = []
                for pixels in rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8):
                    buffer = io.BytesIO()
                    Image.fromarray(pixels).save(buffer, "BMP")
                    cells.append(buffer.getvalue())
                writer.write_table(
                    pa.table({"image": cells, "label": rng.integers(0, 10, size)}, schema)
                )


def main(images: int) -> bool:
    """Print times and memory; return whether the bar holds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, images)
        start_mb = anonymous_mb()
        peak = 0

        def told(what: str, since: float) -> None:
            nonlocal peak
            peak = max(peak, anonymous_mb() - start_mb)
            print(
                f"{what:20} {time.perf_counter() - since:7.1f} s {anonymous_mb() - start_mb:6} MB"
            )

        names = tuple(str(number) for number in range(10))
        task = ImageTask(
            path=place,
            templates=("a {}",),
            classes=names,
            splits={"train": "train", "val": None, "test": "test"},
        )
        since = time.perf_counter()
        save_tensors(folder / "split.safetensors", decode_split("t", task, "train", SETTINGS))
        told("decoded", since)
        view = View.of(load_file(folder / "split.safetensors"), name="t/train")
        order = torch.randperm(len(view))
        since = time.perf_counter()
        for rows in view.batches(BATCH, order):
            view.take(rows)
        told("shuffled epoch", since)
        since = time.perf_counter()
        for rows in view.batches(BATCH):
            view.take(rows)
        told("in order", since)
    print(
        f"{images:,} images: at most {peak} MB of anonymous memory above the imports' (bar {BAR_MB})"
    )
    return peak <= BAR_MB


if __name__ == "__main__":
    sys.exit(not main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000))
