"""What merging costs at ViT-B/32's shapes with eight vectors.

    OMP_NUM_THREADS=1 python tests/bench/merging.py [blocks]

Random float32 vectors in the shapes of some of the twelve transformer blocks (width 768; four unless told otherwise).
Times, in turn: TIES against its formula as FusionBench structures it (all vectors as flat copies [8, d], ``kthvalue``
for each vector's threshold, whole-array masks), with the memory that each has alive beyond its inputs; and, on one
block, TSV-Merge and Iso-C against straightforward full SVDs in float64, whose result is the same, and in float32, whose
result is not. All costs are linear in the number of blocks. Seconds are the process's own CPU time, so that other work
on the machine matters little. Exits with 1 if TIES is less than 3 times faster or takes more than half the memory, if
TSV or Iso-C is less than 1.5 times faster than the SVDs in float64, or if a result differs by more than 1e-6. Takes
about four minutes on one thread.
"""

from __future__ import annotations

import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from meter import Memory
from torch import Tensor

from taskvec.merge.base import TensorWise
from taskvec.merge.sparse.ties import Ties
from taskvec.merge.spectral.iso_c import IsoC
from taskvec.merge.spectral.tsv import Tsv

WIDTH, HIDDEN, VECTORS, TURNS = 768, 3072, 8, 3
TIES_BAR, MEMORY_BAR, SPECTRAL_BAR = 3.0, 0.5, 1.5
EQUAL = 1e-6

Deltas = Mapping[str, Tensor]


def shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    """Return the parameters of some transformer blocks."""
    found: dict[str, tuple[int, ...]] = {}
    for block in range(blocks):
        for layer in ("q", "k", "v", "out"):
            found[f"{block}.{layer}.weight"] = (WIDTH, WIDTH)
            found[f"{block}.{layer}.bias"] = (WIDTH,)
        found[f"{block}.fc.weight"] = (HIDDEN, WIDTH)
        found[f"{block}.fc.bias"] = (HIDDEN,)
        found[f"{block}.proj.weight"] = (WIDTH, HIDDEN)
        found[f"{block}.proj.bias"] = (WIDTH,)
        for norm in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            found[f"{block}.{norm}"] = (WIDTH,)
    return found


def vectors(blocks: int) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return base weights (zeros; no merge here looks at them) and vectors with a part in common."""
    generator = torch.Generator().manual_seed(0)

    def drawn() -> dict[str, Tensor]:
        return {
            name: 1e-3 * torch.randn(shape, generator=generator)
            for name, shape in shapes(blocks).items()
        }

    common = drawn()
    found = []
    for _ in range(VECTORS):
        own = drawn()
        found.append({name: own[name] + 0.5 * common[name] for name in own})
    return {name: torch.zeros_like(tensor) for name, tensor in common.items()}, found


def merged(method: TensorWise, base: Deltas, deltas: Sequence[Deltas]) -> Deltas:
    """Return the merged vector."""
    return method.merged(base, deltas, None)


def flat_ties(deltas: Sequence[Deltas], density: float) -> dict[str, Tensor]:
    """Return TIES with its mean, on flat copies of all vectors."""
    flat = torch.stack(
        [torch.cat([delta[name].reshape(-1) for name in sorted(delta)]) for delta in deltas]
    )
    d = flat.shape[1]
    rank = d - int(d * density)
    thresholds, _ = flat.abs().kthvalue(rank, dim=1, keepdim=True)
    trimmed = flat * (flat.abs() >= thresholds)
    sign = torch.sign(trimmed.sum(dim=0))
    majority = torch.sign(sign.sum())
    sign[sign == 0] = majority
    agreeing = torch.where(sign.unsqueeze(0) > 0, trimmed > 0, trimmed < 0)
    selected = trimmed * agreeing
    counts = (selected != 0).sum(dim=0).float()
    mean = selected.sum(dim=0) / counts.clamp(min=1)
    found, start = {}, 0
    for name in sorted(deltas[0]):
        like = deltas[0][name]
        found[name] = mean[start : start + like.numel()].view(like.shape)
        start += like.numel()
    return found


def full_svd_tsv(deltas: Sequence[Deltas], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return TSV-Merge of the matrices by two times T + 2 full SVDs each."""
    found = {}
    for name in matrices(deltas[0]):
        rank = min(deltas[0][name].shape) // len(deltas)
        parts = [torch.linalg.svd(delta[name].to(dtype), full_matrices=False) for delta in deltas]
        left = torch.cat([part[0][:, :rank] for part in parts], dim=1)
        values = torch.cat([part[1][:rank] for part in parts])
        right = torch.cat([part[2][:rank] for part in parts], dim=0)
        found[name] = (full_svd_polar(left) * values) @ full_svd_polar(right)
    return found


