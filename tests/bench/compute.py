"""Training and evaluation at CLIP's shapes under the settings of ``compute:``, as a share of what the card can do.

    python tests/bench/compute.py [--seconds 120] [--only ViT-B-32 ...]     on a GPU
    python tests/bench/compute.py --small                                  two small towers, on the CPU

Random weights and random images on the device. Training is ``finetune=full`` by the package's own loop, random crops
included, STEPS steps after WARM_UP ones; evaluation is the prediction of IMAGES images at one coefficient of a random
vector. FLOP are counted on the forward pass of one image, three times as many for a training step; the share is that of
the card's dense peak for the products' precision. Compiling is timed apart (the warm-up's seconds). What would start
with too little of the time left is left out, and said to be.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import world
from memory import Given

from taskvec.data.views import View
from taskvec.errors import UserError
from taskvec.finetune.full import Full
from taskvec.graph.workspace import keep_freed_memory, set_precision
from taskvec.models.batching import Batching
from taskvec.models.clip.backbone import ClipModel
from taskvec.models.clip.config import VisionConfig, linear_layers
from taskvec.models.clip.vit import VisionTransformer
from taskvec.models.compiled import check_compiler, compiled
from taskvec.needs import Examples
from taskvec.training.evaluator import Evaluator
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Scaled

TOWERS = {"ViT-B-32": 128, "ViT-B-16": 128, "ViT-L-14": 64}  # images of a training step
WARM_UP, STEPS, IMAGES, CLASSES = 3, 10, 4096, 100
RESERVE = {"ViT-B-32": 30, "ViT-B-16": 30, "ViT-L-14": 50}  # seconds that compiling may take
PEAKS = {"H100": {"tf32": 494.7e12, "bf16": 989.4e12}, "H200": {"tf32": 494.7e12, "bf16": 989.4e12}}
AT = Examples("task", "test", "report", labels=True)


def shape(
    size: int, patch: int, width: int, layers: int, heads: int, features: int
) -> VisionConfig:
    """Return the description of an image tower."""
    return VisionConfig(
        embed_dim=features,
        image_size=(size, size),
        patch_size=(patch, patch),
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=4 * width,
    )


SHAPES = {
    "ViT-B-32": shape(224, 32, 768, 12, 12, 512),
    "ViT-B-16": shape(224, 16, 768, 12, 12, 512),
    "ViT-L-14": shape(224, 14, 1024, 24, 16, 768),
    "small": shape(32, 8, 64, 2, 2, 16),
    "wider": shape(32, 8, 128, 2, 4, 16),
}
SMALL = ("small", "wider")


@dataclass(frozen=True)
class Way:
    """A way of computing: the precision of products, weights in bfloat16, compiled; ``auto`` finds the batch."""

    name: str
    precision: str
    rounded: bool = False
    compile: bool = False
    auto: bool = False


TRAINING = [Way("tf32", "tf32"), Way("bf16", "bf16"), Way("bf16 compiled", "bf16", compile=True)]
EVALUATION = [
    Way("tf32", "tf32"),
    Way("tf32, batch auto", "tf32", auto=True),
    Way("bf16", "bf16"),
    Way("bf16 weights", "fp32", rounded=True),
    Way("bf16 weights, batch auto", "fp32", rounded=True, auto=True),
    Way("bf16 weights compiled", "fp32", rounded=True, compile=True),
]


@dataclass
class Bench:
    """The device, the time that is left, and the lines of the table."""

    device: str
    deadline: float
    small: bool
    peaks: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.deadline - time.perf_counter()

    def timed(self, work: Callable[[], object]) -> float:
        """Return the seconds of a call, the device's work included."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_gb(self) -> float:
        """Return the peak of the device's memory since it was reset; 0 on the CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else 0.0

    def say(self, tower: str, what: str, way: Way, told: str) -> None:
        """Keep a line of the table, and show it."""
        self.lines.append(f"{tower:<10}{what:<11}{way.name:<26}{told}")
        print(self.lines[-1], flush=True)


def tower(name: str, device: str) -> ClipModel:
    """Return a model of random weights."""
    config = SHAPES[name]
    model = ClipModel(VisionTransformer(config).to(device), (0.5,) * 3, (0.25,) * 3)
    model.layers, model.size = linear_layers(config), config.image_size[0]
    model.width = config.embed_dim
    return model


def view_of(model: ClipModel, images: int, device: str) -> View:
    """Return random images with labels and a head, on the device."""
    inputs = torch.randint(0, 256, (images, 3, model.size, model.size), dtype=torch.uint8)
    labels, head = torch.randint(0, CLASSES, (images,)), torch.randn(CLASSES, model.width)
    return world.view(inputs, labels, head).to(device)


def flops(model: ClipModel, view: View) -> int:
    """Return the operations of a forward pass of one image, a multiply-add counted as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.features({}, view.take(slice(0, 1)))
    return counter.get_total_flops()


