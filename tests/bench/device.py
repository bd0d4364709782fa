"""What statistics, maps, projections and merges take on a GPU against the CPU, and that both find the same.

    python tests/bench/device.py [--small]

Random weights and images. Statistics at ViT-B/32 (a whole tower, 224-pixel images) and from one block of ViT-B/16 to
one of ViT-B/16-plus; projections and maps of PAVE and Theseus at the widths of ViT-B; merges of eight vectors in the
shapes of two of its blocks. Times are wall seconds after one call that does not count; the difference is the largest
one of a tensor in the Frobenius norm, relative. ``--small`` takes one block and few images, to try the script without a
GPU, where it compares the CPU with itself. Exits with 1 if a difference exceeds what the piece allows.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import theseus
import torch
from merging import merged, vectors
from torch import Tensor

from taskvec.merge.base import TensorWise
from taskvec.merge.sparse.dare import Dare
from taskvec.merge.sparse.ties import Ties
from taskvec.merge.spectral.iso_c import IsoC
from taskvec.merge.spectral.tsv import Tsv
from taskvec.models.clip.backbone import ClipModel
from taskvec.models.clip.config import linear_layers, open_clip_config, vision_config
from taskvec.models.clip.vit import VisionTransformer
from taskvec.statistics.base import Statistic
from taskvec.statistics.collect import collect
from taskvec.statistics.cross_moments import CrossMoments
from taskvec.statistics.curvature import FeatureCurvature
from taskvec.statistics.input_moments import InputMoments
from taskvec.transform.alignment.procrustes import align
from taskvec.transform.subspace.projection import pruned_directions, without

Tensors = Mapping[str, Tensor]
ROWS = 4096


class Piece(NamedTuple):
    """Work of which the result on a device is asked for, and how far it may differ from the CPU's."""

    name: str
    on: Callable[[torch.device], Tensors]
    allowed: float


def tower(blocks: int, device: torch.device) -> ClipModel:
    """Return a ViT-B/32 with random weights on a device."""
    described = open_clip_config("ViT-B-32")
    described["vision_cfg"]["layers"] = blocks
    config = vision_config(described)
    torch.manual_seed(0)
    model = ClipModel(VisionTransformer(config).to(device), (0.5,) * 3, (0.25,) * 3)
    model.layers = linear_layers(config)
    return model


def collected(statistic: Statistic, blocks: int, count: int) -> Callable[[torch.device], Tensors]:
    """Return the collection of a statistic of one model on ``count`` images."""
    images = torch.randint(256, (count, 3, 224, 224), dtype=torch.uint8)

    def on(device: torch.device) -> Tensors:
        model = tower(blocks, device)
        (value,) = collect(model, images.to(device).split(32), [statistic])
        return statistic.pack(value)[0]

    return on


def crossed(count: int) -> Callable[[torch.device], Tensors]:
    """Return the cross-moments of one block of each of two models on ``count`` images."""
    sides = (224, 240)
    images = [torch.randint(256, (count, 3, side, side), dtype=torch.uint8) for side in sides]

    def on(device: torch.device) -> Tensors:
        torch.manual_seed(0)
        names = ("ViT-B-16", "ViT-B-16-plus-240")
        models = tuple(theseus.tower(name, device) for name in names)
        batches = zip(*(pixels.to(device).split(32) for pixels in images), strict=True)
        (value,) = collect(models, list(batches), [CrossMoments()])
        return value.tensors

    return on


def purified(outputs: int, inputs: int) -> Callable[[torch.device], Tensors]:
    """Return the purification of a layer whose inputs have a few channels with a large mean."""
    rows = torch.randn(ROWS, inputs, dtype=torch.float64)
    rows[:, :8] += 30
    moment = rows.mT @ rows / ROWS
    weight = torch.randn(outputs, inputs) / inputs**0.5

    def on(device: torch.device) -> Tensors:
        own, seen = weight.to(device), moment.to(device)
        rank = min(outputs, inputs) - 12
        directions = pruned_directions(own, seen, rank, damping=0.1)
        return {"weight": without(own, own, directions)}

    return on


