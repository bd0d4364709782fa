"""How much memory the moments of every linear layer's inputs take at ViT-L/14's shapes, eight tasks one after another.

    OMP_NUM_THREADS=2 python tests/bench/covariance.py [IMAGES]      (16 a task by default)

Random float32 weights and a task vector in a file, as a run has them; random 224-pixel images. For each task the
weights theta_0 + tau are composed, the moments that PAVE takes of them collected on IMAGES images, and written as the
store writes them. Prints the seconds of a task and the peak of anonymous memory, of which weights and moments are
named; pages that mirror a file are not counted, because the system can drop them. Exits with 1 above 6 GB. Takes about
five minutes.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memory import Memory

from taskvec.models.clip.backbone import ClipModel
from taskvec.models.clip.config import linear_layers, open_clip_config, vision_config
from taskvec.models.clip.vit import VisionTransformer
from taskvec.on_disk.meter import Peak, anonymous
from taskvec.statistics.collect import Batches, collect
from taskvec.statistics.input_moments import InputMoments
from taskvec.vectors import TaskVector
from taskvec.vectors.deferred import save_tensors

ARCHITECTURE, TASKS, IMAGES, BAR = "ViT-L-14", 8, 16, 6e9


def build() -> ClipModel:
    """Return the image tower with random weights."""
    config = vision_config(open_clip_config(ARCHITECTURE))
    model = ClipModel(VisionTransformer(config), (0.5,) * 3, (0.25,) * 3)
    model.layers = linear_layers(config)
    return model


def size(tensors: dict[str, Tensor]) -> float:
    """Return the gigabytes of some tensors."""
    return sum(tensor.nbytes for tensor in tensors.values()) / 1e9


def moments(model: ClipModel, vector: TaskVector, images: int, place: Path) -> float:
    """Collect one task's moments, write them, and return their gigabytes."""
    view = Memory(torch.randint(256, (images, 3, 224, 224), dtype=torch.uint8))
    weights = vector.apply_to(model.parameters)
    statistic = InputMoments()
    (found,) = collect(model, Batches(view), [statistic], parameters=weights)
    tensors, _ = statistic.pack(found)
    save_tensors(place, tensors)
    return size(tensors)


def main(images: int) -> int:
    """Print the figures and return whether the bar is missed."""
    torch.manual_seed(0)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"
    print(f"{machine}, torch {torch.__version__}, {ARCHITECTURE}, {images} images a task")
    model = build()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "vector.safetensors")
        deltas = {name: 1e-3 * torch.randn_like(w) for name, w in model.parameters.items()}
        TaskVector(deltas).save(place)
        del deltas
        vector = TaskVector.load(place)
        print(f"with the weights ({size(model.parameters):.2f} GB): {anonymous() / 1e9:.2f} GB")
        with Peak() as peak:
            for number in range(TASKS):
                start = time.perf_counter()
                taken = moments(model, vector, images, Path(folder, "moments.safetensors"))
                seconds = time.perf_counter() - start
                print(f"task {number + 1}: {seconds:5.1f} s, moments {taken:.2f} GB", flush=True)
    print(f"peak of anonymous memory {peak.bytes / 1e9:.2f} GB, bar {BAR / 1e9:.0f} GB")
    return int(peak.bytes > BAR)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES))
