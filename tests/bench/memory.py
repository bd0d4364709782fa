"""Anonymous memory of loading a language model, making vectors, merging and saving, in multiples of its parameters.

    python tests/bench/memory.py [gpt2_medium] [qwen2_0_5b]

Random float32 checkpoints of the published sizes are written to a temporary folder. A process of its own then loads the
base, makes two task vectors from two fine-tuned checkpoints, opens both, merges them and saves the result in the
family's format, while a thread samples RssAnon of /proc/self/status; pages that mirror a file are not counted, because
the system can drop them. Exits with 1 if the peak over the memory after the imports exceeds 2.5 times the parameters.
"""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

BAR, SEED = 2.5, 0
GPT2 = {"n_embd": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 50257, "n_positions": 1024}
QWEN = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
QWEN |= {"intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True}
MODELS = {"gpt2_medium": ("gpt2", GPT2), "qwen2_0_5b": ("qwen2", QWEN)}


class Peak(threading.Thread):
    """Samples this process's anonymous memory; ``mark`` ends a stage and returns its peak in bytes over the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.highest = anonymous()
        self.start()

    def run(self) -> None:
        while True:
            self.highest = max(self.highest, anonymous())
            time.sleep(0.005)

    def mark(self) -> tuple[int, int]:
        """Return (peak since the last mark, memory now), both over the memory at the start."""
        now = anonymous()
        highest, self.highest = max(self.highest, now), now
        return highest - self.start_bytes, now - self.start_bytes


def anonymous() -> int:
    """Return RssAnon in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def write(name: str, folder: Path) -> None:
    """Write a random base and two fine-tuned checkpoints of it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes = MODELS[name]
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **sizes), dtype=torch.float32
    )
    for which in ("base", "first", "second"):
        model.save_pretrained(folder / which, max_shard_size="50GB")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.rand_like(parameter), alpha=1e-3)


def measure(name: str, folder: Path) -> None:
    """Go through the stages and print each one's peak and what is left after it, as JSON."""
    import torch
    import transformers.models.auto  # noqa: F401

    from taskvec.merge.task_arithmetic import TaskArithmetic
    from taskvec.models.causal import Causal
    from taskvec.models.language import modules  # noqa: F401
    from taskvec.vectors import TaskVector, converted, save_tensors, weights_hash

    torch.set_grad_enabled(False)
    peak, stages = Peak(), {}
    backbone = Causal(model=str(folder / "base"))
    model = backbone.load("cpu")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters.values())
    stages["load"] = peak.mark()
    metadata = {"base_hash": weights_hash(model.parameters)}
    stages["hash"] = peak.mark()
    for which in ("first", "second"):
        tuned = Causal(model=str(folder / which)).load("cpu")
        vector = TaskVector.between(model.parameters, tuned.parameters, metadata, deferred=True)
        vector.save(folder / f"{which}.vector")
        stages[f"vector {which}"] = peak.mark()
        del tuned, vector
        gc.collect()
    vectors = {which: TaskVector.load(folder / f"{which}.vector") for which in ("first", "second")}
    merged = TaskArithmetic().compose(model.parameters, vectors).parameters(0.5)
    stages["merge"] = peak.mark()
    state = converted(merged, backbone.to_transformers, backbone.from_transformers)
    save_tensors(folder / "merged.safetensors", state, {"format": "pt"})
    stages["save"] = peak.mark()
    check(folder)
    print(json.dumps({"bytes": size, "stages": stages}))


def check(folder: Path) -> None:
    """Check that the file is what the checkpoints say: the base plus half of both differences."""
    from safetensors import safe_open

    with ExitStack() as stack:
        paths = {
            which: folder / which / "model.safetensors" for which in ("base", "first", "second")
        }
        paths["merged"] = folder / "merged.safetensors"
        files = {which: stack.enter_context(safe_open(path, "pt")) for which, path in paths.items()}
        for name in files["merged"].keys():  # noqa: SIM118 (not a mapping)
            theta, first, second, found = (
                file.get_tensor(name).flatten()[:1000] for file in files.values()
            )
            assert (found - (theta + 0.5 * (first - theta + second - theta))).abs().max() < 1e-6, (
                name
            )


def child(step: str, name: str, folder: str) -> str:
    """Run one step in a process of its own and return what it prints."""
    words = [sys.executable, __file__, step, name, folder]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def main() -> int:
    """Print the figures and return whether the bar holds."""
    if sys.argv[1:2] in (["write"], ["measure"]):
        (write if sys.argv[1] == "write" else measure)(sys.argv[2], Path(sys.argv[3]))
        return 0
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, anonymous memory"
    )
    worst = 0.0
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            child("write", name, folder)
            found = json.loads(child("measure", name, folder))
        size = found["bytes"]
        print(
            f"{name}: {size / 1e9:.2f} GB of parameters; peak and afterwards, in multiples of them"
        )
        for stage, (high, after) in found["stages"].items():
            print(f"  {stage:<14}{high / size:6.2f} {after / size:6.2f}")
        worst = max(worst, *(high / size for high, _ in found["stages"].values()))
    print(f"highest {worst:.2f} (bar {BAR})")
    return int(worst > BAR)


if __name__ == "__main__":
    sys.exit(main())
