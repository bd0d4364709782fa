"""What finding Theseus' maps and carrying a vector costs, from ViT-B/16 to ViT-B/16-plus.

    OMP_NUM_THREADS=2 python tests/bench/theseus.py

One of the twelve blocks of each tower with its stem and projection, random weights and images. Ours: the cross-moments
as the collector sums them, the map of each space that a parameter of the block needs (default settings: one map for the
hidden units, tolerance 1e-4; and the parity settings beside it), and the transport of all of the block's parameters.
The models' forward passes are timed apart and subtracted. Against it, as the authors' code does it: A^T B in float64 of
the input and the output of every module that owns parameters, and an SVD for each parameter's side. Sums are linear in
the images: two timings, on FEW and on MANY of them, give what an image takes and what a pass does, and 8 batches of 32
are counted. The figures of a block are those of all twelve, divided by twelve. Seconds are the process's CPU time, so
that other work on the machine matters little.

Exits with 1 if ours is not 4 times as fast or twelve blocks would take more than 8 GB. Takes some five minutes.
"""

from __future__ import annotations

import math
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec.models.clip.backbone import ClipModel
from taskvec.models.clip.config import linear_layers, open_clip_config, vision_config
from taskvec.models.clip.spaces import clip_spaces
from taskvec.models.clip.vit import VisionTransformer
from taskvec.statistics.collect import collect
from taskvec.statistics.cross_moments import CrossMoments
from taskvec.transform.alignment.component import spaces_of
from taskvec.transform.alignment.maps import Alignments, SpaceMaps
from taskvec.transform.alignment.transport import carry

FEW, MANY, ALL, BLOCKS = 4, 20, 8 * 32, 12
SPEED_BAR, MEMORY_BAR = 4.0, 8.0
BLOCK = "blocks.0."
SETTINGS = {
    "defaults": Alignments(tolerance=1e-4, hidden="shared"),
    "parity": Alignments(),
}


def tower(name: str, device: str | torch.device = "cpu") -> ClipModel:
    """Return a model cut to one block, with what the collector asks of it."""
    described = open_clip_config(name)
    described["vision_cfg"]["layers"] = 1
    config = vision_config(described)
    model = ClipModel(VisionTransformer(config).to(device), (0.5,) * 3, (0.25,) * 3)
    known = clip_spaces(config).of(model.parameters)
    model.layers, model.spaces, model.observed = linear_layers(config), known.axes, known.observed
    return model


def of_all(work: Callable[[int], Any]) -> float:
    """Return the CPU seconds of work on ALL images, from those on FEW and on MANY."""
    work(FEW)
    few, _ = cpu_seconds(lambda: work(FEW))
    many, _ = cpu_seconds(lambda: work(MANY))
    per_image = (many - few) / (MANY - FEW)
    return few + (ALL - FEW) * per_image


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of some work, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def forward(models: tuple[ClipModel, ClipModel], images: tuple[Tensor, Tensor]) -> None:
    """Run both models."""
    with torch.no_grad():
        for model, inputs in zip(models, images, strict=True):
            model.features({}, inputs)


def hooked(model: ClipModel, images: Tensor) -> dict[str, Tensor]:
    """Return the inputs and outputs [N, L, d] of all modules of the block that own parameters."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in model.module.named_modules():
        if name.startswith(BLOCK) and isinstance(module, (nn.Linear, nn.LayerNorm)):

            def hook(_: nn.Module, inputs: tuple, output: Tensor, name: str = name) -> None:
                seen[f"{name}.in"], seen[f"{name}.out"] = inputs[0], output

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model.features({}, images)
    for handle in handles:
        handle.remove()
    return seen


def resized(tokens: Tensor, length: int) -> Tensor:
    """Return tokens [N, L, d] with the patches behind the class token resized to the target's grid, as images are."""
    old, new = (math.isqrt(count - 1) for count in (tokens.shape[1], length))
    patches = tokens[:, 1:].mT.unflatten(-1, (old, old))
    patches = F.interpolate(patches, size=(new, new), mode="bilinear", align_corners=False)
    return torch.cat([tokens[:, :1], patches.flatten(2).mT], dim=1)


