"""What learning coefficients costs at the shapes of CLIP ViT-B/32's image tower, beyond the model's own passes.

    OMP_NUM_THREADS=1 python tests/bench/atlas.py

87.8 million float32 weights in 152 tensors. Vectors of random numbers lie in safetensors files that are mapped into
memory, 8 and 21 of them (three files, opened again and again), a coefficient for each tensor and vector. In turn:
composing the weights and taking the gradient of the coefficients, given that of the weights; and the same by
autograd's graph over all scaled vectors. Seconds are the process's own CPU time, so that other work on the machine
matters little, the median of some turns; memory is the peak of what is allocated beyond inputs, in bytes of the
weights, by the growth of the process without the pages of files. Then the scores of 64 vectors out of one gradient,
against one coefficient gradient of as many. Exits with 1 if the graph is not three times slower, if memory exceeds 2.5
times the weights or grows with the number of vectors, or if selecting takes more than one look at each vector.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from taskvec.merge.learned import choosing
from taskvec.training.blocks import blocks
from taskvec.training.coefficients import Coefficients
from taskvec.vectors import TaskVector

WIDTH, DEPTH, HIDDEN, FEATURES = 768, 12, 3072, 512
COUNTS, MANY, FILES, TURNS = (8, 21), 64, 3, 3
SPEED_BAR, MEMORY_BAR = 3.0, 2.5


def shapes() -> dict[str, tuple[int, ...]]:
    """The tower's tensors, q, k and v packed as in the official checkpoint."""
    found: dict[str, tuple[int, ...]] = {
        "class_embedding": (WIDTH,),
        "positional_embedding": (50, WIDTH),
        "proj": (WIDTH, FEATURES),
        "conv1.weight": (WIDTH, 3, 32, 32),
    }
    for name in ("ln_pre", "ln_post"):
        found |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for block in range(DEPTH):
        matrices = {"in_proj": (3 * WIDTH, WIDTH), "out": (WIDTH, WIDTH)}
        matrices |= {"fc": (HIDDEN, WIDTH), "proj": (WIDTH, HIDDEN)}
        for name, shape in matrices.items():
            found |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for norm in ("ln_1", "ln_2"):
            found |= {f"{block}.{norm}.weight": (WIDTH,), f"{block}.{norm}.bias": (WIDTH,)}
    return found


def resident() -> int:
    """Bytes of anonymous memory in use; pages of mapped files are not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("needs Linux")


def peak(work: Callable[[], object]) -> int:
    """The most anonymous memory in use while some work is done, beyond that at its start."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is allocated now
    start, most, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return most[0] - start


def seconds(work: Callable[[], object]) -> float:
    """The median CPU time of some turns after one to warm up."""
    work()
    times = []
    for _ in range(TURNS):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def explicit(trained: Coefficients, gradient: dict[str, Tensor]) -> Tensor:
    """The gradient of the coefficients by the graph over all scaled vectors."""
    leaf = trained.coefficients
    composed = {}
    for name in trained.names:
        column = trained.blocks.layouts[name].first
        total = trained.base[name]
        for row, vector in enumerate(trained.vectors):
            total = total + leaf[row, column] * vector[name]
        composed[name] = total
    return torch.autograd.grad(
        list(composed.values()), leaf, [gradient[name] for name in composed]
    )[0]


def own(trained: Coefficients, gradient: dict[str, Tensor]) -> Tensor:
    """The same by the one autograd function."""
    composed = trained.parameters()
    return torch.autograd.grad(
        list(composed.values()), trained.coefficients, [gradient[name] for name in composed]
    )[0]


class Counted(dict):
    """A vector that counts how often each tensor is looked at."""

    def __init__(self, vector: TaskVector):
        super().__init__(dict.fromkeys(vector))
        self.vector, self.looks = vector, 0

    def __getitem__(self, name: str) -> Tensor:
        self.looks += 1
        return self.vector[name]


def main() -> int:
    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in shapes().items()}
    size = sum(4 * tensor.numel() for tensor in base.values())
    gradient = {name: torch.randn_like(tensor) for name, tensor in base.items()}
    cut = blocks("tensor", {name: tensor.shape for name, tensor in base.items()})
    failed, memory = False, {}
    with tempfile.TemporaryDirectory() as place:
        files = []
        for number in range(FILES):
            files.append(Path(place, f"{number}.safetensors"))
            TaskVector(
                {name: 0.01 * torch.randn_like(tensor) for name, tensor in base.items()}
            ).save(files[-1])
        vectors = [TaskVector.load(files[number % FILES]) for number in range(max(COUNTS))]
        print(
            f"{len(base)} tensors, {size / 4e6:.1f} million weights, {torch.get_num_threads()} threads"
        )
        for count in COUNTS:
            trained = Coefficients(base, vectors[:count], cut)
            trained.coefficients.data.normal_()
            torch.testing.assert_close(
                own(trained, gradient), explicit(trained, gradient), rtol=1e-3, atol=1e-1
            )
            memory[count] = peak(lambda trained=trained: own(trained, gradient)) / size
            graph_memory = peak(lambda trained=trained: explicit(trained, gradient)) / size
            fast = seconds(lambda trained=trained: own(trained, gradient))
            slow = seconds(lambda trained=trained: explicit(trained, gradient))
            failed |= slow < SPEED_BAR * fast or memory[count] > MEMORY_BAR
            print(
                f"{count:3d} vectors: {fast:6.3f} s, by the graph {slow:6.3f} s,"
                f" ratio {slow / fast:5.2f} (bar {SPEED_BAR});"
                f" memory {memory[count]:.2f} of the weights (bar {MEMORY_BAR}), by the graph {graph_memory:.2f}"
            )
        failed |= memory[COUNTS[1]] > memory[COUNTS[0]] + 0.25
        counted = [Counted(vectors[number % len(vectors)]) for number in range(MANY)]
        begun = time.process_time()
        scores = choosing.slopes(gradient, counted, cut)
        took = time.process_time() - begun
        looks = sum(vector.looks for vector in counted)
        failed |= looks != MANY * len(base)
        assert scores.shape == (MANY, cut.count)
        print(
            f"selection among {MANY}: {took:.3f} s, {looks} looks at {MANY} x {len(base)} tensors"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