def mapped(source: int, target: int, tolerance: float) -> Callable[[torch.device], Tensors]:
    """Return the map of a random cross-moment of full rank."""
    common = torch.randn(2 * target, source, dtype=torch.float64)
    other = common @ torch.randn(source, target, dtype=torch.float64)
    cross = common.mT @ (other + torch.randn(2 * target, target, dtype=torch.float64))

    def on(device: torch.device) -> Tensors:
        return {"map": align(cross.to(device), tolerance).map}

    return on


def combined(method: TensorWise, blocks: int) -> Callable[[torch.device], Tensors]:
    """Return a merge of eight vectors."""
    base, deltas = vectors(blocks)

    def on(device: torch.device) -> Tensors:
        own = {name: tensor.to(device) for name, tensor in base.items()}
        moved = [{name: tensor.to(device) for name, tensor in delta.items()} for delta in deltas]
        return merged(method, own, moved)

    return on


def pieces(*, small: bool) -> list[Piece]:
    """Return all work."""
    blocks, images, width = (1, 8, 96) if small else (12, 256, 768)
    return [
        Piece("input moments, ViT-B/32", collected(InputMoments(), blocks, images), 1e-4),
        Piece("curvature, ViT-B/32", collected(FeatureCurvature(), blocks, images // 4), 1e-3),
        Piece("cross-moments, B/16 to plus", crossed(images // 4), 1e-4),
        Piece(f"PAVE {width}x{4 * width}", purified(width, 4 * width), 1e-6),
        Piece(f"PAVE {4 * width}x{width}", purified(4 * width, width), 1e-6),
        Piece(f"map {width}x{width + 128}, SVD", mapped(width, width + 128, 0.0), 1e-6),
        Piece(f"map {4 * width} wide, Gram", mapped(4 * width, 4 * width + 512, 1e-4), 1e-6),
        Piece("TIES, 8 vectors", combined(Ties(), 1 if small else 2), 1e-6),
        Piece("DARE, 8 vectors", combined(Dare(), 1 if small else 2), 1e-6),
        Piece("TSV, 8 vectors", combined(Tsv(), 1), 1e-5),
        Piece("Iso-C, 8 vectors", combined(IsoC(), 1 if small else 2), 1e-5),
    ]


def difference(found: Tensors, expected: Tensors) -> float:
    """Return the largest relative difference of a tensor."""
    worst = 0.0
    for name, tensor in expected.items():
        wide = tensor.double()
        gap = (found[name].cpu().double() - wide).norm() / wide.norm().clamp(min=1e-30)
        worst = max(worst, float(gap))
    return worst


def timed(piece: Piece, device: torch.device) -> tuple[Tensors, float]:
    """Return a piece's result and its wall seconds."""
    start = time.perf_counter()
    result = piece.on(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def main() -> int:
    """Print the table and return whether a difference is too large."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    card = torch.cuda.get_device_name() if cuda else "no GPU"
    machine = platform.processor() or platform.machine()
    print(f"{card}; {machine}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    print(f"{'':<30}{'CPU s':>8}{'GPU s':>8}{'times':>7}{'peak MB':>9}{'difference':>12}")
    bad = 0
    for piece in pieces(small=small):
        expected, there = timed(piece, torch.device("cpu"))
        piece.on(device)
        gc.collect()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        found, here = timed(piece, device)
        peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else 0
        gap = difference(found, expected)
        mark = "" if gap <= piece.allowed else f"  more than {piece.allowed}"
        bad += bool(mark)
        numbers = f"{there:8.2f}{here:8.3f}{there / here:7.0f}{peak:9.0f}{gap:12.1e}"
        print(f"{piece.name:<30}{numbers}{mark}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
