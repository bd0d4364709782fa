"""From a run's config to the graph of artefacts that answers it; nothing heavy is imported until one is computed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from taskvec import registry
from taskvec.config import Component
from taskvec.data.files import class_names, describe, locate, sha256
from taskvec.data.prompt import Prompt
from taskvec.data.rows import hub_class_names
from taskvec.data.tasks import Corpus, TextTask
from taskvec.protocols.question import REPORT, SELECTION, Cell, VectorRef
from taskvec.runner import stages, work
from taskvec.runner.artefact import Artefact, fingerprint
from taskvec.runner.compose import RunConfig

PACKAGE = Path(__file__).resolve().parent.parent


class Plan:
    """The artefacts of one run, each built once: base, images, heads, vectors, cells."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.tasks = config.suite.definitions
        self._built: dict[Any, Artefact] = {}

    @cached_property
    def questions(self) -> list[Cell]:
        """The cells the protocol asks for."""
        grid = self.config.protocol.grid or self.config.merge.default_grid
        return self.config.protocol.cells(self.config.suite, grid)

    @cached_property
    def cells(self) -> dict[str, Artefact]:
        """The artefact of each cell by name: the roots of the graph."""
        return {cell.name: self.cell(cell) for cell in self.questions}

    @cached_property
    def nodes(self) -> list[Artefact]:
        """Every artefact of the graph once, inputs before what needs them."""
        found = {node.fingerprint: node for root in self.cells.values() for node in root.walk()}
        return list(found.values())

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the run's answers: its question and everything below it."""
        answers = {name: node.fingerprint for name, node in self.cells.items()}
        return fingerprint({"protocol": component_spec("protocol", self.config.protocol), "cells": answers})

    def base(self) -> Artefact:
        """The pre-trained backbone: an identity, loaded when needed, never copied into the store."""
        spec, compute = component_spec("backbone", self.config.backbone), work.base(self.config.backbone)
        return self._once("base", lambda: Artefact("base", "base weights", spec, {}, compute))

    def data(self, task: str, split: str) -> Artefact:
        """A task's split as the backbone takes it: images decoded at its resolution, or texts as its tokens."""
        definition, kind = self.tasks[task], self.config.suite.modality

        def build() -> Artefact:
            preprocessing = self.config.backbone.preprocessing()
            if isinstance(definition, Corpus):
                examples = {"sha256": sha256(definition.location), "split": split, "column": definition.text}
            else:
                examples = describe(task, definition, split)
            spec = {"examples": examples, "preprocessing": preprocessing}
            if isinstance(definition, TextTask):
                spec["frame"] = definition.frame
            prompt = None
            if isinstance(definition, TextTask) and "label_words" in self.config.backbone.gives:
                prompt = self.prompts(task)
                spec["words"] = list(prompt.words)  # the prompt ends where they begin
            compute = work.decoding(task, definition, split, self.config.backbone, prompt)
            return Artefact(kind, f"{kind} {task}/{split}", spec, {}, compute)

        return self._once((kind, task, split), build)

    def head(self, task: str) -> Artefact:
        """A task's head: frozen, or for backbones that learn heads the one trained with the task's own vector."""

        def build() -> Artefact:
            if "learned_heads" not in self.config.backbone.gives:
                return self.initial_head(task)
            vector = self.vector(VectorRef((task,), transformed=False))
            return Artefact("head", f"head {task}", {"learned": task}, {"vector": vector}, work.learned_head(task))

        return self._once(("head", task), build)

    def initial_head(self, task: str) -> Artefact:
        """A task's head before fine-tuning."""

        def build() -> Artefact:
            prompt = self.prompts(task)
            spec = {"classes": list(prompt.words), "templates": list(prompt.templates), "before": prompt.before}
            compute = work.head(self.config.backbone, task, prompt)
            return Artefact("head", f"head {task}", spec, {"base": self.base()}, compute)

        return self._once(("initial head", task), build)

    def prompts(self, task: str) -> Prompt:
        """Return what a task's head is made from."""
        definition = self.tasks[task]
        if definition.folder is not None:
            names = class_names(task, definition, locate(task, definition, "test").path)
        else:
            names = definition.classes or hub_class_names(task, definition)
        return definition.prompts(names, learned="learned_heads" in self.config.backbone.gives)

    def vector(self, ref: VectorRef) -> Artefact:
        """The vector a protocol refers to, after the run's transforms unless it asks for the vector as fine-tuned."""
        node = self._once(ref, lambda: self._random(ref) if ref.source == "random" else self._trained(ref))
        for name, transform in self.config.transform.items() if ref.transformed else ():
            node = self._once((ref, name), lambda n=node, t=transform, m=name: self._transformed(n, m, t))
        return node

    def _trained(self, ref: VectorRef) -> Artefact:
        config = self.config
        ascend = ref.source == "ascent"
        spec = {
            "finetune": component_spec("finetune", config.finetune),
            "seed": config.seed,
            "precision": config.precision,
            "ascend": ascend,
        }
        inputs = {"base": self.base()}
        for task in ref.tasks:
            inputs |= {f"data/{task}": self.data(task, "train"), f"head/{task}": self.initial_head(task)}
        recipe = config.finetune
        others = [task for task in config.suite.tasks if task not in ref.tasks]
        if recipe.reference == "curvature":
            inputs |= {f"curvature/{task}": self.curvature(task) for task in others}
        elif recipe.reference == "data":
            for task in others:
                inputs |= {f"other/{task}": self.data(task, "train"), f"other_head/{task}": self.initial_head(task)}
        if len(ref.tasks) > 1:  # as many steps as the individual runs have together
            spec["steps_times"] = len(ref.tasks)
            recipe = recipe.model_copy(update={"steps": recipe.steps * len(ref.tasks)})
        compute = work.training(recipe, ref.tasks, seed=config.seed, ascend=ascend)
        return Artefact("vector", f"vector {ref.label}", spec, inputs, compute)

    def curvature(self, task: str) -> Artefact:
        """The curvature of the features on a task's training examples at theta_0."""

        def build() -> Artefact:
            settings = self.config.finetune.curvature
            inputs = {"base": self.base(), f"data/{task}": self.data(task, "train")}
            inputs |= {f"head/{task}": self.initial_head(task)}
            compute = work.curvature(task, settings)
            return Artefact("curvature", f"curvature {task}", {"settings": settings.record()}, inputs, compute)

        return self._once(("curvature", task), build)

    def _random(self, ref: VectorRef) -> Artefact:
        tuned = self.vector(VectorRef(ref.tasks, transformed=False))
        spec = {"random": "gaussian, norms of the tuned tensors", "seed": self.config.seed}
        compute = work.random_vector(self.config.seed)
        return Artefact("vector", f"vector {ref.label}", spec, {"like": tuned}, compute)

    def _transformed(self, vector: Artefact, name: str, transform: Component) -> Artefact:
        spec = {"transform": component_spec("transform", transform)}
        inputs = {"vector": vector, "base": self.base()}
        return Artefact("vector", f"{vector.label}, {name}", spec, inputs, work.transforming(transform))

    def cell(self, cell: Cell) -> Artefact:
        """A question's answer."""

        def build() -> Artefact:
            merge = component_spec("merge", self.config.merge) if cell.merge else "sum"
            spec = cell.settings() | {"merge": merge, "precision": self.config.precision}
            named = {task: getattr(self.tasks[task], "metric", "accuracy") for task in cell.tasks}
            metrics = {task: metric for task, metric in named.items() if metric != "accuracy"}
            spec |= {"metrics": metrics} if metrics else {}
            if self.config.protocol.generates:
                spec["code"] = component_spec("protocol", self.config.protocol)["code"]
            inputs = {"base": self.base()}
            inputs |= {f"vector/{i}": self.vector(ref) for i, (_, ref) in enumerate(cell.vectors)}
            splits = ([SELECTION] if cell.grid or cell.on_selection else []) + [REPORT]
            for task in cell.tasks:
                if not isinstance(self.tasks[task], Corpus):
                    inputs |= {f"head/{task}": self.head(task)}
                inputs |= {f"data/{split}/{task}": self.data(task, split) for split in splits}
            inputs |= {f"needs/{name}": self.cell(needed) for name, needed in cell.needs.items()}
            if self.config.protocol.post_hoc:
                spec["post_hoc"] = True
            tangent = self.config.protocol.post_hoc or self.config.finetune.forward_mode == "tangent"
            compute = work.answering(cell, self.config.merge if cell.merge else None, tangent=tangent)
            return Artefact("cell", f"cell {cell.name}", spec, inputs, compute)

        return self._once(("cell", cell.name), build)

    def _once(self, key: Any, build: Any) -> Artefact:
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]


def component_spec(group: str, component: Component) -> Mapping[str, Any]:
    """Return a component's settings with the version of its code (for a user's own file, the hash of the file)."""
    entry = registry.lookup(group, component.kind)
    if entry.source.is_relative_to(PACKAGE):
        code: Any = stages.version(f"{group}/{component.kind}")
    else:
        code = registry.source_hash(entry.source)
    return component.identity() | {"code": code}
