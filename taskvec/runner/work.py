"""How each kind of artefact is computed: the place where the graph meets torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.runner.artefact import Artefact, Content

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskvec.data.prompt import Prompt
    from taskvec.data.tasks import Task
    from taskvec.merge.composition import Merge
    from taskvec.models.base import Backbone
    from taskvec.protocols.question import Cell
    from taskvec.runner.workspace import Workspace
    from taskvec.statistics.curvature import Curvature
    from taskvec.statistics.settings import CurvatureSettings
    from taskvec.training.recipe import Recipe, Reference
    from taskvec.transform.base import Transform

    Compute = Callable[["Workspace", Artefact], Content]


def base(backbone: Backbone) -> Compute:
    """Name the backbone that the workspace loads."""

    def compute(work: Workspace, node: Artefact) -> Content:
        return Content(meta={"backbone": backbone})

    return compute


def decoding(name: str, task: Task, split: str, backbone: Backbone, prompt: Prompt | None = None) -> Compute:
    """Compute a split's decoded images or tokenised texts; label words follow those of a ``prompt``."""

    def compute(work: Workspace, node: Artefact) -> Content:
        from taskvec.data.images import decode_split
        from taskvec.data.tasks import Corpus
        from taskvec.data.texts import tokenise_corpus, tokenise_split

        if node.kind == "images":
            tensors = decode_split(name, task, split, backbone.preprocessing())
        elif isinstance(task, Corpus):
            tensors = tokenise_corpus(name, task, split, backbone.tokenize)
        else:
            tokenize = partial(backbone.tokenize, prompt=prompt)
            tensors = tokenise_split(name, task, split, tokenize, framed=prompt is not None)
        return Content(tensors, {"examples": len(tensors["inputs"])})

    return compute


def head(backbone: Backbone, task: str, prompt: Prompt) -> Compute:
    """Compute a task's zero-shot head."""

    def compute(work: Workspace, node: Artefact) -> Content:
        return Content({"head": backbone.heads({task: prompt})[task]}, {"classes": list(prompt.words)})

    return compute


def training(recipe: Recipe, tasks: Sequence[str], *, seed: int, ascend: bool) -> Compute:
    """Fine-tune on the union of the tasks."""

    def compute(work: Workspace, node: Artefact) -> Content:
        from taskvec.training.checkpoint import Checkpoint
        from taskvec.training.fit import HEAD, fit

        model = work.model(node.inputs["base"])
        views = {task: work.view(node.inputs[f"data/{task}"], node.inputs[f"head/{task}"]) for task in tasks}
        base = node.inputs["base"]
        backbone = work.backbone(base)
        others = _references(work, node, recipe)
        fitted = fit(
            model,
            backbone.linear_layers(),
            views,
            recipe,
            seed=seed,
            bf16=work.bf16,
            ascend=ascend,
            learn_heads="learned_heads" in backbone.gives,
            penalties=recipe.penalties(others, seed),
            frozen=recipe.frozen(others),
            checkpoint=Checkpoint(work.store.partial(node), recipe.checkpoint_every),
            observe=lambda step, total, metrics: work.observe(node, step, total, metrics),
        )
        made_on = {"base_hash": work.base_hash(base), "backbone": dict(base.spec)}
        heads = {HEAD + task: head.cpu() for task, head in fitted.heads.items()}
        meta = made_on | {"forward_mode": recipe.forward_mode, "curve": fitted.curve}
        return Content(dict(fitted.vector.to("cpu")) | heads, meta)

    return compute


def random_vector(seed: int) -> Compute:
    """Draw a Gaussian vector with the norms of another."""

    def compute(work: Workspace, node: Artefact) -> Content:
        import torch

        from taskvec.vectors import random_like

        like = work.vector(node.inputs["like"])
        return Content(dict(random_like(like, torch.Generator().manual_seed(seed))), dict(like.metadata))

    return compute


def transforming(transform: Transform) -> Compute:
    """Apply a transform to one vector."""

    def compute(work: Workspace, node: Artefact) -> Content:
        vector, model = work.vector(node.inputs["vector"]), work.model(node.inputs["base"])
        changed = transform.transform(vector.to(work.device), model)
        return Content(dict(changed.to("cpu")), dict(vector.metadata))

    return compute


