"""A tiny world for tests: a random CLIP, three tasks of coloured patterns, a control, in a folder a user could have."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

SIZE, WIDTH, LAYERS = 16, 32, 2
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": SIZE,
        "layers": LAYERS,
        "width": WIDTH,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
TASKS = ("stripes", "corners", "colours")
COUNTS = {"train": 48, "val": 24, "test": 30}
FAST = [
    "backbone=tiny",
    "suite=tiny",
    "finetune.steps=6",
    "finetune.warmup=1",
    "finetune.batch_size=16",
]


def build(root: Path) -> Path:
    """Write the world below ``root`` and return the folder to ``--include``."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(7)
    model = open_clip.model.CLIP(
        MODEL["embed_dim"],
        open_clip.model.CLIPVisionCfg(**MODEL["vision_cfg"]),
        open_clip.model.CLIPTextCfg(**MODEL["text_cfg"]),
    )
    folder = root / "clip"
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS})
    )
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    for index, task in enumerate((*TASKS, "control")):
        for split, count in COUNTS.items():
            write_split(
                root / "data" / task / f"{split}.parquet", task, count, seed=10 * index + len(split)
            )
    write_configs(root)
    return root


def write_configs(root: Path) -> None:
    """Write the YAML files that name the world."""
    for name in ("task", "suite", "backbone"):
        (root / name).mkdir(exist_ok=True)
    for task in (*TASKS, "control"):
        (root / "task" / f"{task}.yaml").write_text(
            f"path: {root}/data/{task}\ntemplates: ['a photo of {{}}']\n"
        )
    schema = "defaults:\n  - /schema/{}@_here_\n  - _self_\n"
    suite = schema.format("suite/images") + f"tasks: [{', '.join(TASKS)}]\ncontrol: control\n"
    (root / "suite" / "tiny.yaml").write_text(suite)
    recipe = "recipe: {lr: 3.0e-3, steps: 6, warmup: 1, batch_size: 16}\n"
    (root / "backbone" / "tiny.yaml").write_text(
        schema.format("backbone/clip") + f"architecture: {root}/clip\n{recipe}"
    )


def view(inputs, labels=None, head=None, name: str = "task/split"):
    """Return a view of tensors in memory."""
    from taskvec.data.views import View

    return View.of(
        {"inputs": inputs} | ({} if labels is None else {"labels": labels}), name=name, head=head
    )


def write_split(path: Path, task: str, count: int, seed: int, classes: int = 4) -> None:
    """Write one Parquet file with PNG images and class labels, as Hugging Face datasets does."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    cells = [{"bytes": png(pattern(task, int(label), rng)), "path": None} for label in labels]
    names = [f"{task} {number}" for number in range(classes)]
    write_table(path, cells, labels.tolist(), names)


def write_table(path: Path, images: list, labels: list, names: list[str] | None) -> None:
    """Write rows with the ``huggingface`` schema metadata that carries the class names."""
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ]
    )
    if names is not None:
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"image": images, "label": labels}, schema=schema), path)


def pattern(task: str, label: int, rng: np.random.Generator) -> np.ndarray:
    """Return an image whose class is easy to see: the place of a bright bar, corner or channel."""
    image = rng.integers(0, 90, (SIZE, SIZE, 3))
    half, quarter = SIZE // 2, SIZE // 4
    if task == "stripes":
        image[:, label * quarter : (label + 1) * quarter] += 150
    elif task == "corners":
        image[(label // 2) * half :, (label % 2) * half :][:half, :half] += 120
    elif task == "colours":
        image[..., label % 3] += 60 + 100 * (label // 3)
    else:
        image[label * quarter : (label + 1) * quarter] += 150
    return image.clip(0, 255).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    """Return an image's PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
