"""What a notebook needs beside the command line: records of runs, vectors, and how well a vector does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.report.collection import runs

if TYPE_CHECKING:
    from taskvec.graph.plan import Plan
    from taskvec.vectors import TaskVector

__all__ = ["evaluate", "load_vector", "runs"]


def load_vector(place: str | Path, task: str | None = None) -> TaskVector:
    """Return a task vector: of a file, of an artefact in a store, or of a run's folder and one of its tasks.

    Of a run it is the vector that the run merges, after the transforms before the merge. Its deltas stay in the file
    and are read as they are used.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    from taskvec.vectors import TaskVector

    path = Path(place).expanduser()
    if (path / "config.yaml").is_file():
        return _of_run(path, task)
    if (path / "artefact.json").is_file():
        return _of_store(path)
    if not path.is_file():
        raise UserError(f"{path}: no task vector, stored artefact or run")
    try:
        return TaskVector.load(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def _of_store(folder: Path) -> TaskVector:
    from taskvec.graph.nodes.head import HEAD
    from taskvec.graph.store import CorruptError, Store
    from taskvec.vectors import TaskVector

    try:
        content = Store(folder.parent.parent).read(folder).content
        deltas = {
            name: value for name, value in content.tensors.items() if not name.startswith(HEAD)
        }
        return TaskVector.unpack(deltas, content.meta["vector"])
    except (CorruptError, KeyError, ValueError) as error:
        raise UserError(f"{folder}: not a stored task vector: {error}") from error


def _of_run(folder: Path, task: str | None) -> TaskVector:
    from taskvec.graph.asking import Asking
    from taskvec.graph.plan import Plan
    from taskvec.graph.workspace import silent_workspace, to_compute
    from taskvec.registry import did_you_mean
    from taskvec.runner import compose
    from taskvec.runner.folder import RunFolder
    from taskvec.runner.survey import config_of

    compose.register_all()
    outputs = folder.resolve().parent.parent
    config = config_of(RunFolder(folder)).model_copy(update={"outputs": str(outputs)})
    if task not in config.suite.tasks:
        hint = did_you_mean(str(task), list(config.suite.tasks))
        raise UserError(f"{folder.name}: task {task!r} is none of the run's{hint}")
    plan = Plan(config)
    node = plan.vector(Asking(config, plan.chain).vector(task))
    work = silent_workspace(config.root, config.compute)
    if to_compute(work.store, [node]):
        raise UserError(
            f"{folder.name}: the vector of {task} is not in {work.store.root}; run it again"
        )
    return node.value(work)


def evaluate(
    vector: TaskVector | None = None,
    tasks: Sequence[str] | None = None,
    *,
    backbone: str = "mini_clip_s",
    suite: str = "mini8",
    alpha: float = 1.0,
    split: str = "test",
    overrides: Sequence[str] = (),
) -> dict[str, float]:
    """Return the metric of each task of theta_0 + alpha * vector (no vector: of theta_0) on a split.

    ``overrides`` are those of the command line (``compute.device=cuda``, ``outputs=FOLDER``). Decoded data and heads
    are kept in the store.

    Raises:
        UserError: for a config that is wrong, a vector of other base weights, and a backbone that learns its heads,
            which come with a run.
    """
    from taskvec.graph.given import Given
    from taskvec.graph.plan import Plan
    from taskvec.graph.workspace import silent_workspace
    from taskvec.protocols.questions.scores import scores
    from taskvec.runner import compose
    from taskvec.runner.validate import preflight
    from taskvec.vectors import TaskVector
    from taskvec.vectors.composition import Scaled

    compose.register_all()
    words = [f"backbone={backbone}", f"suite={suite}", *overrides]
    config = compose.resolve(compose.compose(words))
    plan = Plan(config)
    preflight(config, plan)
    if "learned_heads" in config.backbone.gives:
        raise UserError(
            f"backbone={backbone} learns its heads with its vectors; evaluate it in a run"
        )
    question = scores(config.suite, tuple(tasks or config.suite.tasks), fixed=(alpha,))
    needs = question.examples(split).values()
    rows = {need: _rows(plan, need.task, split) for need in needs}
    work, base = silent_workspace(config.root, config.compute), plan.base("target")
    model = base.value(work)
    given = Given(work, plan.scope((), "target"), rows, base, base, "evaluate")
    composition = Scaled(model.parameters, _fitting(vector or TaskVector({}), base.hash(work)))
    composition.forward = composition.merged.metadata.get("forward_mode", "standard")
    values, excluded = question.measure(given, composition, (alpha,), split)
    if excluded:
        raise UserError(f"evaluate: {excluded[alpha]}")
    return values[alpha]


def _rows(plan: Plan, task: str, split: str) -> Any:
    from taskvec.registry import did_you_mean

    if task not in plan.config.suite.definitions:
        hint = did_you_mean(task, list(plan.config.suite.definitions))
        raise UserError(f"evaluate: unknown task {task!r}{hint}")
    return plan.rows(task, split, None, "target")


def _fitting(vector: TaskVector, base_hash: str) -> TaskVector:
    """Return a vector that belongs to some base weights.

    Raises:
        UserError: if it was made on others.
    """
    made_on = vector.metadata.get("base_hash", base_hash)
    if made_on != base_hash:
        raise UserError(
            f"the task vector was made on other base weights ({made_on[:12]}) than the backbone's ({base_hash[:12]})"
        )
    return vector
