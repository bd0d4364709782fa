"""Pre-train one language model of the mini world and export it in the standard transformers format.

    OMP_NUM_THREADS=1 python experiments/mini/pretrain_lm.py mini_lm_s
    OMP_NUM_THREADS=1 python experiments/mini/pretrain_lm.py mini_encoder --kind bert --mlp 512

A step sees packed rows of the corpus and some rows of whole framed prompts. Training state is saved every few minutes
to `outputs/mini/runs/<name>/` and the same command continues from there. Until the rate starts to fall, `--tokens` may
be changed on continuing: the result is that of a run with the new number from the start. That is also how `--minutes`
works: a run that it shortened is repeated exactly by giving the `tokens_seen` of its provenance as `--tokens`.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from check_lm import (
    CONTEXT,
    END,
    FRAMES,
    LABEL_WORDS,
    PAD,
    TOKENIZER,
    checks,
)
from lm_corpus import WEIGHTS, Corpus
from paths import ASSETS, RUNS
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

# Options that may change when a run is continued.
FREE = ["threads", "plain", "save_minutes", "minutes", "out", "tokens", "decay"]
FREE += ["late_prompt_share", "late_label_weight"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the model and of its asset folder")
    parser.add_argument("--kind", choices=("llama", "bert"), default="llama")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--mlp", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=34_000_000, help="tokens to see")
    parser.add_argument(
        "--minutes", type=float, default=None, help="lower --tokens on the way so as to end in time"
    )
    parser.add_argument("--batch", type=int, default=32, help="rows of 128 tokens")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--decay", type=float, default=0.35, help="part of the run, at its end, of the falling rate"
    )
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument(
        "--prompt-share", type=float, default=0.05, help="share of rows that hold framed prompts"
    )
    parser.add_argument(
        "--late-prompt-share", type=float, default=None, help="the same while the rate falls"
    )
    parser.add_argument(
        "--late-label-weight",
        type=float,
        default=1.0,
        help="of a label's tokens, while the rate falls",
    )
    parser.add_argument(
        "--mask-share", type=float, default=0.2, help="share of masked tokens (bert)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--plain", action="store_true", help="do not compile the blocks (no C++ compiler needed)"
    )
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument(
        "--out", type=Path, default=None, help="export folder (default: the package's assets)"
    )
    return parser.parse_args()


def build(args: argparse.Namespace) -> torch.nn.Module:
    """A model with fresh weights."""
    torch.manual_seed(args.seed)
    common = {
        "vocab_size": 6144,
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "intermediate_size": args.mlp,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": PAD,
        # The fused attention's backward pass is slow at these lengths.
        "attn_implementation": "eager",
    }
    if args.kind == "bert":
        return BertForMaskedLM(
            BertConfig(
                type_vocab_size=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                **common,
            )
        )
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=args.heads, **common))


class Head(torch.autograd.Function):
    """Mean cross entropy of tied output weights; gradients are taken at once, in chunks that stay in the cache."""

    @staticmethod
    def forward(
        ctx, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, share: torch.Tensor
    ):
        """The sum of the tokens' losses times their shares."""
        low, small = weight.to(torch.bfloat16), hidden.to(torch.bfloat16)
        to_hidden, to_weight, total = torch.empty_like(small), torch.zeros_like(weight), 0.0
        for i in range(0, len(hidden), 256):
            chunk, wanted, part = (
                small[i : i + 256],
                target[i : i + 256, None],
                share[i : i + 256, None],
            )
            p = (chunk @ low.T).float().log_softmax(-1)
            total = total - (part * p.gather(1, wanted)).sum()
            g = (
                p.exp_()
                .scatter_add_(1, wanted, torch.full(wanted.shape, -1.0))
                .mul_(part)
                .to(torch.bfloat16)
            )
            to_hidden[i : i + 256] = g @ low
            to_weight += g.T @ chunk
        ctx.save_for_backward(to_hidden.to(hidden.dtype), to_weight)
        return total

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """The stored gradients."""
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * grad, to_weight * grad, None, None


