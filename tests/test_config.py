"""Configuration: every error is one line and exit status 2 before anything heavy is imported; what ships is valid."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from taskvec import registry
from taskvec.cli import VERBS
from taskvec.runner import compose
from taskvec.runner.configs import conf_dir, options, register_all
from taskvec.runner.expand import expand, unions

HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "open_clip",
    "wandb",
    "datasets",
    "safetensors.torch",
)

# --- errors ---------------------------------------------------------------------------------------------------------

ERRORS = {  # arguments: words that the line must contain
    "sed=1": ["sed", "command line", "unknown key", "did you mean 'seed'?"],
    "finetune.lrr=1": ["finetune.lrr", "command line", "unknown key", "did you mean 'lr'?"],
    "show finetune.lrr=1": ["finetune.lrr", "command line", "did you mean 'lr'?"],
    "backbone.recipe.stepz=1": ["backbone.recipe.stepz", "command line", "did you mean 'steps'?"],
    "+extra.key=1": ["extra", "command line", "unknown key"],
    "+finetune.extra=1": ["finetune.extra", "command line", "unknown key"],
    "transform.pave.x=1": ["transform.pave", "unknown key"],
    "~seed": ["seed"],
    "finetune.lr=fast": ["finetune.lr", "command line", "number", "'fast'"],
    "finetune.lr=-1": ["finetune.lr", "command line", "greater than 0", "-1"],
    "finetune.steps=0": ["finetune.steps", "command line", "greater than or equal to 1", "0"],
    "finetune.steps=1.5": ["finetune.steps", "command line", "integer", "1.5"],
    "finetune.batch_size=10 finetune.accumulation=4": ["batch_size 10", "4 micro-batches"],
    "finetune.crop_scale=1.5": ["finetune.crop_scale", "less than or equal to 1", "1.5"],
    "seed=-1": ["seed", "command line", "greater than or equal to 0", "-1"],
    "seed=2147483648": ["seed", "less than 2147483648"],
    "seed=${nowhere}": ["nowhere"],
    "compute.device=gpu": ["compute.device", "command line", "cuda", "'gpu'"],
    "compute.precision=fp23": ["compute.precision", "command line", "did you mean 'fp32'?", "fp32, tf32, bf16"],
    "outputs=": ["outputs", "command line"],
    "suite=mini9": ["suite", "command line", "unknown option 'mini9'", "did you mean 'mini8'?"],
    "merge=task_arithmetics": ["merge", "command line", "did you mean 'task_arithmetic'?"],
    "method=task_arithmetik": ["method", "command line", "did you mean 'task_arithmetic'?"],
    "experiment=dmo": ["experiment", "command line", "did you mean 'demo'?"],
    "tracker=wanbd": ["tracker", "command line", "unknown option 'wanbd'"],
    "finetune.kind=ful": ["finetune.kind", "'ful'", "did you mean 'full'?"],
    "suite.tasks=[mnits]": ["suite.tasks", "'mnits'", "did you mean 'mnist'?"],
    "suite.tasks=mnist": ["suite.tasks", "list", "'mnist'"],
    "suite.tasks=[]": ["suite.tasks", "at least 1 item"],
    "suite.tasks=[mnist,mnist]": ["suite", "mnist named more than once"],
    "suite.control=mnist": ["suite", "'mnist' must not be one of the tasks"],
    "protocol=analogy": ["protocol.a", "no value given", "protocol.a=..."],
    "protocol=analogy protocol.a=emoji protocol.b=emoji protocol.c=brain protocol.target=brain": ["four different"],
    "protocol.rule=best": ["protocol.rule", "command line", "'best'", "highest_normalised"],
    "protocol=negation protocol.rule=lowest": ["protocol.rule", "did you mean 'lowest_target'?", "largest_feasible"],
    "protocol=negation protocol.control_threshold=2": ["protocol.control_threshold", "less than or equal to 1", "2"],
    "protocol=negation suite.control=null": ["no control task", "suite.control=NAME"],
    "protocol.grid=[]": ["protocol.grid", "command line", "at least 1 item"],
    "protocol.grid=[0,x]": ["protocol.grid", "command line", "number", "'x'"],
    "protocol=analysis protocol.questions=[drif]": ["protocol.questions", "'drif'", "did you mean 'drift'?"],
    "protocol=analysis protocol.questions=[scores]": ["protocol.questions", "scores takes settings (targets)"],
    "protocol.subset_size=9": ["protocol.subset_size", "9", "8 tasks"],
    "merge=[task_arithmetic,ties]": ["merge", "command line", "takes one option"],
    "transform=[nothing]": ["transform", "unknown option 'nothing'"],
    "backbone=clip_vit_b32 backbone.architecture=ViT-B-33": ["backbone.architecture", "ViT-B-33"],
    "backbone=clip_vit_b32 backbone.checkpoint=/nowhere.safetensors": ["backbone", "/nowhere.safetensors"],
    "outputs=/proc/nowhere": ["outputs", "/proc/nowhere", "cannot be written", "outputs=FOLDER"],
    "tabel": ["unknown verb 'tabel'", "did you mean 'table'?"],
    "tabel --help=1": ["unknown"],
    "finetune.lr": ["'finetune.lr'", "lacks '='"],
    "finetune.lr=[1": ["finetune.lr", "command line", "quotes"],
    "--multi seed=1": ["'--multi'", "did you mean '--multirun'?"],
    "--include": ["--include needs"],
    "--include /nowhere list": ["--include /nowhere", "no such file or folder"],
    "--include {user}/broken.py show": ["broken.py", "cannot be imported", "SyntaxError"],
    "-m seed=0,-1": ["seed", "-1"],
    "-m seed=0,1 finetune.lrr=1": ["finetune.lrr", "did you mean 'lr'?"],
    "-m seed=[0": ["seed", "quotes"],
    "-m sweep.jobs=0": ["sweep.jobs", "greater than or equal to 1"],
    "-m sweep.jobz=2": ["sweep.jobz", "did you mean 'jobs'?"],
    "-m suite=mini8,mini9": ["suite", "'mini9'", "did you mean 'mini8'?"],
    "list merg": ["unknown group 'merg'", "did you mean 'merge'?"],
    "list --all": ["list", "--all", "taskvec list --help"],
    "show --all": ["show", "--all", "taskvec show --help"],
    "table --format word": ["table", "word", "latex", "csv"],
    "table /nowhere": ["/nowhere"],
    "table --outputs {user}": ["no finished run", "taskvec status"],
    "--include {user} experiment=key": ["finetune.lrr", "experiment/key.yaml", "did you mean 'lr'?"],
    "--include {user} experiment=value": ["finetune.lr", "experiment/value.yaml", "greater than 0", "-3"],
    "--include {user} experiment=type": ["finetune.steps", "experiment/type.yaml", "integer", "'many'"],
    "--include {user} experiment=choice": ["compute.precision", "experiment/choice.yaml", "'fp8'", "fp32, tf32, bf16"],
    "--include {user} experiment=option": ["merge", "unknown option 'tise'"],
    "--include {user} experiment=task": ["suite.tasks", "experiment/task.yaml", "'emojo'", "did you mean 'emoji'?"],
    "--include {user} experiment=syntax": ["syntax.yaml"],
    "--include {user} experiment=top": ["sede", "experiment/top.yaml", "did you mean 'seed'?"],
    "--include {user} suite=own": ["suite.controll", "suite/own.yaml", "did you mean 'control'?"],
    "--include {user} suite=badtask": ["task/hole.yaml", "templates"],
}  # fmt: skip

GOOD = [
    "--help", "run --help", "list", "list merge task", "show", "show protocol=negation seed=3", "show experiment=demo",
    "table --help", "show backbone=clip_vit_l14", "--include {user} show experiment=good",
    *(f"{verb} --help" for verb in VERBS if verb not in ("run", "table")),
]  # fmt: skip

USER = {
    "experiment/key.yaml": "# @package _global_\nfinetune:\n  lrr: 1\n",
    "experiment/value.yaml": "# @package _global_\nfinetune:\n  lr: -3\n",
    "experiment/type.yaml": "# @package _global_\nfinetune:\n  steps: many\n",
    "experiment/choice.yaml": "# @package _global_\ncompute:\n  precision: fp8\n",
    "experiment/option.yaml": "# @package _global_\ndefaults:\n  - override /merge: tise\n",
    "experiment/task.yaml": "# @package _global_\nsuite:\n  tasks: [emojo]\n",
    "experiment/syntax.yaml": "# @package _global_\nsuite: [unclosed\n",
    "experiment/top.yaml": "# @package _global_\nsede: 3\n",
    "experiment/good.yaml": "# @package _global_\nseed: 77\nfinetune:\n  steps: 5\n",
    "suite/own.yaml": "kind: images\ntasks: [mnist]\ncontroll: emoji\n",
    "suite/badtask.yaml": "kind: images\ntasks: [hole]\n",
    "task/hole.yaml": "path: pkg://mini8/mnist\ntemplates: ['no slot']\n",
}

DRIVER = """
import contextlib, io, json, os, signal, sys
from taskvec.cli import main
found = {}
def too_long(*_):
    raise TimeoutError("the command started to work")
