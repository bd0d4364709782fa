"""What the drift penalty and the collection of its Kronecker factors cost, at ViT-B/32 shapes.

    OMP_NUM_THREADS=1 python tests/bench/curvature.py

Two of the twelve blocks (width 768, 50 tokens, 224-pixel images), random weights, float32. Times, in turn: the penalty
with its gradient against a tangent training step (one jvp, loss, backward, no optimiser) on 128 images; and collecting
A, B and the full blocks at M = 1 against a forward and backward pass (gradients of all weights) over the same images.
Both costs are linear in depth, so the ratio of 12 blocks differs only by the patches' and the projection's share: the
penalty's is scaled by the products counted for 12 blocks and for 2. Seconds are the process's own CPU time, so that
other work on the machine matters little. Exits with 1 if the penalty takes more than 10 % or the collection more than
3 times. Takes about two and a half minutes on one thread.
"""

from __future__ import annotations

import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from meter import Memory

from taskvec.models.clip.backbone import ClipModel
from taskvec.models.clip.config import linear_layers, open_clip_config, vision_config
from taskvec.models.clip.vit import VisionTransformer
from taskvec.statistics.collect import collect
from taskvec.statistics.curvature import FeatureCurvature
from taskvec.training.linearise import jvp_features
from taskvec.training.regularisers import penalty

BLOCKS, TRAIN_BATCH, COLLECT, TURNS = 2, 128, 32, 3
PENALTY_BAR, COLLECT_BAR = 0.10, 3.0
UNTRAINED = ("patch_embed.weight", "positional_embedding")  # as in the paper's recipe


def build() -> ClipModel:
    """Return ViT-B/32 cut to BLOCKS blocks."""
    described = open_clip_config("ViT-B-32")
    described["vision_cfg"]["layers"] = BLOCKS
    config = vision_config(described)
    torch.manual_seed(0)
    model = ClipModel(VisionTransformer(config), (0.5,) * 3, (0.25,) * 3)
    model.layers = linear_layers(config)
    return model


