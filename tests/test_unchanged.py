"""Fourteen small runs give the numbers that are on record, whatever was rewritten between the command and its result.

``fixtures/unchanged/runs.json`` holds per run what it ``covers``, its ``command`` as it was when the numbers were
recorded, the ``numbers``, and the ``reasons`` for which they were recorded again. A key that has another name by now
has an entry in ``RENAMED``; a result of another shape is read by ``numbers``. Neither changes what is on record.

A change that corrects a number records that run again, with the reason, and commits the fixture:

    python tests/test_unchanged.py RUN --reason "why the earlier number was wrong"
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import world
import world_text
import yaml

from taskvec.cli import main

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "unchanged" / "runs.json"
TOLERANCE = 1e-6
# Keys that commands had when they were recorded, and their names of today.
RENAMED = {
    "device": "compute.device",
    "precision": "compute.precision",
    "offload": "compute.offload",
    "protocol.measures": "protocol.questions",
}

THINGS = ("film", "song", "book")
QUALITIES = ("good", "bad", "dull")
CHOICE = {
    "task": "tiny_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "Review: {{text}}\nSentiment:",
    "doc_to_choice": ["negative", "positive"],
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}
WRITE = {
    "task": "tiny_write",
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{text}} and more of it",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
    "metric_list": [{"metric": "chrf"}],
}


def records() -> dict[str, Any]:
    """Return the record of each run by its name."""
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


# --- the only function that knows the shape of a result -------------------------------------------------------------


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Return a result's rows as ``row/metric`` and ``row/metric/task``, its curves and its maps as ``curves/...`` and
    ``maps/...``: integers are counts, floats are measured. Schema version 2.
    """
    found: dict[str, float] = {}
    for row in result["rows"]:
        name, metrics = row["row"], row["metrics"]
        main = next(iter(metrics))  # accuracy, or what an analysis is about
        told = {
            "mean": main,
            "normalised_mean": "normalised",
            "control": "control",
            "perplexity": "perplexity",
        }
        for key, metric in told.items():
            if metric in metrics:
                found[f"{name}/{key}"] = metrics[metric]["mean"]
        for task, value in metrics[main]["values"].items():
            found[f"{name}/accuracy/{task}"] = value
        if row["alpha"] is not None:
            found[f"{name}/alpha"] = row["alpha"]
        for task, value in row["alphas"].items():
            found[f"{name}/alphas/{task}"] = value
    for name, points in result["curves"].items():
        for point in points:
            place = f"curves/{name}/{point['alpha']}"
            found |= leaves(place, point)
    return found | leaves("maps", result["maps"])


# --------------------------------------------------------------------------------------------------------------------


def leaves(place: str, value: Any) -> dict[str, float]:
    """Return the numbers in nested JSON values by their path; words are names, not results."""
    if isinstance(value, str):
        return {}
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {place: value}
    found: dict[str, float] = {}
    for key, part in value.items():
        found |= leaves(f"{place}/{key}", part)
    return found


def agree(recorded: float, found: float) -> bool:
    """Return whether two numbers are the same: counts exactly, measured ones to rounding.

    Above 1, as perplexities are, the tolerance is relative.
    """
    if isinstance(recorded, int):
        return recorded == found
    return math.isclose(recorded, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def generation_tasks(root: Path) -> None:
    """Write two tasks of lm-evaluation-harness over a Parquet file: a choice, and a text to write."""
    texts = [f"the {thing} was {quality}" for thing in THINGS for quality in QUALITIES]
    labels = [index % 2 for index in range(len(texts))]
    data = root / "test.parquet"
    root.mkdir()
    parquet.write_table(pa.table({"text": texts, "label": labels}), data)
    # a cache beside the data, so that the user's own one is neither read nor filled
    reading = {"data_files": {"test": str(data)}, "cache_dir": str(root / "cache")}
    source = {"dataset_path": "parquet", "dataset_kwargs": reading, "test_split": "test"}
    for task in (CHOICE, WRITE):
        (root / f"{task['task']}.yaml").write_text(yaml.safe_dump(task | source))


class Worlds:
    """Fresh tiny worlds below a folder, and one outputs folder, so that runs share vectors, heads and images."""

    def __init__(self, root: Path):
        self.root = root
        self.outputs = root / "outputs"
        self.include = [world.build(root / "images"), world_text.build(root / "texts")]
        generation_tasks(root / "generation")

    def numbers(self, command: str) -> dict[str, float]:
        """Run a recorded command in this process and return the numbers of its result."""
        before = set(self.results())
        words = self.today(command)
        assert main([*words, f"outputs={self.outputs}"]) == 0, words
        (made,) = set(self.results()) - before
        return numbers(json.loads(made.read_text(encoding="utf-8")))

    def today(self, command: str) -> list[str]:
        """Return a recorded command's words with the keys of today and the paths of these worlds."""
        words = []
        for word in command.split():
            key, _, value = word.partition("=")
            key = RENAMED.get(key, key)
            value = value.replace("HUB", str(world_text.HUB))
            value = value.replace("GENERATION", str(self.root / "generation"))
            words.append(f"{key}={value}")
        return words

    def results(self) -> list[Path]:
        """Return the result files of all runs so far."""
        return list(self.outputs.glob("runs/*/result.json"))


@contextmanager
def worlds(root: Path) -> Iterator[Worlds]:
    """Build the worlds and run on one thread, as the numbers were recorded; put the process back as it was after."""
    threads = torch.get_num_threads()
    known = os.environ.get("TASKVEC_INCLUDE")
    torch.set_num_threads(1)
    try:
        built = Worlds(root)
        os.environ["TASKVEC_INCLUDE"] = os.pathsep.join(map(str, built.include))
        yield built
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("TASKVEC_INCLUDE", None)
        if known is not None:
            os.environ["TASKVEC_INCLUDE"] = known


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """The worlds that all runs of this file share."""
    with worlds(tmp_path_factory.mktemp("unchanged") / "worlds") as ready:
        yield ready


@pytest.mark.parametrize("name", records())
def test_nothing_changed(built: Worlds, name: str):
    record = records()[name]
    if "protocol=harness" in record["command"]:
        pytest.importorskip("lm_eval")
    expected = record["numbers"]
    found = built.numbers(record["command"])
    assert found.keys() == expected.keys()
    changed = {
        key: (expected[key], found[key]) for key in expected if not agree(expected[key], found[key])
    }
    assert not changed, "recorded, found"


def record_again(name: str, reason: str) -> None:
    """Run one command in fresh worlds and put its numbers and the reason on record."""
    known = records()
    record = known[name]
    with tempfile.TemporaryDirectory() as folder, worlds(Path(folder) / "worlds") as ready:
        record["numbers"] = ready.numbers(record["command"])
    record["reasons"].append(reason)
    FIXTURE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", choices=records())
    parser.add_argument("--reason", required=True, help="why the number on record was wrong")
    given = parser.parse_args()
    record_again(given.run, given.reason)
