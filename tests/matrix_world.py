"""The tiny worlds of the matrix of combinations: two tasks a family, a wider backbone beside each, a harness task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import world
import world_text
import yaml

FAMILIES = {  # family: (backbone, a wider one, suite)
    "clip": ("tiny", "tiny_wide", "tiny"),
    "causal": ("tiny_llama", "tiny_llama_wide", "tiny_texts"),
    "encoder": ("tiny_roberta", "tiny_roberta_wide", "tiny_texts"),
    "text_to_text": ("tiny_t5", "tiny_t5_wide", "tiny_texts"),
}
WIDER = {"hidden_size": 48, "intermediate_size": 80, "d_model": 48, "d_ff": 80, "n_embd": 48}
THINGS = ("film", "song", "book", "play")
QUALITIES = ("good", "fine", "bad", "dull")
VERBS = {"train": "was", "val": "is", "test": "seemed"}
LABELS = [0, 0, 1, 1]  # of the qualities
QUESTIONS = {
    "fine_or_not": "Is it good?",
    "liked": "Was it liked?",
    "praise": "Praise or blame?",
    "held": "Any good?",
}
CHOICE = {
    "task": "tiny_choice",
    "dataset_path": "parquet",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Review: {{text}}\nSentiment:",
    "doc_to_choice": ["negative", "positive"],
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}


@contextmanager
def included(root: Path) -> Iterator[Path]:
    """Build the worlds below ``root`` and include them, on one thread: tiny models are slower on several."""
    import torch

    from taskvec.runner import compose

    build(root)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKVEC_INCLUDE", str(root))
        compose.register_all()
        yield root
    torch.set_num_threads(threads)


def build(root: Path) -> Path:
    """Write both worlds and their wider backbones below ``root`` and return the folder to ``--include``."""
    world.build(root)
    _widen_images(root)
    world_text.build(root)
    _widen_texts(root)
    _write_texts(root)
    (root / "suite" / "tiny.yaml").write_text(
        "defaults:\n  - /schema/suite/images@_here_\n  - _self_\n"
        "tasks: [stripes, corners]\ncontrol: control\nheld_out: [colours]\n"
    )
    return root


def _widen_images(root: Path) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(8)
    tower = world.MODEL["vision_cfg"] | {"width": 48}
    sizes = world.MODEL | {"vision_cfg": tower}
    model = open_clip.model.CLIP(
        sizes["embed_dim"],
        open_clip.model.CLIPVisionCfg(**tower),
        open_clip.model.CLIPTextCfg(**sizes["text_cfg"]),
    )
    folder = root / "clip_wide"
    folder.mkdir()
    settings = {"model_cfg": sizes, "preprocess_cfg": world.PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    narrow = (root / "backbone" / "tiny.yaml").read_text()
    (root / "backbone" / "tiny_wide.yaml").write_text(
        narrow.replace(f"{root}/clip\n", f"{root}/clip_wide\n")
    )


def _widen_texts(root: Path) -> None:
    import torch
    import transformers

    for name, (_, model_type, published, sizes) in world_text.MODELS.items():
        wider = {key: WIDER.get(key, size) for key, size in sizes.items()}
        torch.manual_seed(4)
        config = transformers.AutoConfig.for_model(model_type, **wider)
        getattr(transformers, published)(config).save_pretrained(root / "models" / f"{name}_wide")
        narrow = (root / "backbone" / f"{name}.yaml").read_text()
        wide = narrow.replace(f"/models/{name}\n", f"/models/{name}_wide\n")
        (root / "backbone" / f"{name}_wide.yaml").write_text(wide)


def _write_texts(root: Path) -> None:
    """Write four tasks that ask about the same reviews in other words, and a task of the harness."""
    (root / "reviews").mkdir()
    for split, verb in VERBS.items():
        texts = [f"the {thing} {verb} {quality}" for thing in THINGS for quality in QUALITIES]
        table = pa.table({"text": texts, "label": LABELS * len(THINGS)})
        parquet.write_table(table, root / "reviews" / f"{split}.parquet")
    for task, question in QUESTIONS.items():
        settings = {"path": f"{root}/reviews", "classes": ["positive", "negative"]}
        settings["frame"] = f"{question} {{text}}\nAnswer:"
        (root / "task" / f"{task}.yaml").write_text(yaml.safe_dump(settings))
    (root / "suite" / "tiny_texts.yaml").write_text(
        "defaults:\n  - /schema/suite/texts@_here_\n  - _self_\n"
        "tasks: [fine_or_not, liked]\ncontrol: praise\nheld_out: [held]\n"
    )
    (root / "harness").mkdir()
    files = {"data_files": {"test": f"{root}/reviews/test.parquet"}}
    (root / "harness" / "tiny_choice.yaml").write_text(
        yaml.safe_dump(CHOICE | {"dataset_kwargs": files})
    )