def in_turn(work: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each piece of work, done in turn after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(turns + 1):
        for name, do in work.items():
            start = time.process_time()
            do()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def show(seconds: Mapping[str, list[float]], below: str, above: str, bar: float) -> float:
    """Print the times and return the ratio of medians, with the range of the turns' own ratios."""
    for name, values in seconds.items():
        print(
            f"  {name:<34}min {min(values):7.3f}  median {statistics.median(values):7.3f}  max {max(values):7.3f} s"
        )
    own = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
    ratio = statistics.median(seconds[above]) / statistics.median(seconds[below])
    print(f"  ratio of medians {ratio:.3f}, per turn {min(own):.3f} to {max(own):.3f} (bar {bar})")
    return ratio


def counted_ratio(model: ClipModel, blocks: int, images: int) -> float:
    """Return the multiplications of the penalty with its gradient over those of a tangent step, with ``blocks`` blocks.

    Per weight [out, in]: B (dW A) is out * in * (out + in); the step passes primal, W dx, dW x, and backward to dx and
    dW, 5 products for each token. Attention, norms and activations are left out, to the step's disadvantage.
    """
    config = model.module.config
    shapes = {
        layer.name: tuple(model.module.get_submodule(layer.name).weight.shape)
        for layer in model.layers
    }
    block = [shape for name, shape in shapes.items() if name.startswith("blocks.0.")]
    projection = shapes["projection"]
    cost = blocks * sum(out * (n_in + 1) * (out + n_in + 1) for out, n_in in block) + math.prod(
        projection
    ) * sum(projection)
    patches = (config.tokens - 1) * model.parameters["patch_embed.weight"].numel()
    per_token = blocks * sum(out * n_in for out, n_in in block)
    return cost / (images * (5 * (config.tokens * per_token + math.prod(projection)) + patches))


def penalty_against_step(model: ClipModel) -> float:
    """Time the penalty against a tangent training step and return the ratio."""
    images = torch.randint(256, (TRAIN_BATCH, 3, 224, 224), dtype=torch.uint8)
    labels, head = torch.randint(10, (TRAIN_BATCH,)), F.normalize(torch.randn(10, 512), dim=1)
    deltas = {
        name: (1e-3 * torch.randn_like(weight)).requires_grad_()
        for name, weight in model.parameters.items()
        if name not in UNTRAINED
    }
    (stored,) = collect(model, images[:8].split(8), [FeatureCurvature()])

    def step() -> None:
        base, moved = jvp_features(model, deltas, images)
        F.cross_entropy(100 * F.normalize(base + moved, dim=-1) @ head.T, labels).backward()

    work = {"tangent step": step, "penalty": lambda: penalty(stored, deltas).backward()}
    seconds = in_turn(work, TURNS)
    print(
        f"penalty and its gradient against a tangent step, {BLOCKS} block(s), batch {TRAIN_BATCH}"
    )
    ratio = show(seconds, "tangent step", "penalty", PENALTY_BAR)
    counted = {blocks: counted_ratio(model, blocks, TRAIN_BATCH) for blocks in (BLOCKS, 12)}
    ratio *= counted[12] / counted[BLOCKS]
    print(f"  by products counted: {counted[BLOCKS]:.3f}, with 12 blocks {counted[12]:.3f}")
    print(f"  measured, scaled to 12 blocks: {ratio:.3f} (bar {PENALTY_BAR})")
    return ratio


def memory(do: Callable[[], object]) -> Memory:
    """Return what was alive while something was done."""
    with Memory() as seen:
        do()
    return seen


def collection_against_pass(model: ClipModel) -> float:
    """Time the collection against a forward and backward pass over the same images and return the ratio."""
    images = torch.randint(256, (4 * COLLECT, 3, 224, 224), dtype=torch.uint8)
    weights = {name: weight.clone().requires_grad_() for name, weight in model.parameters.items()}

    def forward_backward(gradients: bool = True) -> None:
        first = weights if gradients else {"class_embedding": weights["class_embedding"]}
        for batch in images[:COLLECT].split(COLLECT):
            features = model.features(first, batch)
            features.backward(torch.randn_like(features))
        for weight in weights.values():
            weight.grad = None

    def gather(count: int = COLLECT, structure: str = "kfac") -> None:
        collect(model, images[:count].split(COLLECT), [FeatureCurvature(structure=structure)])

    work = {
        "forward and backward": forward_backward,
        "without weight gradients": lambda: forward_backward(False),
    }
    seconds = in_turn(work | {"collection, M = 1": gather}, TURNS)
    print(f"collection against a pass, {BLOCKS} block(s), {COLLECT} images")
    ratio = show(seconds, "forward and backward", "collection, M = 1", COLLECT_BAR)
    for name, do in {
        "a forward and backward pass": forward_backward,
        "kfac, two batches": lambda: gather(2 * COLLECT),
        "kfac, four batches": lambda: gather(4 * COLLECT),
        "ekfac, one batch": lambda: gather(COLLECT, "ekfac"),
    }.items():
        seen = memory(do)
        print(f"  {name:<30}peak {seen.peak / 2**20:6.0f} MB, largest tensor {list(seen.shape)}")
    print(
        f"  weight gradients of each image of mlp.fc alone would take {COLLECT * 4 * 768 * 768 * 4 / 2**20:.0f} MB"
    )
    return ratio


def main() -> int:
    """Print the figures and return whether a bar is missed."""
    machine = platform.processor() or platform.machine()
    print(
        f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), {TURNS} turns"
    )
    model = build()
    collection = collection_against_pass(model)
    drift = penalty_against_step(model)
    return int(drift > PENALTY_BAR or collection > COLLECT_BAR)


if __name__ == "__main__":
    sys.exit(main())
