"""Input that cannot be worked with: one clear line and exit 2, or a recorded failed run; nothing lost or executed."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import forked
import pytest
import world

from taskvec.graph.result import read_result
from taskvec.runner.folder import RunFolder


class Case(NamedTuple):
    """A malformed input: what is done to a copy of the world and to the command, and words the message must hold."""

    name: str
    said: str
    words: list[str]
    change: Callable[[Path], None] | None = None
    code: int = 2


def text(file: str, content: str) -> Callable[[Path], None]:
    """Write a file of the world."""
    return lambda w: _write(w / file, content.replace("WORLD", str(w)))


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def bytes_of(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change a file's bytes."""
    return lambda w: (w / file).write_bytes(change((w / file).read_bytes()))  # type: ignore[func-returns-value]


def rows(split: str = "train", **columns) -> Callable[[Path], None]:
    """Replace columns of a split of the task ``stripes``: a function of the old values, or None to leave it out."""

    def change(folder: Path) -> None:
        import pyarrow.parquet as parquet

        path = folder / f"data/stripes/{split}.parquet"
        table = parquet.read_table(path)
        for name, new in columns.items():
            index = table.schema.get_field_index(name)
            table = table.remove_column(index)
            if new is not None:
                table = table.append_column(name, new(parquet.read_table(path)[name].to_pylist()))
        parquet.write_table(table, path)

    return change


def array(function: Callable[[list], list], kind: str) -> Callable[[list], object]:
    """Return a column of an Arrow type made from the old values."""
    import pyarrow as pa

    types = {
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "int": pa.int64(),
        "float": pa.float64(),
        "text": pa.string(),
    }
    return lambda values: pa.array(function(values), types[kind])


def classes(names: list[str], split: str) -> Callable[[Path], None]:
    """Rewrite a split of ``stripes`` with other class names."""

    def change(folder: Path) -> None:
        import pyarrow.parquet as parquet

        path = folder / f"data/stripes/{split}.parquet"
        table = parquet.read_table(path)
        world.write_table(path, table["image"].to_pylist(), table["label"].to_pylist(), names)

    return change


def schema_metadata(content: bytes) -> Callable[[Path], None]:
    """Replace the ``huggingface`` metadata of the test split of ``stripes``."""

    def change(folder: Path) -> None:
        import pyarrow.parquet as parquet

        path = folder / "data/stripes/test.parquet"
        parquet.write_table(
            parquet.read_table(path).replace_schema_metadata({"huggingface": content}), path
        )

    return change


