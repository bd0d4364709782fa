"""One file of a user is enough for each kind of extension; vectors and compositions are computed once for all cells."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import world

from taskvec.cli import main
from taskvec.graph.result import Result, read_result
from taskvec.graph.store import Store

PROBES = Path(__file__).resolve().parent / "probes"
SHORT = ["protocol.grid=[0,0.5,1]"]
CASES = {
    "gram_merge": ["merge=gram", "merge.examples=8"],
    "own_models": ["merge=own_models"],
    "two_coefficients": ["merge=two_coefficients"],
    "joint": ["transform=joint"],
    "pulled": ["finetune=pulled", "finetune.strength=1e-2"],
    "smoothed": ["finetune.objective=smoothed"],
    "sizes": ["protocol=analysis", "protocol.questions=[sizes]"],
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all probes, as a user has."""
    return tmp_path_factory.mktemp("probes") / "outputs"


@pytest.fixture(autouse=True)
def included(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's folders, one thread."""
    monkeypatch.setenv("TASKVEC_INCLUDE", os.pathsep.join([str(tiny), str(PROBES)]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each artefact, by kind and fingerprint, is computed while a test runs."""
    counts: Counter[str] = Counter()
    original = Store._compute

    def counted(store: Store, node, compute):
        counts[f"{node.kind} {node.fingerprint}"] += 1
        return original(store, node, compute)

    monkeypatch.setattr(Store, "_compute", counted)
    return counts


@pytest.fixture
def run(outputs: Path) -> Callable[..., Result]:
    """Run one command to its result."""

    def to_result(*words: str) -> Result:
        before = set(outputs.glob("runs/*/result.json"))
        assert main([*world.FAST, *words, f"outputs={outputs}"]) == 0
        (made,) = set(outputs.glob("runs/*/result.json")) - before
        return read_result(made)

    return to_result


def test_probes_are_short_and_listed(capsys):
    for path in PROBES.glob("*.py"):
        assert path.read_text(encoding="utf-8").count("\n") <= 60, path.name
    assert (
        main(["list", "merge", "transform", "finetune", "question", "objective", "statistic"]) == 0
    )
    said = capsys.readouterr().out
    for name in (
        "gram",
        "own_models",
        "two_coefficients",
        "joint",
        "mover",
        "pulled",
        "sizes",
        "smoothed",
        "counted",
    ):
        assert re.search(rf"^ *{name} ", said, re.M), name


@pytest.mark.parametrize("name", CASES)
def test_a_probe_runs_is_skipped_when_repeated_and_is_tabulated(
    name, run, outputs, computed, capsys
):
    words = CASES[name]
    short = [] if name == "two_coefficients" else SHORT
    result = run(*words, *short)
    assert result.rows
    assert set(computed.values()) == {1}
    computed.clear()
    assert main([*world.FAST, *words, *short, f"outputs={outputs}"]) == 0
    assert not computed
    capsys.readouterr()
    assert main(["table", str(outputs / "runs" / result.run_id), "--rows", "row"]) == 0
    assert result.rows[0].row in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["merge=gram", "merge.examples=0"], "merge.examples"),
        (["finetune=pulled", "finetune.strenght=1"], "finetune.strenght"),
        (["protocol=analysis", "protocol.questions=[size]"], "'sizes'"),
        (["finetune.objective=smothed"], "'smoothed'"),
    ],
)
def test_a_probe_is_validated(words, said, outputs, capsys):
    assert main([*world.FAST, *words, f"outputs={outputs}"]) == 2
    assert said in capsys.readouterr().err


def test_a_learned_composition_is_computed_once_for_all_its_cells_and_resumes(
    run, outputs, computed, monkeypatch
):
    from taskvec.training import loop

    words = ["merge=two_coefficients", "merge.seed=7", "merge.schedule.checkpoint_every=0"]
    original = loop._Slope.begin

    def interrupted(slope, step, batches):
        if step == 5 and "scales" in slope.run.leaves:
            raise KeyboardInterrupt
        return original(slope, step, batches)

    monkeypatch.setattr(loop._Slope, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run_raising([*world.FAST, *words, f"outputs={outputs}"])
    steps = []

    def noted(slope, step, batches):
        steps.append(step)
        return original(slope, step, batches)

    monkeypatch.setattr(loop._Slope, "begin", noted)
    computed.clear()
    resumed = run_again(outputs, words)
    assert steps == [5, 6, 7]
    assert [key for key in computed if key.startswith("composition")] and set(
        computed.values()
    ) == {1}
    other = outputs.with_name("undisturbed")
    assert main([*world.FAST, *words, f"outputs={other}"]) == 0
    (undisturbed,) = other.glob("runs/*/result.json")
    assert resumed.same_as(read_result(undisturbed))


def _run_raising(words: list[str]) -> None:
    from taskvec.runner import compose
    from taskvec.runner.execute import execute

    compose.register_all()
    execute(compose.resolve(compose.compose(words)), tuple(words))


def run_again(outputs: Path, words: list[str]) -> Result:
    """Run a command that was interrupted, and return its result."""
    before = {path: path.stat().st_mtime_ns for path in outputs.glob("runs/*/result.json")}
    assert main([*world.FAST, *words, f"outputs={outputs}"]) == 0
    made = [
        path
        for path in outputs.glob("runs/*/result.json")
        if before.get(path) != path.stat().st_mtime_ns
    ]
    (path,) = made
    return read_result(path)


@pytest.mark.parametrize("on", ["vectors", "merged"])
def test_vectors_move_to_another_width_before_or_after_the_merge(on, outputs):
    tasks = "suite.tasks=[mnist,optdigits]"
    words = [
        "source=mini_clip_s",
        "backbone=mini_clip_m",
        tasks,
        "suite.held_out=[]",
        "transform=mover",
    ]
    words += [
        f"transform.mover.on={on}",
        "finetune.steps=3",
        "finetune.warmup=1",
        "finetune.batch_size=16",
    ]
    before = set(outputs.glob("runs/*/result.json"))
    assert main([*words, "protocol.grid=[0,1]", f"outputs={outputs}"]) == 0
    (made,) = set(outputs.glob("runs/*/result.json")) - before
    result = read_result(made)
    said = next(report for stage, report in result.reports.items() if "mover" in stage)
    assert said["maps"] > 20
    merged = next(row for row in result.rows if row.row == "merged_alpha_1")
    assert merged.values("accuracy") != result.rows[0].values("accuracy")


def test_a_sweep_over_merges_and_merge_seeds_tunes_each_vector_once(outputs, computed, capsys):
    other = outputs.with_name("seeds")
    words = [
        "merge=dare,two_coefficients",
        "merge.seed=1,2,3",
        "protocol.seed=0,4",
        f"outputs={other}",
    ]
    assert main(["-m", *world.FAST, *words]) == 0
    assert set(computed.values()) == {1}
    kinds = Counter(key.split()[0] for key in computed)
    assert kinds["vector"] == len(world.TASKS)
    assert kinds["composition"] == 3  # one for each merge seed, whatever the protocol's


def test_equal_jobs_of_a_union_run_once_and_keys_of_the_command_line_win(
    tiny, outputs, tmp_path, monkeypatch, capsys
):
    user = tmp_path / "user"
    (user / "experiment").mkdir(parents=True)
    (user / "experiment" / "union.yaml").write_text(
        "# @package _global_\nparts:\n  - [merge=ties, 'seed=0,1']\n  - {merge: [ties, average], seed: 0}\n"
    )
    monkeypatch.setenv("TASKVEC_INCLUDE", os.pathsep.join([str(tiny), str(user)]))
    other = outputs.with_name("union")
    assert main(["-m", "experiment=union", *world.FAST, *SHORT, f"outputs={other}"]) == 0
    assert "3 jobs" in capsys.readouterr().out
    assert len(list(other.glob("runs/*/result.json"))) == 3
    assert main(["experiment=union", *world.FAST, f"outputs={other}"]) == 2
    assert "-m" in capsys.readouterr().err
    assert main(["-m", "experiment=union", "seed=5", *world.FAST, *SHORT, f"outputs={other}"]) == 0
    assert "2 jobs" in capsys.readouterr().out


def test_a_sweep_is_ranked_by_validation_where_normalised_test_disagrees(outputs, capsys):
    """A rate so small that individual models stay weak has the best normalised test accuracy, and the worst model."""
    other = outputs.with_name("ranked")
    words = ["finetune.lr=3e-3,1e-6", "protocol.grid=[0,0.3,0.6,1]", f"outputs={other}"]
    assert main(["-m", *world.FAST, *words]) == 0
    results = {
        json.loads(path.read_text())["config"]["finetune"]["lr"]: path
        for path in other.glob("runs/*/result.json")
    }
    strong, weak = read_result(results[3e-3]), read_result(results[1e-6])
    merged = {"strong": _row(strong, "merged"), "weak": _row(weak, "merged")}
    assert merged["weak"].mean("normalised") > 0.95
    assert strong.criterion.split == "val" and strong.criterion.better == "higher"
    assert strong.criterion.value == pytest.approx(merged["strong"].mean("validation"))
    assert strong.criterion.value > weak.criterion.value


def _row(result: Result, name: str):
    return next(row for row in result.rows if row.row == name)