def full_svd_iso(deltas: Sequence[Deltas], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return Iso-C of the matrices by a full SVD each."""
    found = {}
    for name in matrices(deltas[0]):
        total = sum(delta[name] for delta in deltas).to(dtype)
        left, values, right = torch.linalg.svd(total, full_matrices=False)
        found[name] = values.mean() * (left @ right)
    return found


def full_svd_polar(matrix: Tensor) -> Tensor:
    """Return U V^T."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def matrices(delta: Deltas) -> list[str]:
    """Return the names of the matrices."""
    return [name for name, tensor in delta.items() if tensor.ndim == 2]


def in_turn(work: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each piece of work, done in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(turns):
        for name, do in work.items():
            gc.collect()
            start = time.process_time()
            do()
            seconds[name].append(time.process_time() - start)
    return seconds


def show(
    seconds: Mapping[str, Sequence[float]], ours: str, bar: float, against: Sequence[str]
) -> bool:
    """Print the times and how many times faster ours is than each other, by medians; return whether a bar is missed.

    The first of the others is what the bar is about.
    """
    for name, values in seconds.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {name:<34}min {low:7.3f}  median {middle:7.3f}  max {high:7.3f} s")
    own = statistics.median(seconds[ours])
    ratios = [statistics.median(seconds[other]) / own for other in against]
    for other, ratio in zip(against, ratios, strict=True):
        print(f"  {ours} is {ratio:.2f} times faster than {other}")
    print(f"  bar {bar}")
    return ratios[0] < bar


def difference(found: Deltas, expected: Deltas) -> float:
    """Return the largest relative difference of a tensor in the Frobenius norm."""
    worst = 0.0
    for name, tensor in expected.items():
        wide = tensor.double()
        gap = (found[name].double() - wide).norm() / wide.norm()
        worst = max(worst, float(gap))
    return worst


def peak(do: Callable[[], object], inputs: Sequence[Deltas]) -> float:
    """Return the bytes alive at once among the tensors that a piece of work makes; views of inputs are none."""
    gc.collect()
    given = [tensor for tensors in inputs for tensor in tensors.values()]
    with Memory(given) as seen:
        do()
    return seen.peak


def ties(blocks: int) -> bool:
    """Compare TIES with its flat form and return whether a bar is missed."""
    base, deltas = vectors(blocks)
    entries = sum(tensor.numel() for tensor in base.values())
    method = Ties()
    print(f"TIES, {VECTORS} vectors of {entries / 1e6:.1f} million entries ({blocks} blocks)")
    work = {
        "ours": lambda: merged(method, base, deltas),
        "flat copies": lambda: flat_ties(deltas, method.density),
    }
    slow = show(in_turn(work, TURNS), "ours", TIES_BAR, ["flat copies"])
    memory = {name: peak(do, [base, *deltas]) for name, do in work.items()}
    share = memory["ours"] / memory["flat copies"]
    for name, size in memory.items():
        print(f"  {name:<34}{size / 2**20:8.0f} MB beyond inputs")
    gap = difference(work["ours"](), work["flat copies"]())
    print(
        f"  memory {share:.3f} of the flat form's (bar {MEMORY_BAR}), relative difference {gap:.1e}"
    )
    return slow or share > MEMORY_BAR or gap > EQUAL


def spectral() -> bool:
    """Compare TSV-Merge and Iso-C with full SVDs and return whether a bar is missed."""
    base, deltas = vectors(1)
    missed = False
    for name, method, full in (("TSV-Merge", Tsv(), full_svd_tsv), ("Iso-C", IsoC(), full_svd_iso)):
        print(f"{name}, {VECTORS} vectors, one block")
        work = {
            "ours": lambda method=method: merged(method, base, deltas),
            "full SVDs in float64": lambda full=full: full(deltas, torch.float64),
            "full SVDs in float32": lambda full=full: full(deltas, torch.float32),
        }
        missed |= show(
            in_turn(work, TURNS),
            "ours",
            SPECTRAL_BAR,
            ["full SVDs in float64", "full SVDs in float32"],
        )
        exact = work["full SVDs in float64"]()
        gap = difference(work["ours"](), exact)
        single = difference(work["full SVDs in float32"](), exact)
        print(
            f"  relative difference from float64: ours {gap:.1e} (bar {EQUAL}), float32 SVDs {single:.1e}"
        )
        missed |= gap > EQUAL
    return missed


def main() -> int:
    """Print the figures and return whether a bar is missed."""
    machine = platform.processor() or platform.machine()
    print(
        f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), {TURNS} turns"
    )
    blocks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    missed = ties(blocks)
    missed |= spectral()
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