class Run:
    """One pre-training: model, optimiser, data and what has been seen so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.corpus, self.model = args, Corpus(args), build(args)
        self.tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, model_max_length=10**9)
        body = self.model.bert if args.kind == "bert" else self.model.model
        self.body = body if args.plain else torch.compile(body)
        groups = [
            {
                "params": [p for p in self.model.parameters() if p.ndim >= 2],
                "weight_decay": args.weight_decay,
            },
            {"params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
        self.steps = args.tokens // (args.batch * CONTEXT)
        self.progress: dict = {"step": 0, "seconds": 0.0, "curve": [], "looks": {}}
        recipe = {k: str(v) for k, v in vars(args).items() if k not in FREE}
        content = [recipe, self.corpus.checksums, FRAMES, LABEL_WORDS, WEIGHTS]
        self.tag = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.state = RUNS / args.name / "state.pt"

    def save(self) -> None:
        """Write the training state under a temporary name, then rename it."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "tag": self.tag,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(
            state | {"progress": self.progress, "seen": self.corpus.seen},
            self.state.with_suffix(".tmp"),
        )
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
        self.progress, self.corpus.seen = state["progress"], state["seen"]
        if self.args.minutes:
            self.steps = min(self.steps, self.progress.get("steps", self.steps))
        print(f"continuing at step {self.progress['step']}")

    def fit(self, pace: float) -> None:
        """Before the rate falls: as many steps as the minutes allow at this pace, never so few that it has to jump."""
        step, part = self.progress["step"], 1 - self.args.decay
        if self.args.minutes and step < part * self.steps:
            allowed = step + int((60 * self.args.minutes - self.progress["seconds"]) / pace)
            most = self.args.tokens // (self.args.batch * CONTEXT)
            self.steps = self.progress["steps"] = min(most, max(allowed, int(step / part) + 1))

    def hidden(self, inputs: torch.Tensor, body: torch.nn.Module) -> torch.Tensor:
        """The states that the output weights are applied to."""
        found = body(inputs, use_cache=False)[0] if self.args.kind == "llama" else body(inputs)[0]
        return found if self.args.kind == "llama" else self.model.cls.predictions.transform(found)

    def train_step(self) -> float:
        """One optimiser step: warm-up, a constant rate, then a linear decay over the last part."""
        step, args = self.progress["step"], self.args
        left = (self.steps - step) / (args.decay * self.steps)
        late = left < 1
        for group in self.optimiser.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 200, left)
        share = (
            args.late_prompt_share
            if late and args.late_prompt_share is not None
            else args.prompt_share
        )
        inputs, target, label = self.corpus.batch(step, share)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            hidden = self.hidden(inputs, self.body)
        kept = target >= 0
        of_labels = args.late_label_weight if late else 1.0
        weight = torch.where(label[kept], of_labels, 1.0)
        loss = Head.apply(
            hidden[kept],
            self.model.get_input_embeddings().weight,
            target[kept],
            weight / weight.sum(),
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.progress["step"] += 1
        return loss.item()

    def train(self) -> None:
        """Train to the end, reporting and saving on the way."""
        progress, saved, window, marks = self.progress, time.time(), [], []
        start = time.time() - progress["seconds"]
        while progress["step"] < self.steps:
            window.append(self.train_step())
            progress["seconds"] = time.time() - start
            if progress["step"] % 100 == 0 or progress["step"] == self.steps:
                progress["curve"].append([progress["step"], round(float(np.mean(window)), 4)])
                print(
                    f"{progress['step']}/{self.steps} loss {np.mean(window):.4f} {time.time() - start:.0f} s",
                    flush=True,
                )
                window, marks = [], [*marks[-3:], (progress["step"], progress["seconds"])]
                if len(marks) > 1:
                    self.fit((marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0]))
            if progress["step"] == self.steps or self.due() > len(progress["looks"]):
                self.look()
            if time.time() - saved > 60 * self.args.save_minutes:
                saved = time.time()
                self.save()
        self.save()

    def due(self) -> int:
        """How many looks there should have been before the last one: after a third, and in the middle of the decay."""
        return sum(
            self.progress["step"] >= part * self.steps for part in (1 / 3, 1 - self.args.decay / 2)
        )

    def look(self) -> None:
        """Print and keep the zero-shot accuracies and perplexities of now."""
        self.progress["looks"][str(self.progress["step"])] = found = checks(
            self.model, self.tokenizer
        )
        print(json.dumps(found), flush=True)


def provenance(run: Run) -> dict:
    """Everything needed to repeat the run, and how it went."""
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    return {
        "command": "python experiments/mini/pretrain_lm.py " + " ".join(sys.argv[1:]),
        "recipe": {k: v for k, v in vars(run.args).items() if k != "out"},
        "weights_of_sources": WEIGHTS,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "tokens_seen": run.progress["step"] * run.args.batch * CONTEXT,
        "rows_seen": run.corpus.seen,
        "data_sha256": run.corpus.checksums,
        "software": versions,
        "wall_seconds": round(run.progress["seconds"], 1),
        "checks_by_step": run.progress["looks"],
        "loss_curve": run.progress["curve"],
    }


def export(run: Run) -> Path:
    """Write the model folder in transformers' format (float16 weights), file by file under temporary names."""
    folder = run.args.out or ASSETS / run.args.name
    staging = run.state.parent / "export"
    shutil.rmtree(staging, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    staging.mkdir(parents=True)
    run.model.half().save_pretrained(staging)
    config = json.loads((staging / "config.json").read_text())
    config.pop("_name_or_path", None)
    # Stored in half precision, but to be loaded in single: nothing should train in float16 by accident.
    texts = {"config.json": config | {"dtype": "float32"}, "provenance.json": provenance(run)}
    for name, content in texts.items():
        (staging / name).write_text(json.dumps(content, indent=2) + "\n")
    for name in ("model.safetensors", *texts):
        shutil.copyfile(staging / name, folder / ".copy.tmp")
        os.replace(folder / ".copy.tmp", folder / name)
    return folder


def main() -> None:
    """Train (or continue) and export."""
    args = arguments()
    torch.set_num_threads(args.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run = Run(args)
    run.resume()
    run.train()
    print(f"exported to {export(run)}")


if __name__ == "__main__":
    main()
