"""What the linear regime costs: a coefficient grid against one jvp, maps and matrices against forward passes.

    OMP_NUM_THREADS=1 python tests/bench/linear.py

CLIP image towers on 32-pixel images, 17 tokens, random weights, float32, full vectors, ten classes: mini_clip_s
(width 128, 4 blocks, feature 64) and a wider one (width 384, 2 blocks, feature 256). In turn: predicting 100 images
at 21 coefficients of a summed vector against one jvp of the same images; and for T = 4 and 8 tasks the maps of all
pairs on a 15 x 15 grid, and the T x T matrix, against 1 + 2T forward passes over the same images, 100 per task at
once. Freed memory is kept, as in every run. Products are counted, seconds are the process's own CPU time, so that other
work on the machine matters little. Exits with 1 if the grid takes more than 1.5 or a map or matrix more than 1.3 times
its reference.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import world
from asked import Given, tuned

from taskvec.data.views import View
from taskvec.graph.workspace import keep_freed_memory
from taskvec.models.clip.backbone import ClipModel
from taskvec.models.clip.config import vision_config
from taskvec.models.clip.vit import VisionTransformer
from taskvec.needs import Signed
from taskvec.protocols.disentanglement import GRID
from taskvec.protocols.questions.disentanglement import DisentanglementMaps, DisentanglementMatrix
from taskvec.protocols.questions.looking import report_on
from taskvec.training.linearise import jvp_features
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Scaled

IMAGES, TURNS, ALPHAS = 100, 5, [round(0.05 * i, 2) for i in range(21)]
TOWERS = {"width 128": (128, 4, 64), "width 384": (384, 2, 256)}
GRID_BAR, MAP_BAR = 1.5, 1.3
Work = Callable[[], object]


def tower(width: int, layers: int, features: int) -> ClipModel:
    """Return a tower with random weights."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "layers": layers, "width": width, "head_width": 32}
    config = vision_config({"embed_dim": features, "vision_cfg": vision, "text_cfg": {}})
    return ClipModel(VisionTransformer(config), [0.5] * 3, [0.25] * 3)


def images_of(view: View) -> Tensor:
    """Return all images of a view."""
    return view.take(slice(None))


def made(
    model: ClipModel, features: int, tasks: int
) -> tuple[dict[str, View], dict[str, TaskVector]]:
    """Return tasks of random images and heads, and a random vector for each."""
    views, vectors = {}, {}
    for task in (f"task{t}" for t in range(tasks)):
        images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
        labels = torch.randint(0, 10, (IMAGES,))
        views[task] = world.view(images, labels, torch.randn(10, features))
        vectors[task] = TaskVector(
            {n: 1e-2 * torch.randn_like(p) for n, p in model.parameters.items()}
        )
    return views, vectors


def given(model: ClipModel, views: dict[str, View]) -> Given:
    """Return what a question about the tasks' test images is given."""
    return Given(model, {(task, "test"): view for task, view in views.items()})


def in_tangent(model: ClipModel, vector: TaskVector) -> Scaled:
    """Return the linearised composition theta_0 + alpha tau."""
    composition = Scaled(model.parameters, vector)
    composition.forward = "tangent"
    return composition


def seconds(work: Work) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def products(work: Work) -> float:
    """Return the multiply-adds of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def compare(name: str, work: Work, reference: Work, factor: int, bar: float) -> bool:
    """Print counted and timed ratios of ``work`` to ``factor`` times ``reference`` and return whether the bar holds."""
    counted = products(work) / (factor * products(reference))
    ours, theirs = [], []
    for _ in range(TURNS):
        theirs += [seconds(reference), seconds(reference)]
        ours.append(seconds(work))
    base = factor * statistics.median(theirs)
    timed = statistics.median(ours) / base
    spread = f"{min(ours):.3f} {statistics.median(ours):.3f} {max(ours):.3f}"
    other = f"{factor} x {min(theirs):.4f} {statistics.median(theirs):.4f} {max(theirs):.4f}"
    print(
        f"{name:<32}{spread:<24}{other:<32}{counted:>8.2f}{timed:>8.2f}   (bar {bar})", flush=True
    )
    return timed <= bar


def grid(label: str, model: ClipModel, features: int) -> bool:
    """Compare the 21 coefficients of a summed vector with one jvp of the same images."""
    views, vectors = made(model, features, 4)
    merged, view = sum(vectors.values()), views["task0"]
    asked = given(model, {"task0": view})
    composition = in_tangent(model, merged)

    def all_alphas() -> object:
        return asked.evaluator.predictions(composition, [report_on("task0")], ALPHAS)

    def one() -> object:
        return jvp_features(model, merged, images_of(view))

    return compare(f"{label}, 21 alphas", all_alphas, one, 1, GRID_BAR)


def maps(label: str, model: ClipModel, features: int, tasks: int) -> bool:
    """Compare maps and matrix over T tasks with 1 + 2T forward passes over their images."""
    views, vectors = made(model, features, tasks)
    asked = given(model, views)
    signed = [Signed(tuned(task), 1.0, vector) for task, vector in vectors.items()]
    composition = in_tangent(model, TaskVector({}))
    questions = {
        "maps": DisentanglementMaps(grid=GRID, pairs=tuple(combinations(views, 2))),
        "matrix": DisentanglementMatrix(alpha=1.0),
    }

    def forward() -> list[Tensor]:
        return [model.features(model.parameters, images_of(view)) for view in views.values()]

    held = []
    for name, question in questions.items():
        title = f"{label}, T = {tasks}, {name}"
        held.append(
            compare(
                title,
                lambda q=question: q.answer(asked, composition, signed),
                forward,
                1 + 2 * tasks,
                MAP_BAR,
            )
        )
    return all(held)


def main() -> int:
    """Print the figures and return whether every bar holds."""
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    threads = torch.get_num_threads()
    print(
        f"{platform.machine()}, {threads} thread(s), torch {torch.__version__}, {TURNS} turns, seconds: min median max"
    )
    print(f"{'':<32}{'ours':<24}{'reference':<32}{'counted':>8}{'timed':>8}")
    held = []
    with torch.no_grad():
        for label, (width, layers, features) in TOWERS.items():
            model = tower(width, layers, features)
            held.append(grid(label, model, features))
            held += [maps(label, model, features, tasks) for tasks in (4, 8)]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
