"""Everything composes: a sample of the covering set runs, refusals come before work, and the page says the same.

The full set is `make matrix` (tests/campaigns/matrix.py); a sample runs here in one process and one outputs folder.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import matrix_world
import pytest

from taskvec.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parent / "campaigns"))

import matrix
from matrix_choices import STAGES, Assembly

CELLS = 34
CHAINS = (  # finetune / forward / transform / merge / protocol / family
    "full/as tuned/pave+theseus/task_arithmetic/addition/clip",
    "full/as tuned/pave+theseus on merged/ties/addition/causal",
    "full/as tuned/theseus on merged/tsv/negation/clip",
    "full/as tuned/pave/atlas/addition/encoder",
    "full/as tuned/pave+theseus/atlas/few_shot/clip",
    "full (LoRA)/as tuned/theseus+pave/dare/addition/text_to_text",
    "full (LoRA)/as tuned/pave/atlas/addition/clip",
    "kfac/as tuned/none/atlas/addition/clip",
    "kfac/standard/pave+theseus/knots/addition/clip",
    "full/as tuned/none/atlas/out_of_distribution/clip",
)
REFUSALS = {
    "full/as tuned/none/slerp/negation/clip": "takes 2 task vectors, not 1",
    "full/as tuned/theseus on merged/atlas/addition/clip": "learns its model for the questions",
    "full/as tuned/theseus on merged/emr/addition/clip": "makes a model for each task",
    "full/as tuned/theseus on merged/ties/disentanglement/encoder": "asks about the vectors themselves",
    "full/as tuned/theseus on merged/cart/addition/clip": "does not make one vector under a coefficient",
}
REFUSED, RECORDED, OPTIONS = matrix.read()


def sample() -> list[list[str]]:
    """Return chains, then covering combinations, those first that show most choices for the first time."""
    chosen = [name.split("/") for name in CHAINS]
    seen = {choice for names in chosen for choice in zip(STAGES, names, strict=True)}
    left = list(RECORDED)
    random.Random(0).shuffle(left)
    for _ in range(CELLS):
        newest = max(left, key=lambda names: len(set(zip(STAGES, names, strict=True)) - seen))
        left.remove(newest)
        chosen.append(newest)
        seen.update(zip(STAGES, newest, strict=True))
    return chosen


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory):
    """The tiny worlds, included; the outputs folder that all combinations share lies beside them."""
    with matrix_world.included(tmp_path_factory.mktemp("matrix") / "world") as root:
        yield Assembly(root)


@pytest.mark.parametrize("names", sample(), ids="/".join)
def test_a_combination_runs_or_says_why_not(names, assembly, tmp_path_factory):
    combination = matrix.named(assembly, names)
    outputs = assembly.root.parent / "outputs"
    reason = assembly.reason(combination)
    if reason is None:
        assert matrix.ended(combination.words(assembly.root), outputs) is None
    else:
        assert "/".join(names) not in CHAINS, reason


def test_most_of_the_covering_set_runs(assembly):
    planned = [assembly.reason(matrix.named(assembly, names)) for names in RECORDED[::10]]
    assert sum(reason is None for reason in planned) > 0.8 * len(planned)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_an_exit_with_2_and_its_reason_before_anything_is_written(
    name, assembly, tmp_path, capsys
):
    words = matrix.named(assembly, name.split("/")).words(assembly.root)
    assert main([*words, f"outputs={tmp_path}/outputs"]) == 2
    assert REFUSALS[name] in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("seed", range(3))
def test_a_recorded_refusal_is_what_the_command_says(seed, assembly, tmp_path, capsys):
    first, one, second, other = random.Random(seed).choice(sorted(REFUSED))
    chosen = {first: assembly.choice(first, one), second: assembly.choice(second, other)}
    combination = assembly.combination(**chosen)
    assert main([*combination.words(assembly.root), f"outputs={tmp_path}/outputs"]) == 2
    assert not (tmp_path / "outputs").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert assembly.reason(combination).split("; ")[0] in said or "finetune.forward_mode" in said


def test_the_record_knows_every_component(assembly):
    known = {
        stage: [choice.name for choice in options] for stage, options in assembly.options.items()
    }
    assert known == OPTIONS, "run `make matrix-plan`"


def test_the_page_is_current(assembly):
    """A sample of the pairs is planned anew."""
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.page(REFUSED, OPTIONS)
    tables = matrix.Tables(assembly)
    drawn = random.Random(1)
    for _ in range(25):
        first, second = sorted(drawn.sample(STAGES, 2), key=STAGES.index)
        one, other = drawn.choice(assembly.options[first]), drawn.choice(assembly.options[second])
        reason = tables.refused(**{first: one, second: other})
        found = reason and matrix.generic(reason, (one.name, other.name))
        assert REFUSED.get((first, one.name, second, other.name)) == found, "run `make matrix-plan`"


@pytest.mark.parametrize("family", ["clip", "causal"])
@pytest.mark.parametrize("transform", ["pave", "pave+theseus"])
def test_purified_vectors_go_into_every_merge(transform, family, assembly):
    usual = {"transform": assembly.choice("transform", transform)}
    usual["family"] = assembly.choice("family", family)
    merges = [merge for merge in assembly.options["merge"] if not merge.name.startswith("none")]
    assert len(merges) > 25
    for merge in merges:  # merge=none takes no vectors
        reason = assembly.reason(assembly.combination(merge=merge, **usual))
        assert reason is None, f"{merge.name}: {reason}"