def train(bench: Bench, name: str, model: ClipModel, way: Way, images: int) -> None:
    """Time steps of fine-tuning."""
    view = view_of(model, 4 * images, bench.device)
    given = Given(model, {"task": view}, device=bench.device)
    forward = compiled(model) if way.compile else None
    bf16 = way.precision == "bf16"
    given.evaluator = Evaluator(model, {AT: view}.__getitem__, bf16=bf16, compiled=forward)

    def steps(count: int) -> Callable[[], object]:
        recipe = Full(steps=count, warmup=1, lr=1e-5, batch_size=images)
        return lambda: recipe.learn(given)

    first = bench.timed(steps(WARM_UP))
    reset(bench)
    seconds = bench.timed(steps(STEPS)) / STEPS
    reach = 3 * flops(model, view) * images / seconds
    told = f"{1 / seconds:>8.2f} steps/s {images / seconds:>9.0f} images/s"
    bench.say(name, f"train {images}", way, told + rest(bench, way, reach, first))


def evaluate(bench: Bench, name: str, model: ClipModel, way: Way, images: int) -> None:
    """Time the prediction of images."""
    view = view_of(model, images, bench.device)
    deltas = {n: 1e-3 * torch.randn_like(weight) for n, weight in model.parameters.items()}
    composition = Scaled(model.parameters, TaskVector(deltas))
    batching = Batching("auto" if way.auto else None)
    ask = Evaluator(
        model,
        {AT: view}.__getitem__,
        bf16=way.precision == "bf16",
        rounded=way.rounded,
        compiled=compiled(model) if way.compile else None,
        batching=batching,
    )
    reset(bench)
    first = bench.timed(lambda: ask.predictions(composition, [AT], [1.0]))
    seconds = bench.timed(lambda: ask.predictions(composition, [AT], [0.5]))
    found = [fit.size for fit in batching._found.values()]
    told = f"{'':>16} {images / seconds:>9.0f} images/s"
    reach = flops(model, view) * images / seconds
    batch = f", batch {found[0]}" if found else ""
    bench.say(name, "evaluate", way, told + rest(bench, way, reach, first) + batch)


def reset(bench: Bench) -> None:
    """Forget the peak of the device's memory."""
    if bench.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def rest(bench: Bench, way: Way, reach: float, first: float) -> str:
    """Return what training and evaluation have in common: operations, their share of the peak, memory, warm-up."""
    kind = "bf16" if way.rounded else way.precision
    share = f"{reach / bench.peaks[kind]:>6.1%}" if kind in bench.peaks else "     -"
    return f" {reach / 1e12:>8.2f} TFLOP/s {share} {bench.peak_gb():>6.1f} GB, first {first:.1f} s"


def jobs(names: list[str], *, compiling: bool) -> Iterator[tuple[str, Callable, Way]]:
    """Yield tower, measure and way: what is not compiled first, since compiling takes longest."""
    for name in names:
        for measure, ways in ((train, TRAINING), (evaluate, EVALUATION)):
            for way in ways:
                if way.compile == compiling:
                    yield name, measure, way


def measure_all(bench: Bench, names: list[str]) -> None:
    """Run every measure for which time is left."""
    for compiling in (False, True):
        for name, measure, way in jobs(names, compiling=compiling):
            reserve = RESERVE.get(name, 0) if compiling else 4
            if bench.left() < reserve:
                bench.say(name, measure.__name__, way, "left out: no time")
                continue
            set_precision(way.precision)
            model = tower(name, bench.device)
            images = IMAGES if measure is evaluate else TOWERS.get(name, 16)
            images = min(images, 512) if bench.small else images
            try:
                measure(bench, name, model, way, images)
            except (UserError, torch.cuda.OutOfMemoryError) as error:
                bench.say(name, measure.__name__, way, str(error).splitlines()[0][:120])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--small", action="store_true")
    chosen = parser.parse_args()
    keep_freed_memory()
    device = "cpu" if chosen.small else "cuda"
    card = platform.machine() if chosen.small else torch.cuda.get_device_name()
    peaks = next((peak for known, peak in PEAKS.items() if known in card), {})
    bench = Bench(device, time.perf_counter() + chosen.seconds - 5, chosen.small, peaks)
    print(f"{card}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    names = chosen.only or list(SMALL if chosen.small else TOWERS)
    try:
        check_compiler(device)
    except UserError as error:
        print(error, flush=True)
    measure_all(bench, names)
    print("\n" + "\n".join(bench.lines))


if __name__ == "__main__":
    main()
