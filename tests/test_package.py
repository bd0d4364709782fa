"""The wheel is complete, a user's folder extends the command, and jobs are pinned to their devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, command
from world import FAST


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the built wheel was installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    ]
    subprocess.run(build, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_wheel_works_in_any_folder(installed: Path, tmp_path: Path):
    environment = dict(os.environ) | {"PYTHONPATH": str(installed)}
    words = [
        sys.executable,
        "-c",
        "import taskvec, sys; from taskvec.cli import main; print(taskvec.__file__); main()",
    ]
    done = subprocess.run(
        [*words, "show", "suite=mini8"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(installed)), "the installed package is the one that runs"
    assert "architecture: pkg://mini_clip_s" in done.stdout
    assert (installed / "taskvec/data/assets/mini8/mnist/train.parquet").is_file()
    assert (installed / "taskvec/conf/config.yaml").is_file()


METHOD = '''
from typing import Literal

from pydantic import Field

from taskvec.merge.base import TensorWise
from taskvec.registry import register


@register("merge", "sign_sum", paper="a user's own")
class SignSum(TensorWise):
    """theta_0 + alpha * step * sign(sum of tau)."""

    kind: Literal["sign_sum"] = "sign_sum"
    step: float = Field(1e-3, gt=0)

    def merge(self, piece, given, surveyed):
        """Return the signs of the sum of the deltas of one parameter, or of a piece of it."""
        total = sum(delta for _, delta in piece.present)
        return self.step * total.sign()
'''


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "sign_sum.py").write_text(METHOD)
    return folder


def test_one_user_file_adds_a_method(tiny: Path, outputs: Path, user_folder: Path):
    both = {"TASKVEC_INCLUDE": str(tiny)}
    listed = command(user_folder, "list", "merge", environment=both)
    assert "sign_sum" in listed.stdout and "a user's own" in listed.stdout

    refused = command(user_folder, "merge=sign_sum", "merge.step=-1", environment=both)
    assert refused.returncode == 2 and "merge.step (command line)" in refused.stderr
    misspelt = command(user_folder, "merge=sign_sun", environment=both)
    assert misspelt.returncode == 2 and "did you mean 'sign_sum'?" in misspelt.stderr

    sweep = command(
        user_folder,
        "-m",
        *FAST,
        "merge=task_arithmetic,sign_sum",
        f"outputs={outputs}",
        environment=both,
    )
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.stderr.count("vector stripes:") == 1, "one fine-tuning"
    shown = command(
        user_folder, "table", "--outputs", str(outputs), "--rows", "merge", "row", environment=both
    )
    lines = [line for line in shown.stdout.splitlines() if "| merged " in line]
    assert len(lines) == 2 and lines[0] != lines[1]

    text = (
        (user_folder / "sign_sum.py")
        .read_text()
        .replace("self.step * total", "2 * self.step * total")
    )
    (user_folder / "sign_sum.py").write_text(text)
    status = command(user_folder, "status", "--outputs", str(outputs), "--json", environment=both)
    states = sorted(entry["state"] for entry in json.loads(status.stdout).values())
    assert states == ["done", "stale"], "editing the user's method makes its runs stale"


def test_a_user_transform_runs_before_the_merge(tiny: Path, outputs: Path, tmp_path: Path):
    (tmp_path / "halve.py").write_text(
        "from typing import Literal\n"
        "from taskvec.registry import register\n"
        "from taskvec.transform.base import Transform\n\n\n"
        '@register("transform", "halve")\n'
        "class Halve(Transform):\n"
        '    """tau / 2."""\n\n'
        '    kind: Literal["halve"] = "halve"\n\n'
        "    def apply(self, vector, of, fit, given):\n"
        "        return vector / 2\n"
    )
    both = {"TASKVEC_INCLUDE": str(tiny)}
    overrides = [*FAST, "protocol.grid=[0,0.5,1]", f"outputs={outputs}"]
    plain = command(tmp_path, *overrides, environment=both)
    halved = command(tmp_path, *overrides, "transform=halve", environment=both)
    assert plain.returncode == halved.returncode == 0, halved.stderr
    results = {}
    for path in (outputs / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        results["halve" in result["config"]["transform"]] = result
    at_one, at_half = results[True]["curves"]["merged"][2], results[False]["curves"]["merged"][1]
    assert at_one["accuracy"] == at_half["accuracy"], (
        "alpha = 1 of halved vectors is alpha = 1/2 of the vectors"
    )
    individual = [
        [r for r in results[k]["rows"] if r["row"] == "individual"][0] for k in (True, False)
    ]
    assert individual[0] == individual[1], "denominators are the vectors as fine-tuned"


def test_parallel_jobs_see_one_device_each(tiny: Path, outputs: Path):
    words = ["-m", *FAST, "seed=0,1", "sweep.jobs=2", "sweep.devices=[4,7]", f"outputs={outputs}"]
    done = command(tiny, *words, environment={"CUDA_VISIBLE_DEVICES": "4,7"})
    assert done.returncode == 0, done.stderr
    seen = [
        json.loads(path.read_text())["environment"]["visible_devices"]
        for path in (outputs / "runs").glob("*/result.json")
    ]
    assert sorted(seen) == ["4", "7"]
    assert "2 jobs" in done.stdout and done.stdout.count("done") == 2


def test_constraints_are_requirements():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    named = [Requirement(line).name for line in lines if line and not line.startswith("#")]
    assert len(set(named)) == len(named) > 5


def test_all_extras_are_installed_together():
    """What `make install` has resolved in one go: every requirement of every extra holds, none against another."""
    from importlib.metadata import distribution, requires, version

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    checked: set[str] = set()
    names = {"slurm", "ray", "llm", "figures", "report", "wandb-report"}
    assert names <= set(extras)
    (together,) = [line for line in extras["dev"] if line.startswith("taskvec[")]
    assert names <= Requirement(together).extras

    def check(line: str, by: str) -> None:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            return
        assert needed.specifier.contains(version(needed.name), prereleases=True), f"{by}: {line}"
        if needed.name not in checked:
            checked.add(needed.name)
            for further in requires(needed.name) or ():
                check(further, needed.name)

    for name in names:
        for line in extras[name]:
            check(line, name)
    assert {"ray", "submitit", "hydra-submitit-launcher"} <= checked
    assert distribution("cloudpickle").version.startswith("3"), "nothing pins the one of 2022"
