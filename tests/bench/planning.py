"""Planning one run of mini8, beyond importing Hydra: ``python tests/bench/planning.py [TURNS]``.

Every figure is of a fresh process that has imported Hydra, in turn with the others, so that load meets all alike. Byte
code is there, in a folder of the benchmark's, whatever the environment says about writing it:

- plan: register the components, compose `suite=mini8`, validate it, plan it down to the run's fingerprint. CPU seconds
  from after `import hydra` to the fingerprint, imports among them. Its files were seen before: an earlier process
  remembered what they say (:class:`taskvec.data.files.Record`), as it is for every plan of some data but the first.
- again: the same run in the same process a second time, when everything is imported.
- first plan: as plan, with nothing remembered: every label is read and every file hashed. Printed, not judged.
- libraries: what the libraries cost at their smallest: Hydra composes a config of one key, pydantic validates a model
  of one field, and, which only the first plan needs, numpy and pyarrow with its Parquet reader are imported.
- dry run: the whole command `taskvec suite=mini8 --dry-run`, which also looks for what is stored and asks for free
  disk, less the process `python -c "import hydra"` of the same turn. CPU and wall seconds.

Exits with 1 if the median plan takes more than 0.25 s.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from tabulate import tabulate

BAR, TURNS = 0.25, 7
PLAN = """
import os, time, hydra

def planned():
    before = time.process_time()
    from taskvec.graph.plan import Plan
    from taskvec.runner import compose
    compose.register_all()
    Plan(compose.resolve(compose.compose(["suite=mini8"]))).fingerprint
    return time.process_time() - before

print(planned(), planned())
"""
LIBRARIES = """
import os, time, hydra

before = time.process_time()
with hydra.initialize_config_dir(os.getcwd(), version_base="1.3"):
    hydra.compose("one", return_hydra_config=True)
composed = time.process_time()
from pydantic import BaseModel
class One(BaseModel):
    key: int
One(key=1)
validated = time.process_time()
import numpy, pyarrow.parquet, pyarrow.compute
print(composed - before, validated - composed, time.process_time() - validated)
"""
# Which figures a program prints
PRINTED = {
    PLAN: ("plan", "again"),
    LIBRARIES: ("Hydra composes one key", "pydantic, one field", "numpy and pyarrow"),
}
HYDRA = ["-c", "import hydra"]
DRY = ["-m", "taskvec", "suite=mini8", "outputs=none", "--dry-run"]


def run(words: list[str], folder: str, remembered: str = "seen") -> str:
    """Return what a Python process prints, which must succeed; what it remembers lies in a folder beside."""
    words = [sys.executable, *words]
    environment = os.environ | {
        "PYTHONPYCACHEPREFIX": os.path.join(folder, "bytecode"),
        "HF_ASSETS_CACHE": os.path.join(folder, remembered),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        words, cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def spent(words: list[str], folder: str) -> tuple[float, float]:
    """Return the CPU and the wall seconds of a Python process."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run(words, folder)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def turn(folder: str, number: int) -> dict[str, float]:
    """Return every figure once."""
    found = {}
    first = run(["-c", PLAN], folder, f"first{number}").split()[0]
    for program, names in PRINTED.items():
        printed = run(["-c", program], folder).split()
        found |= zip(names, map(float, printed), strict=True)
    found["first plan"] = float(first)
    hydra, dry = spent(HYDRA, folder), spent(DRY, folder)
    found["dry run, CPU"] = dry[0] - hydra[0]
    found["dry run, wall"] = dry[1] - hydra[1]
    return found


def main(turns: int) -> int:
    """Print one table and return 1 if the median plan is above the bar."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "one.yaml"), "w", encoding="utf-8") as file:
            file.write("key: 1\n")
        turn(folder, 0)  # byte code, file cache, what is remembered
        seen = [turn(folder, number) for number in range(1, turns + 1)]
    rows = []
    for name in seen[0]:
        values = [found[name] for found in seen]
        figures = min(values), statistics.median(values), max(values)
        rows.append([name, *(f"{value:.3f}" for value in figures)])
    version = platform.python_version()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {version}, {turns} turns, seconds"
    )
    heads = ["", "min", "median", "max"]
    print(tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True))
    middle = statistics.median(found["plan"] for found in seen)
    print(f"plan: {middle:.3f} s, bar {BAR} s")
    return int(middle > BAR)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else TURNS))
