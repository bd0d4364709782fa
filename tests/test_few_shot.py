"""Few-shot, test-time and negation runs of aTLAS and its peers on the tiny world: what they see, and interruptions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import forked
import pytest
import world

from taskvec.graph.result import read_result

FAST = [*world.FAST, "finetune.steps=3"]
LEARN = [
    "method=atlas",
    "merge.schedule.epochs=3",
    "merge.schedule.lr=0.1",
    "merge.schedule.augment=none",
]
BY_VALIDATION = [
    "protocol.select=validation",
    "protocol.targets=[corners]",
    "protocol.individual=false",
]
SHOTS = ["protocol=few_shot", "protocol.shots=2"]


@pytest.fixture(scope="module")
def shared(warm_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the runs of this file."""
    return tmp_path_factory.mktemp("few_shot") / "outputs"


def run(tiny: Path, outputs: Path, folder: Path, *words: str):
    """The only new result of a run."""
    before = set(outputs.glob("runs/*/result.json"))
    done = forked.run(tiny, *FAST, f"outputs={outputs}", *words, folder=folder, events=True)
    assert done.returncode == 0, done.stderr
    (new,) = set(outputs.glob("runs/*/result.json")) - before
    return read_result(new)


def computed(folder: Path) -> list[str]:
    """The artefacts whose computation ended."""
    start = "compute after "
    return [event.removeprefix(start) for event in forked.events(folder) if event.startswith(start)]


def test_an_interrupted_sweep_fits_nothing_twice(tiny, outputs, tmp_path):
    """Shots, seeds and peers in one sweep, killed in the middle: what was complete stays, the rest follows."""
    words = [
        "-m",
        *FAST,
        *LEARN,
        "protocol=few_shot",
        "protocol.shots=1,2",
        "protocol.seed=0,1",
        "merge=atlas,none",
    ]
    words += [
        "merge.adapter=tip",
        "protocol.targets=[stripes]",
        "protocol.individual=false",
        f"outputs={outputs}",
    ]
    killed = forked.run(tiny, *words, folder=tmp_path / "killed", kill_at=250)
    assert killed.returncode == -9
    assert len(list(outputs.glob("runs/*/result.json"))) < 8
    assert forked.run(tiny, *words, folder=tmp_path / "again", events=True).returncode == 0
    assert len(list(outputs.glob("runs/*/result.json"))) == 8
    both = Counter([*computed(tmp_path / "killed"), *computed(tmp_path / "again")])
    kinds = Counter(label.split()[0] for label in both)
    assert set(both.values()) == {1}
    assert kinds["vector"] == 2  # tuned once for all jobs
    assert kinds["atlas"] == kinds["none"] == 4
    assert computed(tmp_path / "killed")


def test_the_target_is_kept_out_of_its_vectors_and_validation_is_not_seen(tiny, shared, tmp_path):
    found = run(
        tiny,
        shared,
        tmp_path / "run",
        *LEARN,
        *SHOTS,
        "protocol.individual=false",
        "protocol.tuned=true",
    )
    assert [row.row for row in found.rows] == ["zero_shot", "tuned", "merged"]
    assert found.data_seen["selection"] == []
    labels = [stage.label for stage in found.stages if stage.kind == "composition"]
    assert "atlas of corners+colours" in labels
    assert found.reports["atlas of corners+colours"]["figures"]["coefficients"]["rows"] == [
        "corners",
        "colours",
    ]
    refused = forked.run(
        tiny,
        *FAST,
        f"outputs={shared}",
        *SHOTS,
        "method=task_arithmetic",
        folder=tmp_path / "refused",
    )
    assert refused.returncode == 2
    assert "needs a merge that learns" in refused.stderr


def test_random_bases_make_a_curve_over_their_number(tiny, shared, tmp_path):
    """The intrinsic-dimension curve: runs with as many random bases as coefficients rows, and the picture of them."""
    pytest.importorskip("matplotlib")
    about = [*SHOTS, "protocol.targets=[corners]", "protocol.individual=false"]
    for count in ("null", 1, 3):
        words = [*LEARN, *about, f"merge.random_bases={count}"]
        found = run(tiny, shared, tmp_path / str(count), *words)
        if count == "null":  # task vectors themselves, which have no place on the curve
            continue
        (report,) = found.reports.values()
        heat = report["figures"]["coefficients"]
        assert len(heat["rows"]) == count
        assert len(heat["values"]) == count
        assert {"by_depth", "coefficients"} <= report["figures"].keys()
    target = tmp_path / "curve.svg"
    words = ["figure", "--over", "merge.random_bases", "--outputs", str(shared), "-o", str(target)]
    drawn = forked.run(tiny, *words, "--where", "row=merged", folder=tmp_path / "figure")
    assert drawn.returncode == 0, drawn.stderr
    text = target.read_text()
    assert "merge.random_bases is null in" in drawn.stderr
    assert "merge.random_bases" in text


