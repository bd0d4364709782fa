"""Results for pages and figures: synthetic ones of any number, after the pattern of a real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from taskvec.graph.result import Result, read_result

METHODS = ("task_arithmetic", "ties", "dare", "tsv", "iso_c", "average", "fisher", "regmean")
BACKBONES = ("clip_a", "clip_b")
SEEDS = 5
NASTY = (
    "<img src=x onerror=\"document.title='broken'\">",
    "</script><script>document.title='broken'</script>",
    "\"quoted\" & 'single' $\\alpha$ <b>bold</b>",
    "שלום עולם",
    "over\u202eride",
)


def template(outputs: Path) -> Result:
    """A finished run's result to copy."""
    (path,) = (outputs / "runs").glob("*/result.json")
    return read_result(path)


def synthetic(
    root: Path, pattern: Result, count: int, names: Sequence[str] = METHODS, seed: int = 0
) -> None:
    """Write ``count`` runs of made-up numbers: methods x backbones x seeds, then further learning rates."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        place, repeat = divmod(number, SEEDS)
        place, backbone = divmod(place, len(BACKBONES))
        rate, method = divmod(place, len(names))
        data = pattern.model_dump(mode="json")
        config = data["config"]
        config["choices"] |= {"merge": names[method], "backbone": BACKBONES[backbone]}
        config |= {"method": names[method], "seed": repeat}
        config["finetune"]["lr"] = round(1e-4 * (rate + 1), 6)
        data |= {"run_id": f"{names[method]} run {number}", "fingerprint": f"{number:032x}"}
        quality = 0.4 + 0.04 * method + 0.1 * backbone
        for row in data["rows"]:
            for metric in row["metrics"].values():
                values = {task: drawn(rng, quality) for task in metric["values"]}
                metric |= {"values": values, "mean": float(np.mean(list(values.values())))}
        data["timing"] |= {"artefacts": {}, "wall_s": 10 * float(rng.uniform(1, 9))}
        folder = root / "runs" / f"run-{number:05d}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(data))


def drawn(rng: np.random.Generator, quality: float) -> float:
    """A fraction near ``quality``."""
    return float(np.clip(quality + rng.normal(0, 0.02), 0, 1))
