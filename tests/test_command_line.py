"""What a newcomer types: verbs anywhere, help, pages, completion, pipes; and one line for each thing that is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from test_config import DRIVER
from test_verbs import ONE, run  # noqa: F401 (a fixture)

from taskvec import cli
from taskvec.cli import VERBS
from taskvec.cli.completion import candidates
from taskvec.runner.launch import plugins

Run = Callable[..., tuple[int, str, str]]
SCHEMA = "defaults:\n  - /schema/{}@_here_\n  - _self_\n"

CARDS = {
    "suite/plain.yaml": "tasks: [mnist]\n",
    "backbone/plain.yaml": "architecture: ViT-B-32\n",
    "finetune/plain.yaml": "lr: 0.1\n",
    "merge/plain.yaml": "density: 0.1\n",
    "protocol/plain.yaml": "rule: lowest_target\n",
    "tracker/plain.yaml": "project: mine\n",
    "backbone/typo.yaml": SCHEMA.format("backbone/clip") + "architecure: ViT-B-32\n",
    "finetune/typo.yaml": SCHEMA.format("finetune/full") + "lerning_rate: 0.1\nstep: 3\n",
    "merge/typo.yaml": SCHEMA.format("merge/ties") + "densty: 0.1\n",
    "tracker/typo.yaml": SCHEMA.format("tracker/wandb") + "proyect: mine\n",
    "protocol/typo.yaml": SCHEMA.format("protocol/negation") + "control_treshold: 0.9\n",
    "suite/typo.yaml": SCHEMA.format("suite/images") + "tasks: [mnist]\ncontrl: emoji\n",
    **{
        f"suite/card{i}.yaml": SCHEMA.format("suite/images") + f"tasks: [card{i}]\n"
        for i in range(6)
    },
    "task/card0.yaml": "path: pkg://mini8/mnist\ntemplate: ['a {}']\n",
    "task/card1.yaml": "path: pkg://mini8/mnist\ntemplates: ['a {}']\nclases: [a]\n",
    "task/card2.yaml": "path: pkg://mini8/mnist\ntemplates: ['a {}']\nlabels: y\n",
    "task/card3.yaml": "pth: pkg://mini8/mnist\ntemplates: ['a {}']\n",
    "task/card4.yaml": "path: pkg://mini8/mnist\ntemplates: ['a {}']\nimages: picture\n",
    "task/card5.yaml": "path: pkg://mini8/mnist\ntemplates: ['a {}']\nmetrics: accuracy\n",
    "finetune/mine.yaml": SCHEMA.format("finetune/full") + "lr: 0.03\n",
    "own.py": """
from typing import Literal
from taskvec.merge.base import TensorWise
from taskvec.registry import register


@register("merge", "own")
class Own(TensorWise):
    \"\"\"The first vector.\"\"\"

    kind: Literal["own"] = "own"

    def merge(self, piece, given, surveyed):
        return piece.present[0][1]