def test_validation_chooses_an_epoch_where_it_is_asked(tiny, shared, tmp_path):
    found = run(tiny, shared, tmp_path / "run", *LEARN, *SHOTS, *BY_VALIDATION)
    assert found.data_seen["selection"] == ["corners/val"]
    report = found.reports["atlas of stripes+colours"]
    assert len(report["validation"]) == 4
    assert found.criterion.name == "merged/validation"


def test_held_out_tasks_are_reported_on_alone(tiny, shared, tmp_path):
    world_words = [
        "suite.tasks=[stripes,corners]",
        "suite.held_out=[colours]",
        "protocol.targets=[stripes]",
    ]
    words = [*LEARN, "protocol=out_of_distribution", "protocol.shots=2", *world_words]
    found = run(tiny, shared, tmp_path / "run", *words)
    merged = next(row for row in found.rows if row.row == "merged")
    assert set(merged.values("accuracy")) == {"stripes", "colours"}
    seen = {
        use: splits
        for use, splits in found.data_seen.items()
        if any("colours" in split for split in splits)
    }
    assert set(seen) == {"report"}


def test_pseudo_labels_are_reported_and_no_label_is_learned_from(tiny, shared, tmp_path):
    found = run(
        tiny,
        shared,
        tmp_path / "run",
        *LEARN,
        "protocol=test_time",
        "merge.objective={kind: ufm, share: 0.5}",
    )
    merged = next(row for row in found.rows if row.row == "merged")
    assert set(merged.values("precision")) == set(world.TASKS)
    assert 0 < merged.metrics["trusted"].mean < 1
    assert {"stripes/test", "corners/test", "colours/test"} <= set(found.data_seen["learning"])
    assert not found.data_seen["selection"]


@pytest.mark.parametrize(
    "words",
    [
        ["merge.objective=entropy"],
        ["merge.objective=simclr", "merge.schedule.augment=random_resized_crop"],
        [
            "merge.objective={kind: sar, margin: 1.0}",
            "merge.schedule.sam=0.05",
            "merge.schedule.optimiser=sgd",
        ],
        ["merge.objective={kind: ufm, faithful: true}"],
    ],
    ids=["entropy", "simclr", "sar", "released"],
)
def test_every_objective_moves_the_model(words, tiny, shared, tmp_path):
    found = run(
        tiny,
        shared,
        tmp_path / "run",
        *LEARN,
        "protocol=test_time",
        "protocol.targets=[corners]",
        *words,
    )
    picture = found.reports["atlas of stripes+colours"]["figures"]["coefficients"]
    assert max(abs(value) for line in picture["values"] for value in line) > 0


def test_a_budget_takes_one_gradient_a_target_and_labels_are_granted_for_it(tiny, shared, tmp_path):
    found = run(
        tiny,
        shared,
        tmp_path / "run",
        *LEARN,
        *SHOTS,
        "merge.budget=1",
        "protocol.individual=false",
    )
    gradients = [stage for stage in found.stages if stage.kind == "statistic"]
    assert len(gradients) == 3
    assert sum(
        found.reports["atlas of stripes+colours"]["share_of_blocks"].values()
    ) == pytest.approx(1)
    refused = forked.run(
        tiny,
        *FAST,
        f"outputs={shared}",
        *LEARN,
        "protocol=test_time",
        "merge.budget=1",
        folder=tmp_path / "refused",
    )
    assert refused.returncode == 2
    assert "takes the loss of labels" in refused.stderr


def test_negation_learns_one_vector_and_keeps_the_control(tiny, shared, tmp_path):
    found = run(
        tiny, shared, tmp_path / "run", *LEARN, "protocol=negation", "protocol.random=false"
    )
    negated = next(row for row in found.rows if row.row == "negated")
    assert negated.alpha == 1.0
    zero_shot = next(row for row in found.rows if row.row == "zero_shot")
    assert negated.mean("validation") <= zero_shot.mean("validation")
