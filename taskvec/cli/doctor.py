"""``taskvec doctor``: whether this machine is ready, and what is missing."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from taskvec.cli.options import Parser, write

EXAMPLES = "  taskvec doctor"
REQUIRED = (
    "torch",
    "torchvision",
    "hydra-core",
    "open_clip_torch",
    "transformers",
    "datasets",
    "safetensors",
)
EXTRAS = {
    "hydra-submitit-launcher": "slurm",
    "ray": "ray",
    "peft": "llm",
    "lm-eval": "llm",
}


def main(arguments: list[str]) -> int:
    """Print versions, devices, assets, caches and the tracker's mode; exit 1 if something required is missing."""
    parser = Parser(
        "doctor", "Check versions, devices, caches and tracker, and say what is missing.", EXAMPLES
    )
    parser.outputs()
    options = parser.read(arguments)
    problems = [*packages(), *devices(), *assets(), *places(options.outputs), *tracker()]
    for problem in problems:
        write(f"MISSING  {problem}")
    if problems:
        write(f"{len(problems)} problems")
        return 1
    write("everything is there")
    return 0


def packages() -> list[str]:
    """Print package versions and return what is missing."""
    problems = []
    for name in (*REQUIRED, "wandb", *EXTRAS):
        try:
            write(f"ok       {name} {version(name)}")
        except PackageNotFoundError:
            if name in EXTRAS:
                write(f"optional {name}: pip install 'taskvec[{EXTRAS[name]}]'")
            else:
                problems.append(f"{name}: pip install {name} -c constraints.txt")
    return problems


def devices() -> list[str]:
    """Print the devices torch sees; a torchvision built for another torch fails here."""
    try:
        import torch
        import torchvision.ops  # noqa: F401 (the import that fails)
    except (ImportError, RuntimeError) as error:
        remedy = "install the matching pair: pip install torch torchvision -c constraints.txt"
        return [
            f"torch and torchvision do not work together ({str(error).splitlines()[0]}); {remedy}"
        ]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    write(
        f"ok       devices: {', '.join(names) or 'no GPU'}, {torch.get_num_threads()} CPU threads"
    )
    return []


def assets() -> list[str]:
    """Check that the embedded data and models are the ones that were shipped."""
    import json

    from taskvec.data.files import sha256
    from taskvec.data.tasks import ASSETS

    problems, count = [], 0
    for record in sorted(ASSETS.glob("*/checksums.json")):
        for name, digest in json.loads(record.read_text(encoding="utf-8")).items():
            count += 1
            path = record.parent / name
            if not path.is_file() or sha256(path) != digest:
                problems.append(
                    f"embedded file {record.parent.name}/{name} is damaged: install the package again"
                )
    write(f"ok       {count - len(problems)} embedded files")
    return problems


def places(outputs: Path) -> list[str]:
    """Check the output folder, and print where downloads are cached."""
    from taskvec.errors import UserError
    from taskvec.runner.validate import writable

    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    write(f"ok       downloads are cached in {hub}{'' if hub.exists() else ' (empty)'}")
    try:
        writable(outputs.resolve())
    except UserError as error:
        return [str(error)]
    write(
        f"ok       outputs: {outputs.resolve()}, {shutil.disk_usage(outputs).free / 1e9:.0f} GB free"
    )
    return []


def tracker() -> list[str]:
    """Print how tracker=wandb would log."""
    import netrc

    try:
        known = bool(netrc.netrc().authenticators("api.wandb.ai"))
    except (OSError, netrc.NetrcParseError):
        known = False
    key = bool(os.environ.get("WANDB_API_KEY")) or known
    mode = os.environ.get("WANDB_MODE") or (
        "online" if key else "offline (no API key; `wandb login` sets one)"
    )
    write(f"ok       tracker=wandb logs {mode}")
    return []