def accumulated(own: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return A^T B in float64 of every hooked tensor, the source's tokens resized to the target's grid."""
    crosses = {}
    for name, target in other.items():
        source = resized(own[name].double(), target.shape[1])
        crosses[name] = source.flatten(0, 1).mT @ target.double().flatten(0, 1)
    return crosses


def decomposed(crosses: dict[str, Tensor], model: ClipModel) -> dict[str, Tensor]:
    """Return the block's parameters carried by one SVD for each side of each weight, biases with their weight's."""
    carried = {}
    maps: dict[str, Tensor] = {}
    for name, weight in model.parameters.items():
        module = name.rpartition(".")[0]
        if not name.startswith(BLOCK):
            continue
        if name.endswith(".weight"):
            sides = ("in", "out") if weight.ndim == 2 else ("out",)
            for side in sides:
                left, _, right = torch.linalg.svd(crosses[f"{module}.{side}"], full_matrices=False)
                maps[side] = (left @ right).float()
        axes = ("out", "in") if weight.ndim == 2 else ("out",)
        carried[name] = carry(weight, axes, maps)
    return carried


def carried(
    moments: Any, models: tuple[ClipModel, ClipModel], how: Alignments
) -> dict[str, Tensor]:
    """Return the block's parameters carried by our maps."""
    source, target = models
    maps = SpaceMaps(moments, source.parameters, target.parameters, how)
    axes = {name: spaces for name, spaces in target.spaces.items() if name.startswith(BLOCK)}
    named = maps.known(axes)
    found = {space: maps.of(space).map.float() for space in spaces_of(named)}
    return {name: carry(source.parameters[name], spaces, found) for name, spaces in named.items()}


def main() -> int:
    """Print the figures and return whether a bar is missed."""
    torch.manual_seed(0)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    models = tower("ViT-B-16"), tower("ViT-B-16-plus-240")
    images = tuple(
        torch.randint(256, (MANY, 3, side, side), dtype=torch.uint8) for side in (224, 240)
    )

    def first(count: int) -> tuple[Tensor, Tensor]:
        return images[0][:count], images[1][:count]

    passes = of_all(lambda count: forward(models, first(count)))
    both = of_all(lambda count: collect(models, [first(count)], [CrossMoments()]))
    sums = both - passes
    print(
        f"our sums {sums:.1f} s per block, 8 batches of 32 images (forward passes {passes:.1f} s apart)"
    )
    (moments,) = collect(models, [images], [CrossMoments()])
    ours = {}
    for name, how in SETTINGS.items():
        maps, _ = cpu_seconds(lambda how=how: carried(moments, models, how))
        ours[name] = sums + maps
        print(f"our maps and transport, {name}: {maps:.1f} s per block")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    stored = sum(tensor.nbytes for tensor in moments.tensors.values()) / 2**30
    # Moments of the other blocks in float64, maps in float32
    memory = peak + (BLOCKS - 1) * 1.5 * stored
    print(
        f"peak {peak:.1f} GB here, {memory:.1f} GB with the moments and maps of {BLOCKS} blocks (bar {MEMORY_BAR})"
    )

    seen = [hooked(model, inputs) for model, inputs in zip(models, images, strict=True)]

    def their_sums(count: int) -> dict[str, Tensor]:
        own, other = ({name: rows[:count] for name, rows in side.items()} for side in seen)
        return accumulated(own, other)

    theirs = of_all(their_sums)
    crosses = their_sums(MANY)
    svds, _ = cpu_seconds(lambda: decomposed(crosses, models[0]))
    print(
        f"a float64 accumulation per hooked tensor {theirs:.1f} s, an SVD per parameter {svds:.1f} s per block"
    )
    speeds = {name: (theirs + svds) / taken for name, taken in ours.items()}
    for name, speed in speeds.items():
        print(f"  {name}: {speed:.1f} times as fast (bar {SPEED_BAR})")
    return int(speeds["defaults"] < SPEED_BAR or memory > MEMORY_BAR)


if __name__ == "__main__":
    sys.exit(main())
