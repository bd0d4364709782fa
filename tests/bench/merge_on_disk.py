"""``taskvec merge`` of eight models of 0.5 B parameters in shards of at most 500 MB, beside copying their files.

    python tests/bench/merge_on_disk.py [--folder PLACE] [--repeats 3] [--scale N] [METHOD ...]

Random bfloat16 checkpoints with the shapes of Qwen2-0.5B are written to a folder in PLACE (11 GB, and 9 GB more for the
copy); a PLACE that has them already is used as it is. Each merge runs in a process of its own, which samples its
anonymous memory; pages that mirror a file are not counted, because the system can drop them. Copying the nine folders
with shutil is timed right before each repeat of average and task arithmetic. Methods that need minutes at that size run
on a model with the same embedding and two blocks ("short"). --scale N divides the rows of the embedding and the blocks
by N, for a look at the relations of speeds on a small machine. Passes are bytes read by bytes that there are. Exits
with 1 if a merge holds more than 1 GB, or if average or task arithmetic run at less than 70 % of copying's speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS, SHARD = 8, 500_000_000
MEMORY_BAR, SPEED_BAR = 1e9, 0.7
SIZES = {
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
BLOCKS = {"whole": 24, "short": 2}
FAST = {
    "average": {},
    "task_arithmetic": {},
    "magmax": {},
}
SLOW = {
    "dare": {},
    "ties": {},
    "model_stock": {},
    "multislerp": {},
    "ties_mergekit": {"scope": "tensor", "kept": "exact", "undecided": "plus", "divide": "weights"},
    "dare_ties": {"consensus": "elect", "rescale": "l1", "undecided": "plus"},
    "breadcrumbs": {},
    "della": {},
    "sce": {},
    "pcb": {},
    "consensus_ta": {},
    "karcher": {},
    "slerp": {},
    "nuslerp": {},
    "tsv": {"exclude": ["*embed*"]},
    "iso_c": {"exclude": ["*embed*"]},
    "iso_cts": {"exclude": ["*embed*"]},
    "wudi": {"exclude": ["*embed*"]},
    "cart": {"exclude": ["*embed*"]},
}
METHODS = FAST | SLOW
KINDS = {"ties_mergekit": "ties", "dare_ties": "dare"}
TIMED = ("average", "task_arithmetic")
PAIRS = ("slerp", "nuslerp")  # of two models


def drawn(noise, shape, scale: float, shift: int):
    """Return a tensor of random numbers, a few million of which are repeated."""
    turned = noise.roll(shift) * scale
    count = shape.numel()
    return turned.repeat(count // len(noise) + 1)[:count].view(shape)


def write(folder: Path, scale: int) -> None:
    """Write a random base and eight models near it, whole and short."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from taskvec.checkpoints.writing import Weights, write_folder

    torch.manual_seed(0)
    noise = torch.randn(2**22)
    sizes = SIZES | {"vocab_size": SIZES["vocab_size"] // scale}
    for size, whole in BLOCKS.items():
        blocks = max(2, whole // scale)
        config = AutoConfig.for_model("qwen2", num_hidden_layers=blocks, **sizes)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        shapes.pop("lm_head.weight")

        for number in range(MODELS + 1):
            tensors = {}
            for name, shape in shapes.items():
                tensor = drawn(noise, shape, 0.02, len(name))
                if number:
                    tensor = tensor + drawn(noise, shape, 0.001, 1009 * number)
                tensors[name] = tensor.bfloat16()
            place = folder / size / f"model{number}"
            write_folder(place, Weights.of(tensors), {}, limit=SHARD)
            config.save_pretrained(place)
            del tensors


def measure(name: str, folder: Path) -> None:
    """Run one merge and print seconds, bytes and the peak of anonymous memory as JSON."""
    from taskvec import registry
    from taskvec.on_disk.plan import plan_of
    from taskvec.on_disk.request import Everywhere, Request, tensor_wise
    from taskvec.on_disk.run import carry_out

    kind = KINDS.get(name, name)
    size = "whole" if name in FAST else "short"
    options = {"kind": kind, "seed": 0, **METHODS[name]}
    merge = tensor_wise(registry.lookup("merge", kind).schema.model_validate(options))
    out = folder / "out"
    places = [str(folder / size / f"model{number}") for number in range(MODELS + 1)]
    models = places[1:3] if name in PAIRS else places[1:]
    request = Request(
        models=tuple(models),
        out=out,
        rules=Everywhere(merge, name),
        base=places[0],
        shard_bytes=SHARD,
    )
    plan = plan_of(request)
    report = carry_out(plan)
    figures = {"seconds": report.seconds, "bytes": report.size, "peak": report.peak}
    print(json.dumps(figures | {"passes": plan.read / report.size}))


def copy(folder: Path) -> float:
    """Return the seconds that copying the nine whole folders takes."""
    started = time.perf_counter()
    shutil.copytree(folder / "whole", folder / "copy")
    seconds = time.perf_counter() - started
    shutil.rmtree(folder / "copy")
    return seconds


def child(step: str, name: str, folder: Path, *options: str) -> str:
    """Run one step in a process of its own and return what it prints."""
    words = [sys.executable, __file__, "--step", step, "--folder", str(folder), *options, name]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "out", ignore_errors=True)
    return done.stdout


def timed(name: str, folder: Path, repeats: int) -> tuple[list[dict], list[float]]:
    """Return the reports of a merge, and the seconds of copies made right before each."""
    reports, copies = [], []
    for _ in range(repeats):
        if name in TIMED:
            copies.append(copy(folder))
        reports.append(json.loads(child("measure", name, folder)))
    return reports, copies


def line(name: str, reports: list[dict], copies: list[float]) -> tuple[str, bool]:
    """Return a method's figures in words, and whether its bars hold."""
    seconds = [report["seconds"] for report in reports]
    middle = statistics.median(seconds)
    peak = max(report["peak"] for report in reports)
    speed = reports[0]["bytes"] / middle / 1e9
    size = "whole" if name in FAST else "short"
    spread = f"({min(seconds):.1f} to {max(seconds):.1f})"
    passes = reports[0]["passes"]
    said = f"{name:<16}{size:<7}{middle:8.1f} s {spread:<18}{speed:6.2f} GB/s"
    said += f"{passes:8.2f}{peak / 1e9:8.2f} GB"
    held = peak < MEMORY_BAR
    if copies:
        ratios = [one / other for one, other in zip(copies, seconds, strict=True)]
        share = statistics.median(ratios)
        said += f"   {share:.2f} of copying's speed ({min(ratios):.2f} to {max(ratios):.2f})"
        held = held and share >= SPEED_BAR
    return said, held


def main() -> int:
    """Print the figures and return whether the bars hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--step")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.step == "write":
        write(options.folder, options.scale)
        return 0
    if options.step == "measure":
        measure(options.names[0], options.folder)
        return 0
    names = options.names or list(METHODS)
    if options.folder and (options.folder / "whole").exists():
        return compare(options.folder, names, options)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        child("write", "all", Path(place), "--scale", str(options.scale))
        return compare(Path(place), names, options)


def compare(folder: Path, names: list[str], options: argparse.Namespace) -> int:
    """Run every method and print a line for each."""
    import torch

    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(
        f"{machine}, Python {platform.python_version()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    print(f"python tests/bench/merge_on_disk.py {' '.join(sys.argv[1:])}")
    print(
        "method          size    median (spread)               read      passes  peak of anonymous memory"
    )
    fine = True
    for name in names:
        repeats = options.repeats if name in TIMED or options.scale > 1 else 1
        reports, copies = timed(name, folder, repeats)
        said, held = line(name, reports, copies)
        print(said, flush=True)
        fine = fine and held
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
