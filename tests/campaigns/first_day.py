"""The ten jobs of a first day, as scripts of nothing but the pages' commands, on a fresh install outside the checkout.

    python tests/campaigns/first_day.py            # installs the wheel with all that it needs (gigabytes)
    python tests/campaigns/first_day.py --here     # the wheel alone; what it needs is taken from this environment

Each page of docs/ that is a job becomes one shell script, run in an empty folder with the fresh install first on the
path. A job must end well within two minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pages

ROOT = pages.DOCS.parent
LIMIT = 120.0  # seconds of a job
EXTRAS = "slurm,ray,llm,figures,report,wandb-report"


def installed(folder: Path, *, here: bool) -> Path:
    """Make an environment with the package in it, from a wheel; return the folder of its programs."""
    venv.create(folder, with_pip=not here)
    python = folder / "bin" / "python"
    wheel = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    alone = ["--no-build-isolation"] if here else []
    pip([sys.executable if here else str(python), *("-m", "pip")], [*wheel, *alone])
    (file,) = folder.glob("taskvec-*.whl")
    if here:
        into = [sys.executable, "-m", "pip", "--python", str(python)]
        pip(into, ["install", "--quiet", "--no-deps", str(file)])
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    else:
        limits = ["-c", str(ROOT / "constraints.txt")]
        pip([str(python), "-m", "pip"], ["install", "--quiet", *limits, f"{file}[{EXTRAS}]"])
    return folder / "bin"


def pip(program: list[str], words: list[str]) -> None:
    """Run pip outside the checkout, so that nothing of it is found by accident."""
    subprocess.run([*program, *words], check=True, cwd=tempfile.gettempdir())


def job(topic: str, folder: Path, programs: Path) -> tuple[int, float, str]:
    """Run a page's commands as a script in an empty folder; return its status, its seconds and what it said last."""
    folder.mkdir()
    commands = [line for line in pages.steps(topic, folder) if not line.startswith("pip ")]
    (folder / "job.sh").write_text("\n".join(["set -e", *commands]) + "\n")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("TASKVEC", "WANDB", "PYTHONPATH"))
    }
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "NETRC": str(folder / "none")}
    begun = time.perf_counter()
    done = subprocess.run(
        ["bash", "job.sh"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, time.perf_counter() - begun, (done.stdout + done.stderr)[-600:]


def main() -> int:
    """Run all jobs; 1 if one fails or takes too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--here", action="store_true", help="take dependencies from this environment"
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a job")
    parser.add_argument("topics", nargs="*", default=pages.JOBS)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        flush=True,
    )
    bad = 0
    with tempfile.TemporaryDirectory(prefix="first-day-") as place:
        programs = installed(Path(place, "environment"), here=options.here)
        for topic in options.topics:
            status, seconds, last = job(topic, Path(place, topic), programs)
            good = status == 0 and seconds <= options.limit
            bad += not good
            print(f"{'ok ' if good else 'BAD'} {topic:<12}{seconds:6.0f} s", flush=True)
            if status:
                print(last, flush=True)
    print(f"{len(options.topics) - bad} of {len(options.topics)} jobs")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