def curvature(task: str, settings: CurvatureSettings) -> Compute:
    """Estimate the curvature of the features on a task at theta_0."""

    def compute(work: Workspace, node: Artefact) -> Content:
        from taskvec.data.images import batches
        from taskvec.statistics.collect import curvature as collect

        base = node.inputs["base"]
        view = work.view(node.inputs[f"data/{task}"], node.inputs[f"head/{task}"])
        chosen = view.inputs[settings.choose(len(view)).to(view.inputs.device)]
        pieces = [chosen[rows] for rows in batches(len(chosen), 64)]
        layers = work.backbone(base).linear_layers()
        found = collect(work.model(base), pieces, layers, settings, head=view.head)
        tensors, header = found.to("cpu").pack()
        return Content(tensors, {"header": header, "base_hash": work.base_hash(base)})

    return compute


def _references(work: Workspace, node: Artefact, recipe: Recipe) -> dict[str, Reference]:
    """Return what a recipe asks to see of the other tasks."""
    from taskvec.training.recipe import Reference

    model, found = work.model(node.inputs["base"]), {}
    for name, child in node.inputs.items():
        kind, _, task = name.partition("/")
        if kind == "curvature":
            work.ensure(child)
            found[task] = Reference(model, curvature=partial(_curvature, work, child, recipe))
        elif kind == "other":
            found[task] = Reference(model, view=work.view(child, node.inputs[f"other_head/{task}"]))
    return found


def _curvature(work: Workspace, node: Artefact, recipe: Recipe) -> Curvature:
    import torch

    from taskvec.statistics.curvature import Curvature

    content = work.get(node)
    curvature = Curvature.unpack(content.tensors, content.meta["header"], recipe.curvature.record())
    return curvature.to(work.device, torch.float32)


def learned_head(task: str) -> Compute:
    """Take the head that was trained with a task's vector."""

    def compute(work: Workspace, node: Artefact) -> Content:
        from taskvec.training.fit import HEAD

        return Content({"head": work.get(node.inputs["vector"]).tensors[HEAD + task]})

    return compute


def answering(cell: Cell, merge: Merge | None, *, tangent: bool) -> Compute:
    """Answer a cell; without a merge the vectors are summed as they are, ``tangent`` linearises the model."""

    def compute(work: Workspace, node: Artefact) -> Content:
        from taskvec.merge.composition import Scaled
        from taskvec.protocols.evaluate import answer
        from taskvec.protocols.measures import COMPOSED, Merged
        from taskvec.protocols.question import Answer
        from taskvec.vectors import TaskVector

        base = node.inputs["base"]
        model = work.model(base)
        vectors = {}
        for index, (sign, ref) in enumerate(cell.vectors):
            vector = work.vector(node.inputs[f"vector/{index}"])
            if vector.metadata["base_hash"] != work.base_hash(base):
                raise UserError(f"vector {ref.label} was made from other base weights than the backbone's")
            vectors[ref.label] = (vector * sign).to(work.device)
        if cell.measure and cell.measure not in COMPOSED:
            return _measured(cell, model, vectors, work, node, tangent=tangent)
        plain = Scaled(model.parameters, sum(vectors.values(), TaskVector({})))
        composition = merge.compose(model.parameters, vectors) if merge and vectors else plain
        if cell.measure:
            merged = Merged(model, work.backbone(base), composition, cell, work.bf16)
            values, tensors = COMPOSED[cell.measure](merged)
            return Content(tensors, {"answer": Answer(values=values).model_dump(mode="json")})
        needs = {
            name: Answer.model_validate(work.get(node.inputs[f"needs/{name}"]).meta["answer"]) for name in cell.needs
        }

        def views(split: str) -> dict[str, Any]:
            return _views(cell, work, node, split)

        metrics = node.spec.get("metrics")
        result, outcomes = answer(
            cell, model, composition, views, needs, tangent=tangent, bf16=work.bf16, metrics=metrics
        )
        return Content(outcomes, {"answer": result.model_dump(mode="json")})

    return compute


def _views(cell: Cell, work: Workspace, node: Artefact, split: str) -> dict[str, Any]:
    return {t: work.view(node.inputs[f"data/{split}/{t}"], node.inputs.get(f"head/{t}")) for t in cell.tasks}


def _measured(
    cell: Cell, model: Any, vectors: Mapping[str, Any], work: Workspace, node: Artefact, *, tangent: bool
) -> Content:
    import torch

    from taskvec.protocols.measures import MEASURES, Subject
    from taskvec.protocols.question import REPORT, Answer

    subject = Subject(model, vectors, _views(cell, work, node, REPORT), cell.measure_settings, tangent)
    with torch.no_grad():
        values = MEASURES[cell.measure](subject)
    return Content({}, {"answer": Answer(values=values).model_dump(mode="json")})