def weights(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Change the tensors of the backbone's checkpoint."""

    def apply(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "clip/open_clip_model.safetensors"
        state = load_file(path)
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)

    return apply


def model_config(**changes) -> Callable[[Path], None]:
    """Change the backbone's description; a key with ``__`` goes one level down."""

    def apply(folder: Path) -> None:
        path = folder / "clip/open_clip_config.json"
        config = json.loads(path.read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = config
            for parent in parents:
                node = node[parent]
            node[last] = value
        path.write_text(json.dumps(config))

    return apply


def poison(value: float, name: str) -> Callable[[dict], None]:
    """Set one entry of a tensor."""

    def change(state: dict) -> None:
        state[name].view(-1)[3] = value

    return change


def pickled(folder: Path) -> None:
    """Write a named architecture's checkpoint as a pickle whose loading would create a file."""
    import pickle

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {folder}/executed",)

    (folder / "code.pt").write_bytes(pickle.dumps({"state_dict": Code()}))


def integers(state: dict) -> None:
    state["visual.conv1.weight"] = state["visual.conv1.weight"].int()


PROJECTION = "visual.proj"
TASK = "path: WORLD/data/stripes\ntemplates: ['a photo of {}']\n"

CASES = [
    # the command line
    Case("unknown key", "did you mean 'lr'", ["finetune.lrr=1"]),
    Case("unknown nested key", "did you mean 'steps'", ["backbone.recipe.stps=3"]),
    Case("added key", "finetune.nesterov (command line): unknown key", ["+finetune.nesterov=true"]),
    Case("added key at the top", "unknown key", ["+sed=3"]),
    Case("unknown option", "did you mean 'task_arithmetic'", ["merge=task_aritmetic"]),
    Case("unknown group", "did you mean", ["megre=task_arithmetic"]),
    Case("unknown kind", "unknown merge 'sum'", ["merge.kind=sum"]),
    Case("kind of another type", "unknown merge", ["merge.kind=5"]),
    Case("unknown verb", "did you mean 'status'", ["statsu"]),
    Case("unknown flag", "unknown option '--dry'", ["--dry"]),
    Case("unparsable override", "needs quotes of its own", ["finetune.lr=[1"]),
    Case("several values without -m", "seed", ["seed=0,1"]),
    Case("word for a number", "finetune.lr (command line)", ["finetune.lr=fast"]),
    Case("fraction for an integer", "seed (command line)", ["seed=1.5"]),
    Case("list for a number", "finetune.lr (command line)", ["finetune.lr=[1,2]"]),
    Case("null for a number", "finetune.accumulation (command line)", ["finetune.accumulation=null"]),
    Case("number for a path", "outputs (command line)", ["outputs=5"]),
    Case("negative rate", "greater than 0, got -1", ["finetune.lr=-1"]),
    Case("rate not a number", "finetune.lr", ["finetune.lr=nan"]),
    Case("rate that makes training diverge", "the training loss is not finite", ["finetune.lr=1e30"], code=1),
    Case("infinite rate", "finetune.lr: must be a finite number", ["finetune.lr=inf"]),
    Case("infinite coefficient", "protocol.grid.1: must be a finite number", ["protocol.grid=[0,inf]"]),
    Case("no steps", "finetune.steps (command line)", ["finetune.steps=0"]),
    Case("negative seed", "seed (command line)", ["seed=-1"]),
    Case("huge seed", "seed (command line)", ["seed=4294967296"]),
    Case("no batch", "finetune.batch_size (command line)", ["finetune.batch_size=0"]),
    Case("indivisible batch", "does not divide into 5 micro-batches", ["finetune.accumulation=5"]),
    Case("empty grid", "protocol.grid (command line)", ["protocol.grid=[]"]),
    Case("unknown rule", "did you mean 'lowest_target'", ["protocol=negation", "protocol.rule=lowest"]),
    Case("threshold over 1", "protocol.control_threshold", ["protocol=negation", "protocol.control_threshold=95"]),
    Case("unknown precision", "unknown value 'fp8'", ["compute.precision=fp8"]),
    Case("unknown dtype of weights", "unknown value 'fp16'", ["compute.weights=fp16"]),
    Case("no batch of predictions", "compute.batch", ["compute.batch=0"]),
    Case("rounded and linearised", "compute.weights: a linearised model",
         ["compute.weights=bf16", "finetune.forward_mode=tangent"]),
    Case("compiled and linearised", "compute.compile: a linearised model",
         ["compute.compile=true", "finetune.forward_mode=tangent"]),
    Case("compiled and offloaded", "compute.compile: offloaded", ["compute.compile=true", "compute.offload=true"]),
    Case("compiled and checkpointed", "gradient_checkpointing=true wraps",
         ["compute.compile=true", "finetune.gradient_checkpointing=true"]),
    Case("malformed device", "compute.device (command line)", ["compute.device=gpu"]),
    Case("absent device", "cuda:99", ["compute.device=cuda:99"]),
    Case("deleted group", "merge", ["~merge"]),
    Case("scalar for a group", "transform.purify: must be a component", ["+transform.purify=3"]),
    Case("missing value", "protocol.a: no value given", ["protocol=analogy"]),
    Case("role not in the suite", "'planes' is not in suite.tasks",
         ["protocol=analogy", "protocol.a=planes", "protocol.b=b", "protocol.c=c", "protocol.target=d"]),
    Case("subsets too large", "the suite has 3 tasks", ["protocol.subset_size=4"]),
    Case("include without path", "--include", ["--include"]),
    # suites and tasks
    Case("unknown task", "did you mean 'stripes'", ["suite.tasks=[stripe]"]),
    Case("string for a list", "must be a list of names", ["suite.tasks=stripes"]),
    Case("number for a list", "must be a list of names", ["suite.held_out=3"]),
    Case("no tasks", "suite.tasks", ["suite.tasks=[]"]),
    Case("task twice", "stripes named more than once", ["suite.tasks=[stripes,stripes]"]),
    Case("control among the tasks", "must not be one of the tasks", ["suite.control=stripes"]),
    Case("no control", "suite.control=NAME", ["protocol=negation", "suite.control=null"]),
    Case("half defined suite", "corners", ["+suite.definitions.stripes={path:x,templates:['{}']}"]),
    Case("task without templates", "task/stripes.yaml: templates", [], text("task/stripes.yaml", "path: WORLD\n")),
    Case("template without slot", "must contain {} exactly once", [],
         text("task/stripes.yaml", "path: WORLD/data/stripes\ntemplates: [a photo]\n")),
    Case("unknown task key", "did you mean 'classes'", [], text("task/stripes.yaml", f"{TASK}clases: [a]\n")),
    Case("task not YAML", "task/stripes.yaml: not valid YAML", [], text("task/stripes.yaml", "path: [\n")),
    Case("task not a mapping", "must be a mapping", [], text("task/stripes.yaml", "- path\n")),
    Case("task extends itself", "extends itself", [], text("task/stripes.yaml", "extends: stripes\n")),
    Case("task extends nothing", "unknown task 'nothing'", [], text("task/stripes.yaml", "extends: nothing\n")),
    Case("no test split", "the test split needs a file name", [],
         text("task/stripes.yaml", f"{TASK}splits: {{train: train, test: null}}\n")),
    Case("suite not YAML", "tiny.yaml", [], text("suite/tiny.yaml", "tasks: [\n")),
    # data files
    Case("no data folder", "task stripes: no folder", [], lambda w: shutil.rmtree(w / "data/stripes")),
    Case("no split file", "no test.parquet", [], lambda w: (w / "data/stripes/test.parquet").unlink()),
    Case("not Parquet", "not a readable Parquet file", [],
         lambda w: (w / "data/stripes/train.parquet").write_text("image,label\n")),
    Case("truncated Parquet", "not a readable Parquet file", [],
         bytes_of("data/stripes/train.parquet", lambda b: b[: len(b) // 2])),
    Case("empty file", "not a readable Parquet file", [], bytes_of("data/stripes/val.parquet", lambda b: b"")),
    Case("missing column", "has no column 'label' (it has image)", [], rows(label=None)),
    Case("image column of numbers", "not encoded images", [], rows(image=array(lambda v: list(range(len(v))), "int"))),
    Case("image column of paths to nothing", "/data/stripes/x (row 0 of", [],
         rows(image=array(lambda v: ["x"] * len(v), "text"))),
    Case("no examples", "holds no examples", [], lambda w: world.write_table(
        w / "data/stripes/val.parquet", [], [], [f"stripes {i}" for i in range(4)])),
    Case("label out of range", "has label 4, but the task has 4 classes", [],
         rows(label=array(lambda v: [*v[:-1], 4], "int"))),
    Case("negative label", "has label -1", [], rows(label=array(lambda v: [-1, *v[1:]], "int"))),
    Case("missing label", "has label None", [], rows("test", label=array(lambda v: [None, *v[1:]], "int"))),
    Case("fractional label", "has label 0.5", [], rows(label=array(lambda v: [0.5, *v[1:]], "float"))),
    Case("no class names", "has no class names", [], lambda w: [classes(None, s)(w) for s in world.COUNTS]),
    Case("broken schema metadata", "has no class names", [], schema_metadata(b"{")),
    Case("classes of another number", "2 'classes' in task/stripes.yaml, 4 in", [],
         text("task/stripes.yaml", f"{TASK}classes: [a, b]\n")),
    Case("classes in another order", "has the classes", [],
         classes([f"stripes {i}" for i in (1, 0, 2, 3)], "train")),
    Case("unknown class kept", "'keep' names unknown classes plaid", [],
         text("task/stripes.yaml", f"{TASK}keep: [plaid]\n")),
    Case("class names twice", "names the class 'a' more than once", [],
         lambda w: [classes(["a", "b", "a", "c"], s)(w) for s in world.COUNTS]),
    Case("classes given in another order", "has another order than", [],
         text("task/stripes.yaml", f"{TASK}classes: [stripes 3, stripes 1, stripes 2, stripes 0]\n")),
    Case("key of a task twice", "not valid YAML: line 3: 'path' for the second time", [],
         text("task/stripes.yaml", f"{TASK}path: elsewhere\n")),
    Case("train and test one file", "splits test and train hold the same file", [],
         lambda w: shutil.copy(w / "data/stripes/train.parquet", w / "data/stripes/test.parquet")),
    Case("two formats of a split", "could be meant (split 'val')", [],
         text("data/stripes/val.csv", "image,label\n")),
    Case("missing part of a split", "1 of the 2 files beside", [],
         lambda w: (w / "data/stripes/train.parquet").rename(w / "data/stripes/train-00001-of-00002.parquet")),
    Case("fractional labels", "has label 0.5, but the task has 4 classes (row 0)", [],
         rows("val", label=array(lambda v: [0.5, *v[1:]], "float"))),
    Case("kept class without examples", "split 'val' holds no examples", [],
         lambda w: [text("task/stripes.yaml", f"{TASK}keep: [stripes 3]\n")(w),
                    rows("val", label=array(lambda v: [0] * len(v), "int"))(w)]),
    Case("too few to hold out", "split 'val' holds no examples", [],
         lambda w: [text("task/stripes.yaml", f"{TASK}splits: {{train: train, val: null, test: test}}\n")(w),
                    world.write_split(w / "data/stripes/train.parquet", "stripes", 8, seed=1)]),
    Case("damaged pages", "is damaged", [],
         bytes_of("data/stripes/train.parquet", lambda b: b[:2000] + b"\xff" * 500 + b[2500:]), code=1),
    Case("undecodable image", "train image 3 cannot be decoded: its format is not known", [],
         rows(image=array(lambda v: [*v[:3], {"bytes": b"GIF89a"}, *v[4:]], "image")), code=1),
    Case("image by a path to nothing", "task stripes: no file /nowhere/1.png (row 0 of", [], rows(
        image=array(lambda v: [{"bytes": None, "path": "/nowhere/1.png"}, *v[1:]], "image"))),
    Case("image by a path to something else", "train image 0 cannot be decoded: its format is not known", [], rows(
        image=array(lambda v: [{"bytes": None, "path": "/etc/passwd"}, *v[1:]], "image")), code=1),
    Case("image without content", "train image 0 cannot be decoded: its bytes are missing", [],
         rows(image=array(lambda v: [None, *v[1:]], "image")), code=1),
    # weights
    Case("unknown architecture", "did you mean", ["backbone.architecture=VIT-B-33"]),
    Case("no weights named", "give 'pretrained' (a tag) or 'checkpoint'", ["backbone.architecture=ViT-B-32"]),
    Case("missing checkpoint", "no file /nowhere.safetensors",
         ["backbone.architecture=ViT-B-32", "backbone.checkpoint=/nowhere.safetensors"]),
    Case("missing weights", "no file", [], lambda w: (w / "clip/open_clip_model.safetensors").unlink()),
    Case("description not JSON", "is not JSON", [], text("clip/open_clip_config.json", "{")),
    Case("description without a model", "has no 'model_cfg'", [], text("clip/open_clip_config.json", "{}")),
    Case("truncated weights", "open_clip_model.safetensors", [],
         bytes_of("clip/open_clip_model.safetensors", lambda b: b[: len(b) // 2])),
    Case("empty weights", "open_clip_model.safetensors", [],
         bytes_of("clip/open_clip_model.safetensors", lambda b: b"")),
    Case("weights of another kind", "open_clip_model.safetensors", [],
         bytes_of("clip/open_clip_model.safetensors", lambda b: b"PK\3\4" + b)),
    Case("missing tensor", "lacks visual.proj", [], weights(lambda s: s.pop(PROJECTION))),
    Case("extra tensor", "holds visual.extra", [],
         weights(lambda s: s.update({"visual.extra": s[PROJECTION].clone()}))),
    Case("tensor of another shape", "visual.proj has shape", [],
         weights(lambda s: s.update({PROJECTION: s[PROJECTION][:, :8]}))),
    Case("architecture of another width", "has shape", [], model_config(model_cfg__vision_cfg__width=48)),
    Case("integer weights", "is not floating-point", [], weights(integers)),
    Case("vocabulary of another size", "token_embedding.weight has shape", [],
         weights(lambda s: s.update({"token_embedding.weight": s["token_embedding.weight"][:1000]}))),
    Case("vocabulary below the tokenizer's", "the tokenizer has 49408 tokens", [],
         model_config(model_cfg__text_cfg__vocab_size=1000)),
    Case("no text tower", "lacks the text tower's", [], weights(lambda s: s.pop("token_embedding.weight"))),
    Case("text tower of another depth", "has 1 layers in the checkpoint, the architecture has 2", [],
         model_config(model_cfg__text_cfg__layers=2)),
    Case("no image tower described", "malformed model description", [], model_config(model_cfg__vision_cfg=None)),
    Case("vocabulary in words", "malformed model description", [], model_config(model_cfg__text_cfg__vocab_size="all")),
    Case("list for the preprocessing", "preprocess_cfg must be a mapping", [], model_config(preprocess_cfg=[0.5])),
    Case("channel means in words", "mean must be three numbers", [],
         model_config(preprocess_cfg__mean=["r", "g", "b"])),
    Case("one channel mean", "mean must be three numbers", [], model_config(preprocess_cfg__mean=0.5)),
    Case("deviation zero", "std must be three positive numbers", [], model_config(preprocess_cfg__std=[0, 0, 0])),
    Case("two channel means", "mean must be three numbers", [], model_config(preprocess_cfg__mean=[0.5, 0.5])),
    Case("unknown resize mode", "only shortest or squash", [], model_config(preprocess_cfg__resize_mode="longest")),
    Case("NaN weights", "projection.weight is not finite", [], weights(poison(float("nan"), PROJECTION)), code=1),
    Case("infinite weights", "not finite", [], weights(poison(float("inf"), "visual.conv1.weight")), code=1),
    Case("NaN in the text tower", "not finite", [], weights(poison(float("nan"), "ln_final.weight")), code=1),
    Case("pickled code", "damaged or holds more than tensors",
         ["backbone.architecture=ViT-B-32", "backbone.checkpoint=WORLD/code.pt"], pickled, code=1),
    # the user's own files
    Case("include of nothing", "no such file or folder", ["--include", "/nowhere"]),
    Case("include of another file", "not a Python file", ["--include", "WORLD/clip/open_clip_config.json"]),
    Case("class without its method", "merge=mine (own.py)", ["--include", "WORLD/own.py", "merge=mine"], text(
        "own.py",
        "from typing import Literal\nfrom taskvec.merge.base import Merge\n"
        "from taskvec.registry import register\n"
        "@register('merge', 'mine')\nclass Mine(Merge):\n    kind: Literal['mine'] = 'mine'\n")),
    Case("method that fails", "KeyError: 'weight' (own.py:7)", ["--include", "WORLD/own.py", "merge=mine"], text(
        "own.py",
        "from typing import Literal\nfrom taskvec.merge.base import Merge\n"
        "from taskvec.registry import register\n"
        "@register('merge', 'mine')\nclass Mine(Merge):\n    kind: Literal['mine'] = 'mine'\n"
        "    def compose(self, base, vectors, given): return base['weight']\n"), code=1),
    Case("file that fails", "cannot be imported: ZeroDivisionError", ["--include", "WORLD/own.py"],
         text("own.py", "1 / 0\n")),
    Case("file with a syntax error", "cannot be imported: SyntaxError", ["--include", "WORLD/own.py"],
         text("own.py", "def\n")),
    Case("taken name", "is registered by task_arithmetic.py already", ["--include", "WORLD/own.py"], text(
        "own.py",
        "from taskvec.merge.task_arithmetic import TaskArithmetic\nfrom taskvec.registry import register\n"
        "@register('merge', 'task_arithmetic')\nclass Mine(TaskArithmetic):\n    pass\n")),
    Case("unknown group registered", "unknown group 'merger'", ["--include", "WORLD/own.py"], text(
        "own.py",
        "from taskvec.merge.task_arithmetic import TaskArithmetic\nfrom taskvec.registry import register\n"
        "@register('merger', 'mine')\nclass Mine(TaskArithmetic):\n    pass\n")),
    # outputs
    Case("outputs that are a file", "cannot be written: File exists", ["outputs=WORLD/suite/tiny.yaml"]),
    Case("outputs below a file", "cannot be written: Not a directory", ["outputs=/dev/null/x"]),
    Case("outputs in a read-only place", "cannot be written", ["outputs=/proc/outputs"]),
    Case("outputs of nobody", "cannot be written", ["outputs=/sys/outputs"]),
]  # fmt: skip


def copied(tiny: Path, folder: Path) -> Path:
    """A copy of the tiny world whose configs name the copy; what is not changed is linked."""
    shutil.copytree(tiny, folder, copy_function=os.link)
    for path in folder.glob("*/*.yaml"):
        content = path.read_text().replace(str(tiny), str(folder))
        path.unlink()
        path.write_text(content)
    for path in [*folder.glob("data/stripes/*"), *folder.glob("clip/*")]:
        if path.is_dir():
            continue  # another test of this worker may have left one
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_malformed_input_is_refused_or_recorded(case: Case, tiny, tmp_path):
    include, outputs = copied(tiny, tmp_path / "world"), tmp_path / "outputs"
    if case.change:
        case.change(include)
    words = [word.replace("WORLD", str(include)) for word in case.words]
    base = [*world.FAST, f"outputs={outputs}"]
    ended = forked.run(include, *base, *words, folder=tmp_path / "run")

    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == case.code, ended.stderr
    assert case.said in lines[-1], ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(lines[-1]) < 400
    assert not (include / "executed").exists()
    runs = list(outputs.glob("runs/*"))
    if case.code == 2:
        assert len(lines) == 1, ended.stderr
        assert not ended.stdout
        assert not runs
    else:
        (status,) = [RunFolder(run).status() for run in runs]
        assert status["state"] == "failed"
        assert case.said in status["reason"]
        assert not (runs[0] / "result.json").exists()


def test_the_table_is_long_enough():
    assert len({case.name for case in CASES}) == len(CASES) >= 40


# What is found on disk when a run starts.


@pytest.fixture
def done(warm_outputs, tmp_path) -> Path:
    """An outputs folder in which the addition run is done."""
    return Path(shutil.copytree(warm_outputs, tmp_path / "outputs"))


def only(outputs: Path) -> RunFolder:
    (run,) = outputs.glob("runs/*")
    return RunFolder(run)


def snapshot(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder but logs and locks."""
    files = (
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".lock", ".txt")
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_result_of_a_newer_program_is_not_overwritten(tiny, done, tmp_path):
    run = only(done)
    newer = json.loads((run.path / "result.json").read_text()) | {"schema_version": 99}
    (run.path / "result.json").write_text(json.dumps(newer))
    before = snapshot(run.path)
    ended = forked.run(tiny, *world.FAST, f"outputs={done}", folder=tmp_path / "run")
    assert ended.returncode == 2
    assert "written by a newer program (schema version 99" in ended.stderr
    assert snapshot(run.path) == before


def test_a_vector_of_another_base_is_refused(tiny, done, tmp_path):
    """A stored vector whose record says that it belongs to other weights, with checksums that fit."""
    from taskvec.data.files import sha256

    shutil.rmtree(done / "runs")
    shutil.rmtree(done / "store/answer")
    record = next(done.glob("store/vector/*/artefact.json"))
    content = json.loads(record.read_text())
    content["meta"]["vector"]["metadata"]["base_hash"] = "0" * 64
    record.write_text(json.dumps(content, indent=1, sort_keys=True))
    files = [record, record.with_name("tensors.safetensors")]
    record.with_name("SHA256SUMS").write_text(
        "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    )
    ended = forked.run(tiny, *world.FAST, f"outputs={done}", folder=tmp_path / "run")
    assert ended.returncode == 1
    assert "was made on other base weights" in ended.stderr.splitlines()[-1]
    assert only(done).status()["state"] == "failed"


@pytest.mark.parametrize("place", ["runs", "store"])
def test_a_file_in_the_place_of_a_folder(place, tiny, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    (outputs / place).write_text("")
    ended = forked.run(tiny, *world.FAST, f"outputs={outputs}", folder=tmp_path / "run")
    assert ended.returncode in (1, 2)
    assert "cannot be written" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_disk_that_fills_up_loses_nothing(tiny, outputs, warm_outputs, tmp_path):
    """From some event on every operation of the run fails with ENOSPC; with room again the same command ends well."""
    undisturbed = read_result(only(warm_outputs).path / "result.json")
    settings = [*world.FAST, "finetune.checkpoint_every=0"]
    other = outputs / "runs/other"
    other.mkdir(parents=True)
    (other / "result.json").write_text("{}")
    failed = 0
    for number in range(10, 500, 45):
        ended = forked.run(
            tiny,
            *settings,
            f"outputs={outputs}",
            folder=tmp_path / f"full-{number}",
            full_at=number,
        )
        if ended.returncode == 0:
            break
        failed += 1
        assert ended.returncode in (1, 2)
        assert "No space left on device" in ended.stderr.splitlines()[-1], ended.stderr
        assert "Traceback" not in ended.stderr
    assert failed >= 4
    ended = forked.run(tiny, *settings, f"outputs={outputs}", folder=tmp_path / "again")
    assert ended.returncode == 0, ended.stderr
    (run,) = outputs.glob("runs/*-*")
    assert read_result(run / "result.json").same_as(undisturbed)
    assert (other / "result.json").read_text() == "{}"


def test_a_really_full_disk(tiny, tmp_path):
    """A file system of 256 KiB, where mounting one is allowed."""
    import subprocess

    outputs = tmp_path / "outputs"
    outputs.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", outputs], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        ended = forked.run(tiny, *world.FAST, f"outputs={outputs}", folder=tmp_path / "run")
        said = ended.stderr.splitlines()[-1]
        assert ended.returncode in (1, 2)
        assert "vectors and statistics need" in said
        assert "Traceback" not in ended.stderr
    finally:
        subprocess.run(["umount", outputs], check=True)


def no_data(folder: Path) -> None:
    (folder / "data/corners/test.parquet").unlink()


def no_weights(folder: Path) -> None:
    shutil.copytree(
        folder / "clip", folder / "gone", ignore=shutil.ignore_patterns("*.safetensors")
    )


SWEEPS = {
    "no test.parquet": (no_data, "suite.tasks=[corners],[stripes],[colours]"),
    "no file": (no_weights, "backbone.architecture=WORLD/gone,WORLD/clip seed=0,1"),
}


@pytest.mark.parametrize("said", SWEEPS)
def test_a_sweep_runs_every_job_and_records_the_one_that_cannot(said, tiny, tmp_path):
    include, outputs = copied(tiny, tmp_path / "world"), tmp_path / "outputs"
    change, over = SWEEPS[said]
    change(include)
    words = ["-m", *world.FAST, f"outputs={outputs}", *over.replace("WORLD", str(include)).split()]
    ended = forked.run(include, *words, folder=tmp_path / "run")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    states = {run.name: RunFolder(run).status() for run in outputs.glob("runs/*")}
    assert Counter(status["state"] for status in states.values()) == {
        "done": 2,
        "failed": len(states) - 2,
    }
    reasons = [status["reason"] for status in states.values() if status["state"] == "failed"]
    assert reasons
    for reason in reasons:
        assert said in reason
        assert reason in ended.stdout  # the summary
