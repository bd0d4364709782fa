"""One epoch of fine-tuning and an evaluation on a large synthetic suite, with the memory that is not a mapped file.

    python tests/bench/epoch.py [IMAGES ...]      (100,000 and 200,000 by default: 307 and 614 MB decoded)

Random 32x32 pictures as Parquet, train and test of one task, on the tiny CLIP: batches of 1,024, one layer trained,
then zero-shot, individual and merged models evaluated. The command is a process of its own, watched while it runs: its
anonymous memory must stay below 1.5 GB and not grow with IMAGES by more than a tenth.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import world
from conftest import ROOT
from data import write

BAR_MB, GROWTH, BATCH, SECONDS = 1536, 1.1, 1024, 0.2
EVALUATED = 20_000


def anonymous_mb(process: int) -> int:
    """Return a process's anonymous memory in MB, 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) >> 10 for line in lines if line.startswith("RssAnon")]
    return found[0] if found else 0


def prepare(folder: Path, images: int) -> Path:
    """Write the world and a suite of one large task, and return the folder to include."""
    include = world.build(folder / "world")
    place = folder / "data"
    place.mkdir()
    write(place, EVALUATED)
    (place / "train.parquet").rename(place / "test.parquet")
    write(folder, images)
    (folder / "train.parquet").rename(place / "train.parquet")
    names = ", ".join(f"'{number}'" for number in range(10))
    card = f"path: {place}\nclasses: [{names}]\ntemplates: ['a {{}}']\n"
    (include / "task/large.yaml").write_text(
        card + "splits: {train: train, val: null, test: test}\n"
    )
    return include


def watched(include: Path, outputs: Path, images: int) -> tuple[int, float]:
    """Return the peak of anonymous memory in MB and the seconds of a run of one epoch."""
    words = ["suite=tiny", "suite.tasks=[large]", "backbone=tiny", f"finetune.batch_size={BATCH}"]
    steps = -(-images // BATCH)
    words += [f"finetune.steps={steps}", "finetune.warmup=1", "protocol.grid=[0,1]"]
    words += ["finetune.select=blocks.1.mlp.proj.weight", f"outputs={outputs}"]
    command = [sys.executable, "-m", "taskvec", "--include", str(include), *words]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(process.stderr.read()))
    reader.start()
    while process.poll() is None:
        peak = max(peak, anonymous_mb(process.pid))
        time.sleep(SECONDS)
    reader.join()
    assert process.returncode == 0, said[0].decode()[-2000:]
    return peak, time.perf_counter() - start


def main(counts: list[int]) -> int:
    """Print the figures and return whether a bar is missed."""
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    peaks = []
    for images in counts:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            peak, seconds = watched(prepare(folder, images), folder / "outputs", images)
        peaks.append(peak)
        print(f"{images:>9,} images: at most {peak} MB anonymous, {seconds:.0f} s", flush=True)
    growth = peaks[-1] / peaks[0]
    print(f"growth {growth:.2f} (bar {GROWTH}); bar {BAR_MB} MB")
    return int(max(peaks) > BAR_MB or growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]] or [100_000, 200_000]))
