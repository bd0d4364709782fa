"""Pre-train one CLIP of the mini world and export it in open_clip's own format.

    OMP_NUM_THREADS=1 python experiments/mini/pretrain_clip.py mini_clip_s --pairs 1300000
    OMP_NUM_THREADS=1 python experiments/mini/pretrain_clip.py mini_clip_m --width 160 --embed-dim 96 --seed 2

Images with the same caption count as positives of one another. Training state is saved every few minutes to
`outputs/mini/runs/<name>/` and the same command continues from there. Until the rate starts to fall, `--pairs` may be
changed on continuing: the result is that of a run with the new number from the start.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from names import words
from open_clip.model import CLIP
from paths import ASSETS, CORPUS, RUNS
from safetensors.torch import load_file, save_file
from sources import sha256
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.27)
DOMAIN_PREFIX = "task_"
# Options that may change when a run is continued.
FREE = words(
    "threads save_minutes out pairs decay late_domain_images late_domain_share export_scale"
)
WEIGHTS = {  # share of a batch, before normalisation; the task parts share `--domain-share`
    "lowercase": 0.16,
    "unicode": 0.12,
    "emoji": 0.18,
    "icons_colour": 0.16,
    "icons_solid": 0.16,
    "icons_line": 0.10,
    "clipart": 0.12,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the model and of its asset folder")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--head-width", type=int, default=32)
    parser.add_argument("--embed-dim", type=int, default=64)
    parser.add_argument("--text-width", type=int, default=64)
    parser.add_argument("--text-layers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=1_500_000, help="image-text pairs to see")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--decay",
        type=float,
        default=0.35,
        help="part of the run, at its end, over which the rate falls",
    )
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--domain-images", type=int, default=30, help="images per task domain")
    parser.add_argument(
        "--domain-share",
        type=float,
        default=0.05,
        help="share of a batch drawn from the task domains",
    )
    parser.add_argument(
        "--late-domain-images", type=int, default=None, help="the same while the rate falls"
    )
    parser.add_argument(
        "--late-domain-share", type=float, default=None, help="the same while the rate falls"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast in the image tower")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument(
        "--export-scale",
        type=float,
        default=None,
        help="logit scale to export instead of the learned one",
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="export folder (default: the package's assets)"
    )
    return parser.parse_args()


def model_config(args: argparse.Namespace) -> dict:
    """The `model_cfg` of open_clip's configuration file."""
    return {
        "embed_dim": args.embed_dim,
        "vision_cfg": {
            "image_size": 32,
            "layers": args.layers,
            "width": args.width,
            "head_width": args.head_width,
            "patch_size": args.patch,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": args.text_width,
            "heads": max(1, args.text_width // 32),
            "layers": args.text_layers,
        },
    }


class Corpus:
    """All pairs in memory; draws augmented batches with a generator of its own."""

    def __init__(self, args: argparse.Namespace) -> None:
        files = [CORPUS / f"{part}.npz" for part in WEIGHTS] + sorted(
            CORPUS.glob(f"{DOMAIN_PREFIX}*.npz")
        )
        self.domain = np.array([path.stem.startswith(DOMAIN_PREFIX) for path in files])
        self.general = np.array([WEIGHTS.get(path.stem, 0.0) for path in files]) / sum(
            WEIGHTS.values()
        )
        self.images, captions, mono = [], [], []
        most = max(args.domain_images, args.late_domain_images or 0)
        for path, domain in zip(files, self.domain, strict=True):
            with np.load(path) as part:
                self.images.append(part["images"][: most if domain else None])
                captions.append(part["captions"][: most if domain else None])
                mono.append(bool(part["mono"]))
        texts = sorted(set(np.concatenate(captions).tolist()))
        index = {text: i for i, text in enumerate(texts)}
        self.captions = []
        for part in captions:
            self.captions.append(np.array([index[caption] for caption in part]))
        self.mono = mono
        self.tokens = open_clip.get_tokenizer("ViT-B-32", context_length=16)(texts)
        self.checksums = {path.stem: sha256(path) for path in files}
        self.rng = np.random.default_rng(args.seed)
        self.torch_rng = torch.Generator().manual_seed(args.seed)

        self.mix(args.domain_images, args.domain_share)

    def mix(self, domain_images: int, domain_share: float) -> None:
        """Set how many images of each task domain are used and how large a share of a batch they make."""
        self.shares = np.where(
            self.domain, domain_share / self.domain.sum(), (1 - domain_share) * self.general
        )
        self.sizes = [
            min(len(x), domain_images) if d else len(x)
            for x, d in zip(self.images, self.domain, strict=True)
        ]

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented, normalised images and their caption numbers."""
        images, captions, mono = [], [], []
        for part, count in enumerate(self.rng.multinomial(size, self.shares)):
            chosen = self.rng.integers(0, self.sizes[part], count)
            images.append(self.images[part][chosen])
            captions.append(self.captions[part][chosen])
            mono.append(np.full(count, self.mono[part]))
        pixels = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).float() / 255
        pixels = self.recolour(pixels, torch.from_numpy(np.concatenate(mono)))
        return self.normalise(self.warp(pixels)), torch.from_numpy(np.concatenate(captions))

    def recolour(self, x: torch.Tensor, mono: torch.Tensor) -> torch.Tensor:
        """Half of the one-coloured pictures are inverted, a quarter gets two random colours."""
        draw = torch.rand(len(x), generator=self.torch_rng)
        back, front = torch.rand(2, len(x), 3, 1, 1, generator=self.torch_rng)
        x = torch.where((mono & (draw < 0.5)).view(-1, 1, 1, 1), 1 - x, x)
        return torch.where(
            (mono & (draw > 0.4) & (draw < 0.65)).view(-1, 1, 1, 1), back + (front - back) * x, x
        )

    def warp(self, x: torch.Tensor) -> torch.Tensor:
        """A small random rotation, scaling and shift."""
        n = len(x)
        noise = torch.randn(n, 4, generator=self.torch_rng).clamp(-2, 2)
        scale, angle = 1 + 0.09 * noise[:, 0], 0.13 * noise[:, 1]
        matrix = torch.zeros(n, 2, 3)
        matrix[:, 0, 0] = matrix[:, 1, 1] = scale * angle.cos()
        matrix[:, 1, 0] = scale * angle.sin()
        matrix[:, 0, 1] = -matrix[:, 1, 0]
        matrix[:, :, 2] = 0.08 * noise[:, 2:]
        grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)

    @staticmethod
    def normalise(x: torch.Tensor) -> torch.Tensor:
        """Zero mean and unit variance with the exported constants."""
        return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def contrastive(
    images: torch.Tensor, texts: torch.Tensor, target: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Symmetric contrastive loss between images and the distinct captions of the batch."""
    logits = scale * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    same = functional.one_hot(target, len(texts)).float().T
    to_images = -(same / same.sum(1, keepdim=True) * logits.T.log_softmax(1)).sum(1).mean()
    return (functional.cross_entropy(logits, target) + to_images) / 2


class Run:
    """One pre-training: model, optimiser, data and what has been seen so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.corpus = args, Corpus(args)
        self.model = CLIP(**model_config(args))
        groups = [
            [p for p in self.model.parameters() if p.ndim >= 2],
            [p for p in self.model.parameters() if p.ndim < 2],
        ]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": groups[0], "weight_decay": args.weight_decay},
                {"params": groups[1], "weight_decay": 0.0},
            ],
            lr=args.lr,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.steps, self.step, self.seconds, self.curve = args.pairs // args.batch, 0, 0.0, []
        recipe = {k: str(v) for k, v in vars(args).items() if k not in FREE}
        self.tag = hashlib.sha256(
            json.dumps([recipe, self.corpus.checksums], sort_keys=True).encode()
        ).hexdigest()
        self.state = RUNS / args.name / "state.pt"

    def save(self) -> None:
        """Write the training state under a temporary name, then rename it."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "tag": self.tag,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": {"step": self.step, "seconds": self.seconds, "curve": self.curve},
            "rng": self.corpus.torch_rng.get_state(),
            "numpy_rng": json.dumps(self.corpus.rng.bit_generator.state),
        }
        torch.save(state, self.state.with_suffix(".tmp"))
        os.replace(self.state.with_suffix(".tmp"), self.state)

    def resume(self) -> None:
        """Continue from a state of the same recipe and data, if there is one."""
        if not self.state.exists():
            return
        state = torch.load(self.state, weights_only=True)
        if state["tag"] != self.tag:
            print("the saved state has another recipe or corpus: starting anew")
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.curve = (
            state["progress"][k] for k in ("step", "seconds", "curve")
        )
        self.corpus.torch_rng.set_state(state["rng"])
        self.corpus.rng.bit_generator.state = json.loads(state["numpy_rng"])
        print(f"continuing at step {self.step}")

    def train_step(self) -> float:
        """One optimiser step: warm-up, a constant rate, then a linear decay over the last part."""
        left = (self.steps - self.step) / (self.args.decay * self.steps)
        if left < 1:
            args = self.args
            images, share = (
                args.late_domain_images or args.domain_images,
                args.late_domain_share or args.domain_share,
            )
            self.corpus.mix(images, share)
        for group in self.optimiser.param_groups:
            group["lr"] = self.args.lr * min(1.0, (self.step + 1) / 200, left)
        images, captions = self.corpus.batch(self.args.batch)
        distinct, target = torch.unique(captions, return_inverse=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
            features = self.model.encode_image(images)
        texts = self.model.encode_text(self.corpus.tokens[distinct])
        loss = contrastive(
            features.float(), texts, target, self.model.logit_scale.exp().clamp(max=100)
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def train(self) -> None:
        """Train to the end, reporting and saving on the way."""
        start, saved, window = time.time() - self.seconds, time.time(), []
        while self.step < self.steps:
            # The fused attention's backward pass takes half of a step at these lengths; the plain one a tenth.
            with sdpa_kernel(SDPBackend.MATH):
                window.append(self.train_step())
            if self.step % 100 == 0 or self.step == self.steps:
                self.seconds = time.time() - start
                self.curve.append([self.step, round(float(np.mean(window)), 4)])
                print(
                    f"{self.step}/{self.steps} loss {self.curve[-1][1]} {self.seconds:.0f} s",
                    flush=True,
                )
                window = []
            if time.time() - saved > 60 * self.args.save_minutes:
                self.seconds, saved = time.time() - start, time.time()
                self.save()
        self.seconds = time.time() - start
        self.save()


def provenance(run: Run) -> dict:
    """Everything needed to repeat the run, and how it went."""
    return {
        "command": "python experiments/mini/pretrain_clip.py " + " ".join(sys.argv[1:]),
        "recipe": {k: v for k, v in vars(run.args).items() if k != "out"},
        "pairs_seen": run.step * run.args.batch,
        "learned_logit_scale": round(run.model.logit_scale.exp().item(), 3),
        "images": dict(zip(run.corpus.checksums, run.corpus.sizes, strict=True)),
        "data_sha256": run.corpus.checksums,
        "software": {"torch": torch.__version__, "open_clip": open_clip.__version__},
        "wall_seconds": round(run.seconds, 1),
        "loss_curve": run.curve,
    }


def export(run: Run) -> Path:
    """Write the model folder in open_clip's format (float16), file by file under temporary names."""
    folder = run.args.out or ASSETS / run.args.name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().half().contiguous() for k, v in run.model.state_dict().items()}
    if run.args.export_scale:
        tensors["logit_scale"] = torch.tensor(run.args.export_scale).log().half()
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model_config(run.args), "preprocess_cfg": preprocess}
    texts = {"open_clip_config.json": config, "provenance.json": provenance(run)}
    save_file(tensors, folder / ".weights.tmp")
    os.replace(folder / ".weights.tmp", folder / "open_clip_model.safetensors")
    for name, content in texts.items():
        (folder / ".json.tmp").write_text(json.dumps(content, indent=2) + "\n")
        os.replace(folder / ".json.tmp", folder / name)
    assert load_file(folder / "open_clip_model.safetensors").keys() == tensors.keys()
    return folder


def main() -> None:
    """Train (or continue) and export."""
    args = arguments()
    torch.set_num_threads(args.threads)
    run = Run(args)
    run.resume()
    run.train()
    print(f"exported to {export(run)}")


if __name__ == "__main__":
    main()