signal.signal(signal.SIGALRM, too_long)
for line in json.load(sys.stdin):
    os.environ.pop("TASKVEC_INCLUDE", None)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        signal.alarm(20)
        try:
            code = main(line.split())
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    signal.alarm(0)
    heavy = [name for name in HEAVY if name in sys.modules]
    found[line] = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy}
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with wrong and right files."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in USER.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def outcomes(user: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """All commands of this file in one process without torch: exit status, output and heavy modules after each."""
    place = tmp_path_factory.mktemp("cwd")
    (place / "broken.py").write_text("def broken(:\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TASKVEC")} | {
        "PYTHONPATH": str(ROOT)
    }
    lines = {line: fill(line, user, place) for line in [*ERRORS, *GOOD]}
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{DRIVER}"],
        input=json.dumps(list(lines.values())),
        capture_output=True, text=True, cwd=place, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # An error leaves nothing behind
    assert sorted(path.name for path in place.iterdir()) == ["broken.py"]
    return {line: found[filled] for line, filled in lines.items()}


def fill(line: str, user: Path, place: Path) -> str:
    return line.replace("{user}/broken.py", str(place / "broken.py")).replace("{user}", str(user))


@pytest.mark.parametrize("line", ERRORS)
def test_an_error_is_one_line_and_status_2(line, outcomes):
    found = outcomes[line]
    assert found["code"] == 2, found
    assert found["out"] == ""
    assert found["err"].startswith("taskvec: error: ") and found["err"].count("\n") == 1, found[
        "err"
    ]
    for word in ERRORS[line]:
        assert word in found["err"], f"{word!r} is not in {found['err']!r}"


@pytest.mark.parametrize("line", GOOD)
def test_help_list_and_show_work(line, outcomes):
    found = outcomes[line]
    assert found["code"] == 0 and found["err"] == "", found
    assert found["out"].strip()


@pytest.mark.parametrize("line", [*GOOD, *ERRORS])
def test_nothing_heavy_is_imported(line, outcomes):
    assert outcomes[line]["heavy"] == []


def test_the_command_itself_leaves_torch_alone(tmp_path):
    """The entry point as the shell runs it, in a process of its own."""
    code = "import sys; from taskvec.cli import main; status = main(sys.argv[1:])\n"
    code += f"print(status, [name for name in {HEAVY!r} if name in sys.modules])"
    for words, expected in ((["show"], "0 []"), (["finetune.lrr=1"], "2 []")):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.stdout.splitlines()[-1] == expected, done.stderr


def test_help_names_every_verb_and_list_every_component(outcomes):
    for verb in VERBS:
        assert f"  {verb} " in outcomes["--help"]["out"]
    for name in (
        "task_arithmetic",
        "arXiv 2212.04089",
        "mini8",
        "mini_clip_s",
        "clip_vit_l14",
        "demo",
        "negation",
    ):
        assert name in outcomes["list"]["out"]
    assert "backbone" not in outcomes["list merge task"]["out"]


def test_show_prints_the_resolved_config(outcomes):
    import yaml

    shown = yaml.safe_load(outcomes["show protocol=negation seed=3"]["out"])
    assert shown["seed"] == 3 and shown["protocol"]["kind"] == "negation"
    assert shown["finetune"]["lr"] == shown["backbone"]["recipe"]["lr"]
    own = yaml.safe_load(outcomes["--include {user} show experiment=good"]["out"])
    assert (own["seed"], own["finetune"]["steps"], own["experiment"]) == (77, 5, "good")


# --- what ships -----------------------------------------------------------------------------------------------------

register_all()
CHOICES = sorted(
    (
        path.relative_to(conf_dir()).parts[0],
        str(path.relative_to(conf_dir()).with_suffix("")).split("/", 1)[1],
    )
    for path in conf_dir().glob("*/**/*.yaml")
)


@pytest.mark.parametrize(
    ("group", "option"), [c for c in CHOICES if c[0] not in ("task", "hydra", "scale")]
)
def test_every_shipped_option_composes_and_validates(group, option):
    words = [f"{group}={option}"]
    config = compose.resolve(compose.compose(words))
    if group == "experiment":
        assert config.experiment == option
        assert [
            compose.resolve(compose.compose(job))
            for sweep in unions(words)
            for job in expand(sweep)
        ]
    elif group == "method":
        assert config.method == option
    elif group != "transform":
        assert config.choices[group] == option


@pytest.mark.parametrize(
    "entry", registry.entries(), ids=lambda entry: f"{entry.group}={entry.name}"
)
def test_every_component_says_what_it_is_and_where_it_comes_from(entry):
    first = (entry.schema.__doc__ or "").splitlines()[0] if "__doc__" in vars(entry.schema) else ""
    assert len(first) > 10 and first.endswith((".", ","))
    assert entry.schema.model_fields["kind"].default == entry.name
    if entry.group in registry.STAGES:
        assert any(
            source in entry.paper.replace("OpenReview", "openreview")
            for source in ("arXiv", "openreview", "zenodo", "spec")
        )
    assert entry.schema.version >= 1


@pytest.mark.parametrize("method", options("method"))
def test_a_method_chooses_the_option_of_its_own_stage_alone(method):
    import yaml

    node = yaml.safe_load((conf_dir() / "method" / f"{method}.yaml").read_text())
    ((key, choice),) = node["defaults"][0].items()
    assert set(node) == {"defaults"} and len(node["defaults"]) == 1
    assert key.removeprefix("override /") in registry.STAGES and choice in ([method], method)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "taskvec" / "vectors").glob("*.py")), ids=lambda path: path.name
)
def test_vectors_need_only_torch_and_safetensors(path):
    allowed = {"torch", "safetensors", "taskvec", "__future__", *sys.stdlib_module_names}
    named = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named.add(node.module)
    assert {name.split(".")[0] for name in named} <= allowed
