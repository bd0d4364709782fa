"""Build the embedded suite mini8: every task as Parquet, with checksums and a summary.

python experiments/mini/suite.py              # all tasks
python experiments/mini/suite.py mnist brain  # some of them
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from paths import POOLS, SUITE
from pools import SPLITS, Pool
from render import png
from sources import sha256
from tasks_emoji import emoji, objects
from tasks_glyph import digits, kana, letters, scripts
from tasks_photo import brain, climate, fashion, mnist, optdigits

TASKS = {
    "mnist": (mnist, {"pre": 200, "train": 1400, "val": 350, "test": 800}),
    "fashion": (fashion, {"pre": 200, "train": 1400, "val": 350, "test": 800}),
    "letters": (letters, {"pre": 260, "train": 1400, "val": 350, "test": 800}),
    "digits": (digits, {"pre": 200, "train": 1400, "val": 350, "test": 800}),
    "scripts": (scripts, {"pre": 200, "train": 1400, "val": 350, "test": 800}),
    "emoji": (emoji, {"pre": 180, "train": 1300, "val": 350, "test": 650}),
    "climate": (climate, {"pre": 200, "train": 1250, "val": 330, "test": 650}),
    "brain": (brain, {"pre": 160, "train": 1100, "val": 320, "test": 700}),
    "objects": (objects, {"pre": 0, "train": 500, "val": 250, "test": 500}),
    "kana": (kana, {"pre": 92, "train": 1000, "val": 350, "test": 600}),
    "optdigits": (optdigits, {"pre": 40, "train": 900, "val": 300, "test": 500}),
}
SEED = 20


def schema(classes: list[str]) -> pa.Schema:
    """The Parquet schema with the feature description that `datasets` reads."""
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False)}
    return pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)


def write_split(pool: Pool, split: str, path: Path) -> None:
    """Write one split, first under a temporary name."""
    images, labels = pool.splits[split]
    rows = [{"bytes": png(image), "path": None} for image in images]
    table = pa.Table.from_arrays(
        [pa.array(rows, type=schema(pool.classes).field("image").type), pa.array(labels)],
        schema=schema(pool.classes),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, compression="zstd", compression_level=9)
    os.replace(temporary, path)


def build(name: str) -> dict:
    """Build one task; its Parquet files go into the suite, its in-domain pre-training images into the work folder."""
    maker, counts = TASKS[name]
    pool = maker(counts, SEED)
    pool.drop_repeats()
    for split in SPLITS:
        write_split(pool, split, SUITE / name / f"{split}.parquet")
    POOLS.mkdir(parents=True, exist_ok=True)
    images, labels = pool.splits["pre"]
    np.savez_compressed(
        POOLS / f"{name}.npz", images=images, labels=labels, classes=np.array(pool.classes)
    )
    sizes = {split: len(pool.splits[split][1]) for split in ("pre", *SPLITS)}
    size = sum(p.stat().st_size for p in (SUITE / name).glob("*.parquet"))
    print(f"{name:10} {len(pool.classes):4} classes {sizes} {size / 1e6:.2f} MB", flush=True)
    return {"classes": len(pool.classes), **{s: sizes[s] for s in SPLITS}, "split": pool.rule}


def main() -> None:
    """Build the tasks named on the command line (default: all) and refresh the checksums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help="tasks to build")
    for name in parser.parse_args().tasks:
        summary = build(name)
        (POOLS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    sums = {str(p.relative_to(SUITE)): sha256(p) for p in sorted(SUITE.glob("*/*.parquet"))}
    (SUITE / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")


if __name__ == "__main__":
    main()
