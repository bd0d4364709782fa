"""What purifying a layer costs and how exact it is: the projection against the authors' explicit inverse.

    OMP_NUM_THREADS=2 python tests/bench/pave.py

Random weights float32; 4,096 input rows of which a few channels have a large mean, as transformers' massive activations
are, so that the second moment is ill-conditioned. Explicit: the authors' route in float32 (spec 1.3, 1.4), the damping
loop over the fine-tuned and the pre-trained moment, SVD of W C, times the inverse. Exact: ``pruned_directions`` and
``without``. Errors are those of W_r against the same formula in float64 at each route's own damping, relative to |W|.
Times are medians of turns that alternate between the routes, each after a pause: threads of one route's BLAS, which
spin for a while when it is done, would slow the other one, the explicit route by a quarter. The ratio is that of CPU
seconds, so that other work on the machine matters little. Where the means are ten times smaller the damping loop ends
at once, and the tall layer's ratio is printed but not judged.
The last part purifies each kind of layer of ViT-L/14 once and counts the 24 blocks' together. Exits with 1 if exact is
not 5 times as fast and 10 times as accurate at 768x3072 and 3072x768, or a vector takes more than 10 minutes. Takes
about two minutes.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from taskvec.transform.subspace.faithful import damped, purified
from taskvec.transform.subspace.projection import pruned_directions, without
from taskvec.transform.subspace.ranks import rounded_rank

ROWS, OUTLIERS = 4096, 8
MEAN, MODERATE = 300.0, 30.0
RATIO, DAMPING, TOLERANCE = 0.984375, 0.1, 0.05
PAUSE = 0.1
TURNS = 9
SPEED_BAR, ERROR_BAR, MINUTES_BAR = 5.0, 10.0, 10.0
VIT_L14 = {(1024, 1024): 4 * 24, (4096, 1024): 24, (1024, 4096): 24, (768, 1024): 1}


def layer(outputs: int, inputs: int, mean: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight [out, in] float32 and the moments [in, in] float64 under two models."""
    moments = []
    for _ in range(2):
        rows = torch.randn(ROWS, inputs)
        rows[:, :OUTLIERS] += mean
        moments.append((rows.double().mT @ rows.double()) / ROWS)
    weight = torch.randn(outputs, inputs) / inputs**0.5
    return weight, *moments


def truth(weight: Tensor, moment: Tensor, rank: int, damping: float) -> Tensor:
    """Return U_r U_r^T W of the SVD of W (C + damping I), all in float64."""
    product = weight.double() @ (moment + damping * torch.eye(len(moment)))
    left, _, _ = torch.linalg.svd(product, full_matrices=False)
    return weight.double() - left[:, rank:] @ (left[:, rank:].mT @ weight.double())


def seconds(work: Callable[[], Tensor]) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    time.sleep(PAUSE)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(outputs: int, inputs: int, mean: float) -> bool:
    """Print both routes' times and errors at one shape and return whether the bars are met."""
    weight, moment, other = layer(outputs, inputs, mean)
    rank = rounded_rank(min(outputs, inputs), RATIO)

    def explicit() -> Tensor:
        return purified(weight, damped([moment, other], DAMPING, TOLERANCE), rank)

    def exact() -> Tensor:
        return without(weight, weight, pruned_directions(weight, moment, rank, damping=DAMPING))

    epsilon = damped([moment, other], DAMPING, TOLERANCE).epsilon
    condition = torch.linalg.cond(moment + DAMPING * torch.eye(inputs))
    errors = {}
    for name, found, at in (("explicit", explicit(), epsilon), ("exact", exact(), DAMPING)):
        errors[name] = float((found - truth(weight, moment, rank, at)).norm() / weight.norm())
    times: dict[str, list[tuple[float, float]]] = {"explicit": [], "exact": []}
    for _ in range(TURNS):
        times["explicit"].append(seconds(explicit))
        times["exact"].append(seconds(exact))
    medians = {
        name: [statistics.median(turn) for turn in zip(*found, strict=True)]
        for name, found in times.items()
    }
    speed = medians["explicit"][1] / medians["exact"][1]
    accuracy = errors["explicit"] / errors["exact"]
    print(
        f"{outputs} x {inputs}, rank {rank}, condition of C + 0.1 I {condition:.1e}, explicit damping {epsilon}"
    )
    for name in times:
        print(
            f"  {name:<10}{medians[name][0]:7.3f} s, {medians[name][1]:7.3f} CPU s, error {errors[name]:.1e}"
        )
    print(
        f"  {speed:.1f} times as fast (bar {SPEED_BAR}), error {accuracy:.0f} times smaller (bar {ERROR_BAR})"
    )
    return speed >= SPEED_BAR and accuracy >= ERROR_BAR


def whole_vector() -> bool:
    """Print what all layers of one vector of ViT-L/14 take and return whether that is within the bar."""
    total = 0.0
    print("ViT-L/14, one vector")
    for (outputs, inputs), count in VIT_L14.items():
        weight, moment, _ = layer(outputs, inputs, MODERATE)
        rank = rounded_rank(min(outputs, inputs), RATIO)
        start = time.process_time()
        without(weight, weight, pruned_directions(weight, moment, rank, damping=DAMPING))
        taken = time.process_time() - start
        total += count * taken
        print(f"  {count:3d} layers {outputs} x {inputs}: {taken:.2f} s each")
    print(f"  together {total / 60:.1f} minutes (bar {MINUTES_BAR})")
    return total <= 60 * MINUTES_BAR


def main() -> int:
    """Print the figures and return whether a bar is missed."""
    torch.manual_seed(0)
    machine = platform.processor() or platform.machine()
    print(
        f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), {TURNS} turns"
    )
    met = [compare(768, 3072, MEAN), compare(3072, 768, MEAN), whole_vector()]
    compare(768, 3072, MODERATE)
    compare(3072, 768, MODERATE)
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