""",
}

ERRORS = {  # arguments: words of the one line
    # a preset without its `defaults` line
    "suite=plain": ["suite.kind (suite/plain.yaml): missing", "/schema/suite/NAME@_here_", "images, texts"],
    "backbone=plain": ["backbone.kind (backbone/plain.yaml): missing", "/schema/backbone/NAME@_here_", "clip"],
    "finetune=plain": ["finetune.kind (finetune/plain.yaml): missing", "linear_ft"],
    "merge=plain": ["merge.kind (merge/plain.yaml): missing", "ties"],
    "protocol=plain": ["protocol.kind (protocol/plain.yaml): missing", "negation"],
    "tracker=plain": ["tracker.kind (tracker/plain.yaml): missing", "wandb"],
    # an unknown key in a preset card
    "backbone=typo": ["backbone.architecure (backbone/typo.yaml)", "did you mean 'architecture'?"],
    "finetune=typo": ["finetune.lerning_rate (finetune/typo.yaml): unknown key"],
    "merge=typo": ["merge.densty (merge/typo.yaml)", "did you mean 'density'?"],
    "tracker=typo": ["tracker.proyect (tracker/typo.yaml)", "did you mean 'project'?"],
    "protocol=typo": ["protocol.control_treshold", "did you mean 'control_threshold'?"],
    "suite=typo": ["suite.contrl (suite/typo.yaml)", "did you mean 'control'?"],
    # an unknown key in a task card
    "suite=card0": ["task/card0.yaml: template: unknown key; did you mean 'templates'?"],
    "suite=card1": ["task/card1.yaml: clases: unknown key; did you mean 'classes'?"],
    "suite=card2": ["task/card2.yaml: labels: unknown key; did you mean 'label'?"],
    "suite=card3": ["task/card3.yaml: pth: unknown key; did you mean 'path'?"],
    "suite=card4": ["task/card4.yaml: images: unknown key; did you mean 'image'?"],
    "suite=card5": ["task/card5.yaml: metrics: unknown key; did you mean 'metric'?"],
    # what is taken away
    "finetune=mine ~finetune.lr": ["~finetune.lr (command line)", "finetune.lr=null"],
    "~merge.seed": ["~merge.seed", "merge.seed=null"],
    "~transform": ["~transform", "transform=none"],
    "~merge": ["~merge", "merge=none"],
    "~tracker": ["~tracker", "tracker=none"],
    "show ~compute.device=auto": ["~compute.device", "nothing is taken away"],
    # a device that is not here
    "compute.device=cuda": ["compute.device: 'cuda' is not available here"],
    "compute.device=cuda:0": ["compute.device: 'cuda:0' is not available here"],
    "compute.device=cuda:7 method=kfac": ["compute.device: 'cuda:7' is not available here"],
    "compute.device=mps": ["compute.device: 'mps' is not available here"],
    "compute.device=cuda protocol=negation": ["'cuda' is not available here", "compute.device=auto"],
    "compute.device=cuda backbone=mini_lm_s suite=minitext6": ["compute.device: 'cuda'"],
    # a place that does not exist
    "backbone=clip_vit_b32 backbone.checkpoint=/nowhere.pt": ["backbone.checkpoint: no file /nowhere.pt"],
    "backbone=clip_vit_b32 backbone.checkpoint=nowhere.safetensors": ["no file", "nowhere.safetensors"],
    "backbone=clip_vit_b32 backbone.architecture=/nowhere": ["backbone.architecture", "/nowhere"],
    "backbone=gpt2 suite=minitext6 backbone.model=/nowhere": ["backbone.model: no folder /nowhere"],
    "backbone=gpt2 suite=minitext6 backbone.tokenizer=/nowhere": ["backbone.tokenizer: no folder /nowhere"],
    "backbone=roberta_base suite=minitext6 backbone.model=./nowhere": ["backbone.model: no folder"],
    # unknown top-level keys
    "metod=kfac": ["did you mean 'method'?"],
    "+metod=kfac": ["did you mean 'method'?"],
    "lr=1e-3": ["lr (command line): unknown key; did you mean finetune.lr?"],
    "tasks=[mnist]": ["did you mean suite.tasks?"],
    "jobs=2": ["did you mean sweep.jobs?"],
    "device=cpu": ["did you mean compute.device?"],
    "experimnt=demo": ["did you mean 'experiment'?"],
    "-m density=0.1,0.2 merge=ties": ["did you mean merge.density?"],
    # Hydra's own settings on this machine
    "-m seed=0,1 hydra.sweep.dir=elsewhere": ["hydra.sweep.dir", "outputs=FOLDER"],
    "hydra.run.dir=elsewhere": ["hydra.run.dir", "outputs=FOLDER"],
    "seed=1 hydra.job.chdir=true": ["hydra.job.chdir"],
    "-m seed=0,1 hydra.sweeper.params.seed=3": ["hydra.sweeper.params.seed"],
    "-m seed=0,1 +hydra.sweep.subdir=x": ["hydra.sweep.subdir"],
    "hydra/job_logging=default": ["hydra/job_logging"],
    # launchers, sweepers, devices
    "-m seed=0,1 hydra/launcher=submitit_slrm": ["hydra/launcher", "did you mean 'submitit_slurm'?"],
    "-m seed=0,1 hydra/launcher=joblib": ["hydra/launcher=joblib", "pip install hydra-joblib-launcher"],
    "-m seed=0,1 hydra/launcher=rq": ["hydra/launcher=rq", "pip install hydra-rq-launcher"],
    "-m seed=0,1 hydra/sweeper=optuna": ["hydra/sweeper=optuna", "pip install hydra-optuna-sweeper"],
    "-m seed=0,1 hydra/sweeper=ax": ["hydra/sweeper=ax", "pip install hydra-ax-sweeper"],
    "-m seed=0,1 hydra/sweeper=nevergrad": ["hydra/sweeper=nevergrad", "pip install hydra-nevergrad-sweeper"],
    "-m seed=0,1 sweep.devices=[0]": ["sweep.devices: 0 is not among", "0 CUDA devices"],
    "-m seed=0,1 sweep.jobs=2 sweep.devices=[0,1]": ["sweep.devices: 0 is not among"],
    "-m seed=0,1 sweep.devices=[GPU-1a2b]": ["sweep.devices: GPU-1a2b is not among"],
    "-m seed=0,1 sweep.devices=[7]": ["sweep.devices: 7 is not among"],
    "-m seed=0,1 sweep.devices=[cuda]": ["sweep.devices: cuda is not among"],
    "-m seed=0,1 sweep.devices=[-1]": ["sweep.devices: -1 is not among"],
    # verbs and their words
    "help merge=tise": ["merge has no option 'tise'", "did you mean 'ties'?"],
    "help merge tise": ["merge has no option 'tise'", "did you mean 'ties'?"],
    "help table ties": ["'table' is a verb; 'ties' can stand after a group's name"],
    "help tise": ["nothing is called 'tise'", "did you mean 'ties'?"],
    "help finetune.lrr": ["no key 'finetune.lrr'", "did you mean 'finetune.lr'?"],
    "kfca --help": ["nothing is called 'kfca'", "did you mean 'kfac'?"],
    "method=kfca --help": ["method has no option 'kfca'", "did you mean 'kfac'?"],
    "help nowhere.key": ["no key 'nowhere.key'"],
    "docs extendin": ["no page 'extendin'", "did you mean 'extending'?"],
    "seed=1 tabel": ["unknown verb 'tabel'", "did you mean 'table'?"],
    "--versoin": ["unknown option '--versoin'", "did you mean '--version'?"],
    "list --config-dir": ["--config-dir needs"],
    "--config-dir /nowhere list": ["/nowhere", "no such file or folder"],
    "--cfg job finetune.lrr=1": ["finetune.lrr", "did you mean 'lr'?"],
}  # fmt: skip

GOOD = {  # arguments: words of the output
    "--version": ["taskvec 0."],
    "seed=1 show": ["seed: 1"],
    "seed=1 --version": ["taskvec 0."],
    "--json status": ["{}"],
    "--json --outputs nowhere status": ["{}"],
    "seed=3 method=kfac show": ["seed: 3", "kind: kfac"],
    "backbone list": ["mini_clip_s"],
    "--rows method --help table": ["usage: taskvec table"],
    "--help table": ["usage: taskvec table"],
    "bash completion": ["complete -o nospace"],
    "help": ["verbs:"],
    "help table": ["usage: taskvec table"],
    "help merge=ties": ["arXiv 2306.01708", "merge.density", "float", "0.2", "> 0, <= 1", "majority_or_minus"],
    "method=kfac --help": ["method=kfac", "arXiv", "finetune.curvature.structure", "kfac, ekfac, diag_ggn"],
    "pave --help": ["method=pave  (transform=pave)", "transform.pave.ratio"],
    "seed=1 merge=dare_ties protocol=negation --help": ["merge=dare with settings", "protocol.control_threshold"],
    "help finetune.lr": ["finetune.lr: float", "> 0"],
    "help compute.precision sweep.jobs": ["fp32, tf32, bf16", "sweep.jobs: int, default 1"],
    "help drift": ["question=drift"],
    "help merge ties": ["merge=ties", "arXiv 2306.01708"],
    "help transform pave theseus": ["transform=pave", "transform=theseus"],
    "help finetune": ["linear_ft", "arXiv"],
    "help merge": ["usage: taskvec merge"],
    "help experiment=demo": ["experiment=demo", "taskvec -m experiment=demo"],
    "help mini_clip_s": ["backbone.recipe.lr", "0.0006"],
    "docs": ["extending", "merging"],
    "docs extending": ["# Add your own"],
    "--config-dir {cards} show merge=own": ["kind: own"],
    "-cd {cards} list merge": ["own"],
    "--config-dir={cards} help own": ["The first vector."],
    "show merge=own --include {cards}": ["kind: own"],
    "--cfg job seed=5": ["seed: 5"],
    "finetune=mine show": ["lr: 0.03"],
    "finetune=mine finetune.lr=null show": ["lr: 0.0006"],
}  # fmt: skip


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    for name, text in CARDS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def outcomes(cards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """All commands in one process: exit status and output of each."""
    place = tmp_path_factory.mktemp("cwd")
    lines = {line: line.replace("{cards}", str(cards)) for line in [*ERRORS, *GOOD]}
    own = {
        line: text if str(cards) in text else f"--include {cards} {text}"
        for line, text in lines.items()
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TASKVEC")}
    environment |= {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = ()\n{DRIVER}"],
        input=json.dumps(list(own.values())),
        capture_output=True, text=True, cwd=place, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(place.iterdir()) == [], "what is refused leaves nothing behind"
    return {line: found[text] for line, text in own.items()}


@pytest.mark.parametrize("line", ERRORS)
def test_what_is_wrong_is_one_line_that_says_what_to_type(line: str, outcomes):
    found = outcomes[line]
    assert found["code"] == 2 and found["out"] == "", found
    assert found["err"].startswith("taskvec: error: ") and found["err"].count("\n") == 1, found
    for word in ERRORS[line]:
        assert word in found["err"], found["err"]


@pytest.mark.parametrize("line", GOOD)
def test_what_works_says_what_was_asked_for(line: str, outcomes):
    found = outcomes[line]
    assert found["code"] == 0 and found["err"] == "", found
    for word in GOOD[line]:
        assert word in found["out"], found["out"]


# --- the shell ------------------------------------------------------------------------------------------------------

COMPLETED = {
    "ta": ["table"],
    "table --met": ["--metrics"],
    "table --format ": ["md", "latex", "csv", "html"],
    "store v": ["verify"],
    "status --j": ["--json"],
    "retry --st": ["--stale"],
    "compare --wh": ["--where"],
    "--vers": ["--version"],
    "experiment=task_arithmetic/a": ["experiment=task_arithmetic/addition", "experiment=task_arithmetic/analogy"],
    "experiment=kf": [f"experiment=kfac/{name}" for name in ("addition", "drift", "negation", "text")],
    "transform=[pave,thes": ["transform=[pave,theseus"],
    "transform=[pav": ["transform=[pave"],
    "merge=ties,wud": ["merge=ties,wudi", "merge=ties,wudi_closed"],
    "suite.tasks=[mnist,emo": ["suite.tasks=[mnist,emoji"],
    "suite.control=obj": ["suite.control=objects"],
    "protocol.targets=[br": ["protocol.targets=[brain"],
    "protocol=analysis protocol.questions=[kern": ["protocol.questions=[kernel_regime"],
    "compute.prec": ["compute.precision="],
    "compute.precision=b": ["compute.precision=bf16"],
    "merge=ties merge.cons": ["merge.consensus="],
    "merge=ties merge.consensus=": ["merge.consensus=elect", "merge.consensus=sum"],
    "finetune=kfac finetune.curvature.structure=d": ["finetune.curvature.structure=diag_ggn"],
    "source=mini_clip": ["source=mini_clip_deep", "source=mini_clip_m", "source=mini_clip_s"],
    "list back": ["backbone"],
    "docs ext": ["extending"],
    "help merge=tie": ["merge=ties", "merge=ties_mergekit", "merge=ties_mergelm", "merge=ties_peft"],
}  # fmt: skip


@pytest.mark.parametrize("line", COMPLETED)
def test_a_line_is_completed(line: str):
    *before, word = line.split(" ")
    assert candidates(before, word) == COMPLETED[line]


def test_the_shell_asks_for_candidates(tmp_path: Path):
    """The script in a real bash, with a program of the name that runs this package."""
    program = tmp_path / "taskvec"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m taskvec "$@"\n')
    program.chmod(0o755)
    script = """eval "$(taskvec completion bash)"
    COMP_WORDS=(taskvec "transform=[pave,thes"); COMP_CWORD=1; _taskvec; echo "${COMPREPLY[@]}"
    COMP_WORDS=(taskvec --include ""); COMP_CWORD=2; _taskvec; echo "files:${COMPREPLY[@]}" """
    environment = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == "transform=[pave,theseus\nfiles:\n", done.stderr


@pytest.mark.parametrize(
    "words", ["list", "show", "--info all", "--cfg job", "--hydra-help", "docs merging"]
)
def test_a_pipe_that_closes_early_is_no_error(words: str):
    line = f"{sys.executable} -m taskvec {words} 2>&1 >&3 | cat >&2"
    script = f"exec 3> >(exec true); sleep 0.2; {line}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr, done.stderr
    assert done.stderr.count("\n") < 3 or words.startswith("--info"), done.stderr


# --- other inputs ---------------------------------------------------------------------------------------------------


def test_rows_and_values_that_are_misspelt_are_named(run: Run):  # noqa: F811
    assert run(*ONE)[0] == 0
    for words, expected in {
        (
            "merged",
            "zeroshot",
        ): "did you mean 'zero_shot'? (allowed: individual, merged, merged_alpha_1, zero_shot)",
        ("mergd", "zero_shot"): "did you mean 'merged'?",
        ("nothing", "zero_shot"): "(allowed: individual, merged, merged_alpha_1, zero_shot)",
        ("merged@finetune=ful", "zero_shot"): "no run has finetune=ful; did you mean 'full'?",
        ("merged@finetun=full", "zero_shot"): "unknown key 'finetun'; did you mean 'finetune'?",
        ("merged", "zero_shot@backbone=tini"): "no run has backbone=tini; did you mean 'tiny'?",
    }.items():
        status, out, error = run("compare", *words)
        assert (status, out) == (2, "") and expected in error and error.count("\n") == 1, error


def test_explain_takes_the_nearest_neighbour(run: Run):  # noqa: F811
    """Three runs are stored; the one that differs least is the one that is compared with, not the newest."""
    far = ["finetune.lr=0.1", "finetune.weight_decay=0.3", "finetune.steps=4"]
    for more in ([], ["finetune.lr=0.01"], far):
        assert run(*ONE, *more)[0] == 0
    _, text, _ = run("store", "explain", *ONE, "finetune.lr=0.01", "finetune.clip_norm=2")
    block = text.split("vector stripes\n")[1].split("\nto compute")[0]
    assert re.findall(r"method\.(\w+): (\S+) -> (\S+)", block) == [("clip_norm", "1.0", "2.0")]
    answers = text.split("answer merged\n")[1]
    assert "lr" not in answers and "weight_decay" not in answers


def test_every_verb_is_listed_and_helped():
    assert {"help", "docs"} <= set(VERBS) and callable(cli.main)
    assert plugins.EXTRAS.keys() >= {
        "submitit_slurm",
        "submitit_local",
        "joblib",
        "rq",
        "optuna",
        "ax",
    }


def test_a_picture_whose_bytes_are_missing_is_read_from_the_path_beside_it(
    tiny: Path, tmp_path: Path, monkeypatch
):
    """What `to_parquet` of an image folder may write: no bytes, and an absolute path or one beside the table."""
    import pyarrow.parquet as parquet
    import world

    from taskvec.data.images import decode_split
    from taskvec.data.tasks import ImageTask
    from taskvec.errors import UserError

    preprocessing = {"size": (16, 16), "interpolation": "bicubic", "resize_mode": "shortest"}
    names = [f"stripes {number}" for number in range(4)]
    for split in ("train", "val", "test"):
        rows = parquet.read_table(tiny / "data" / "stripes" / f"{split}.parquet").to_pydict()
        cells = []
        for number, cell in enumerate(rows["image"]):
            file = tmp_path / "data" / "pictures" / f"{split}-{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(cell["bytes"])
            path = str(file) if number % 2 else f"pictures/{file.name}"
            cells.append({"bytes": None, "path": path})
        world.write_table(tmp_path / "data" / f"{split}.parquet", cells, rows["label"], names)
    card = {"templates": ["a {}"]}
    original = ImageTask(path=str(tiny / "data" / "stripes"), **card)
    pointed = ImageTask(path=str(tmp_path / "data"), **card)
    found = [
        decode_split("stripes", task, "test", preprocessing)["inputs"]
        for task in (original, pointed)
    ]
    assert all((a == b).all() for a, b in zip(*found, strict=True))
    file.unlink()
    with pytest.raises(UserError, match=r"task stripes: .*no file .*test-29.png"):
        from taskvec.data.images import image_files
        from taskvec.data.rows import TaskData

        image_files(TaskData("stripes", pointed).table("test"), "image")
