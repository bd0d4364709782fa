"""Check a mini CLIP: zero-shot accuracy, individual fine-tuning and task arithmetic on one seed.

    python experiments/mini/check_clip.py taskvec/data/assets/mini_clip_s --split val
    python experiments/mini/check_clip.py taskvec/data/assets/mini_clip_s --zero-shot

Independent of the framework on purpose: it loads the folder with open_clip alone and trains with a few lines of
PyTorch, so that the assets and the framework check one another.
"""

import argparse
import copy
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
import yaml
from paths import CONF_TASK, SUITE
from PIL import Image
from torch.nn import functional

EIGHT = ("mnist", "fashion", "letters", "digits", "scripts", "emoji", "climate", "brain")
OTHERS = ("objects", "kana", "optdigits")
ALPHAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)


def read(task: str, split: str, normalise: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images and labels of one split."""
    table = pq.read_table(SUITE / task / f"{split}.parquet")
    images = np.stack(
        [np.array(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(normalise[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    return (pixels - mean) / std, torch.tensor(table["label"].to_pylist())


def class_names(task: str) -> list[str]:
    """The class names in the Parquet schema."""
    metadata = json.loads(pq.read_schema(SUITE / task / "val.parquet").metadata[b"huggingface"])
    return metadata["info"]["features"]["label"]["names"]


@torch.no_grad()
def head(model: torch.nn.Module, tokenizer: open_clip.SimpleTokenizer, task: str) -> torch.Tensor:
    """The zero-shot classifier: text features averaged over the task's templates."""
    config = yaml.safe_load((CONF_TASK / f"{task}.yaml").read_text())
    rows = []
    for name in config.get("classes") or class_names(task):
        features = model.encode_text(
            tokenizer([template.format(name) for template in config["templates"]])
        )
        rows.append(functional.normalize(functional.normalize(features, dim=-1).mean(0), dim=-1))
    return torch.stack(rows)


@torch.no_grad()
def accuracy(
    tower: torch.nn.Module, weights: torch.Tensor, data: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """Percent of images classified correctly."""
    images, labels = data
    hits = [(tower(x) @ weights.T).argmax(1) for x in images.split(500)]
    return 100 * (torch.cat(hits) == labels).float().mean().item()


def finetune(
    tower: torch.nn.Module,
    weights: torch.Tensor,
    data: tuple,
    scale: float,
    args: argparse.Namespace,
) -> None:
    """Fine-tune the whole image tower against the frozen head."""
    images, labels = data
    generator = torch.Generator().manual_seed(args.seed)
    optimiser = torch.optim.AdamW(tower.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    order = torch.cat(
        [
            torch.randperm(len(labels), generator=generator)
            for _ in range(1 + args.steps * args.batch // len(labels))
        ]
    )
    for step in range(args.steps):
        rate = (
            min(1.0, (step + 1) / args.warmup) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        )
        optimiser.param_groups[0]["lr"] = args.lr * rate
        chosen = order[step * args.batch : (step + 1) * args.batch]
        logits = scale * functional.normalize(tower(images[chosen]), dim=-1) @ weights.T
        loss = functional.cross_entropy(logits, labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimiser.step()


def show(title: str, values: dict[str, float]) -> float:
    """Print one row and its mean."""
    mean = sum(values.values()) / len(values)
    print(
        f"{title:14} {mean:6.2f}  " + " ".join(f"{k} {v:.1f}" for k, v in values.items()),
        flush=True,
    )
    return mean


def arithmetic(
    model: torch.nn.Module, heads: dict, evaluation: dict, args: argparse.Namespace, normalise: dict
) -> None:
    """Fine-tune every task, then evaluate the scaled sum of the vectors."""
    base = {k: v.clone() for k, v in model.visual.state_dict().items()}
    total = {k: torch.zeros_like(v) for k, v in base.items()}
    single, norms, started = {}, {}, time.time()
    for task in EIGHT:
        tower = copy.deepcopy(model.visual)
        finetune(
            tower,
            heads[task],
            read(task, "train", normalise),
            args.scale or model.logit_scale.exp().item(),
            args,
        )
        single[task] = accuracy(tower, heads[task], evaluation[task])
        delta = {k: v - base[k] for k, v in tower.state_dict().items()}
        norms[task] = sum(float((d**2).sum()) for d in delta.values()) ** 0.5
        total = {k: total[k] + delta[k] for k in total}
    print(f"fine-tuning {(time.time() - started) / len(EIGHT):.1f} s per task")
    show("individual", single)
    show("vector norm", norms)
    for alpha in ALPHAS:
        model.visual.load_state_dict({k: base[k] + alpha * total[k] for k in base})
        show(f"alpha {alpha}", {t: accuracy(model.visual, heads[t], evaluation[t]) for t in EIGHT})


def main() -> None:
    """Report zero-shot accuracies and, unless told otherwise, fine-tuning and task arithmetic."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument(
        "--zero-shot", action="store_true", help="stop after the zero-shot accuracies"
    )
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument(
        "--scale",
        type=float,
        default=None,
        help="logit scale of fine-tuning (default: the model's)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    name = f"local-dir:{args.folder}"
    model, _, _ = open_clip.create_model_and_transforms(name)
    model = model.float().eval()
    normalise = json.loads((args.folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    tokenizer = open_clip.get_tokenizer(name)
    heads = {task: head(model, tokenizer, task) for task in EIGHT + OTHERS}
    evaluation = {task: read(task, args.split, normalise) for task in EIGHT + OTHERS}
    print(f"{args.folder.name}, {args.split}, logit scale {model.logit_scale.exp().item():.1f}")
    show("chance", {t: 100 / len(heads[t]) for t in EIGHT})
    show("zero-shot", {t: accuracy(model.visual, heads[t], evaluation[t]) for t in EIGHT})
    show("others", {t: accuracy(model.visual, heads[t], evaluation[t]) for t in OTHERS})
    if not args.zero_shot:
        arithmetic(model, heads, evaluation, args, normalise)


if __name__ == "__main__":
    main()
