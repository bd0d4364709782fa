"""What learned merges share: leaves trained on what the protocol grants, by its objective, and the epoch kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from taskvec.errors import UserError
from taskvec.merge.learned.steps import Joint, Together, Total
from taskvec.needs import Examples, Given
from taskvec.training.callbacks import END, Callback, Moment
from taskvec.training.loop import Group, Penalty, train
from taskvec.training.objectives.base import LogitsOf, State
from taskvec.training.schedule import Schedule
from taskvec.vectors import TaskVector, Tensors
from taskvec.vectors.composition import Composition, Scaled

Readout = Callable[[], Tensors]  # an adapter's tensors at their present values


class Trained(Protocol):
    """Leaves, and the model that they make."""

    leaves: Tensors

    def parameters(self) -> dict[str, Tensor]:
        """Return the weights that are not the base's, differentiable in the leaves."""

    def deltas(self) -> dict[str, Tensor]:
        """Return their differences to the base."""

    def vector(self) -> TaskVector:
        """Return the differences without a graph."""


class Learner:
    """Leaves that make a model, and what they are learned on: ``given.learning`` by ``given.objective``.

    Several tasks are seen side by side, ``schedule.batch_size`` examples of each a step, and their losses add up to
    ``total``. ``readouts`` are adapters that are learned along, by task.
    """

    def __init__(
        self,
        given: Given,
        trained: Trained,
        schedule: Schedule,
        seed: int,
        *,
        total: Total = "mean",
        readouts: Mapping[str, Readout] | None = None,
    ):
        self.given, self.trained, self.schedule = given, trained, schedule
        self.readouts = readouts or {}
        self.tangent = given.forward == "tangent"
        self.views = {examples.task: given[examples] for examples in given.learning.examples}
        self.objective = given.objective
        if self.objective.joint:
            self.steps = Joint(self.objective, self.views, schedule, seed)
        else:
            # The authors' epoch ends with the shortest loader where losses are summed (spec 6.3).
            span = "shortest" if total == "sum" else "longest"
            self.steps = Together(
                self.objective, self.views, schedule, seed, total=total, span=span
            )

        # An epoch of few examples sees them repeatedly.
        self.steps.per_epoch *= math.ceil(schedule.shortest_epoch / self.steps.per_epoch)

    def logits(self) -> LogitsOf:
        """Return the function (task, inputs) -> logits at the leaves' present values, composed once."""
        weights, direction = self._model()
        readouts = {task: readout() for task, readout in self.readouts.items()}

        def logits_of(task: str, inputs: Tensor) -> Tensor:
            head = self.views[task].head
            return self.given.evaluator.scores(inputs, head, weights, direction, readouts.get(task))

        return logits_of

    def states(self) -> LogitsOf:
        """Return the function (task, inputs) -> features [N, d] likewise."""
        weights, direction = self._model()

        def states_of(task: str, inputs: Tensor) -> Tensor:
            return self.given.evaluator.states(inputs, self.views[task].head, weights, direction)

        return states_of

    def _model(self) -> tuple[Tensors, Tensors | None]:
        """Return weights, or the direction along which the model is linearised."""
        if self.tangent:
            return {}, self.trained.deltas()
        return self.trained.parameters(), None

    def run(
        self,
        *,
        groups: Sequence[Group] | None = None,
        penalties: Sequence[Penalty] = (),
        after: Sequence[Callback] = (),
    ) -> list[dict[str, float]]:
        """Train the leaves, or ``groups`` of leaves, in place and return the curve."""

        def loss(batch: Any, state: State) -> Tensor:
            return self.steps.loss(self.logits(), batch, state)

        def epoch(number: int, epochs: int, state: State) -> State:
            return self.steps.epoch(self.logits(), number, epochs, state)

        chosen = groups or [Group(self.trained.leaves)]
        leaves = {name: leaf for group in chosen for name, leaf in group.leaves.items()}
        return train(
            chosen,
            loss,
            self.steps,
            self.schedule,
            epoch=epoch,
            penalties=penalties,
            after=[*self.objective.callbacks(leaves), *after],
            checkpoint=self.given.checkpoint,
            observe=self.given.observe,
        )

    def notes(self) -> dict[str, Tensor]:
        """Return what the objective keeps of its state at the learned model (pseudo-labels), as TASK/NAME."""
        total = self.schedule.total(self.steps.per_epoch)
        epochs = math.ceil(total / self.steps.per_epoch)
        kept: dict[str, Tensor] = {}
        if self.objective.joint:
            return kept
        with torch.no_grad():
            state = self.steps.epoch(self.logits(), epochs - 1, epochs, {})
        for task, own in state.items():
            for name, tensor in self.objective.notes(own).items():
                kept[f"{task}/{name}"] = tensor
        return kept

    def composition(self) -> Composition:
        """Return the model at the leaves' present values."""
        return Present(self)


class Present(Scaled):
    """The model of a learner as it is, with its readouts."""

    def __init__(self, learner: Learner):
        super().__init__(learner.given.model.parameters, learner.trained.vector())
        self.forward = learner.given.forward
        with torch.no_grad():
            self.readouts = {task: dict(readout()) for task, readout in learner.readouts.items()}

    def readout(self, task: str) -> Tensors:
        """Return the adapter's tensors."""
        return self.readouts.get(task, {})


class KeepBest:
    """Keeps the leaves of the epoch with the highest score; the start counts as one. They are put back by ``take``.

    ``judge`` returns a score, or None where the model is not admissible, which ends the training.
    """

    def __init__(self, leaves: Tensors, judge: Callable[[], float | None]):
        self.leaves, self.judge = leaves, judge
        self.best, self.epoch = self._copy(), 0
        self.scores = [judge()]  # of the start and of every epoch

    def __call__(self, moment: Moment) -> str | None:
        """Judge the model at the end of an epoch."""
        if not moment.ends_epoch:
            return None
        score = self.judge()
        if score is None:
            return END
        known = [other for other in self.scores if other is not None]
        if not known or score > max(known):
            self.best, self.epoch = self._copy(), math.ceil(moment.done / moment.per_epoch)
        self.scores.append(score)
        return None

    def take(self) -> None:
        """Put the best leaves back in place."""
        self._put(self.best)

    def state(self) -> dict[str, Any]:
        """Return the best leaves so far, their epoch, and the scores."""
        return {"best": self.best, "epoch": self.epoch, "scores": list(self.scores)}

    def load(self, state: State) -> None:
        """Take up a remembered state."""
        self.best, self.epoch = dict(state["best"]), state["epoch"]
        self.scores = list(state["scores"])

    def _copy(self) -> dict[str, Tensor]:
        return {name: leaf.detach().clone() for name, leaf in self.leaves.items()}

    def _put(self, values: Tensors) -> None:
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(values[name])


def judge_of(learner: Learner) -> Callable[[], float | None]:
    """Return the score of the learner's model on the validation examples that ``given.learning`` selects by.

    ``highest_accuracy`` and ``highest_normalised``: the mean accuracy, or that divided by the individual models'.
    ``lowest_target``: the negative accuracy of the first task while the second, the control, keeps its share of the
    zero-shot accuracy.

    Raises:
        UserError: for another rule.
    """
    learning, answers = learner.given.learning, learner.given.answers
    rule, needs = learning.select, learning.selection
    if rule.kind == "lowest_target":
        target, control = needs
        bound = rule.control_threshold * answers["zero_shot"].selection[0.0][control.task]

        def forgotten() -> float | None:
            found = accuracies(learner, needs)
            return -found[target.task] if found[control.task] >= bound else None

        return forgotten
    if rule.kind not in {"highest_accuracy", "highest_normalised"}:
        raise UserError(
            f"a learned merge cannot choose its epoch by {rule.kind}; set merge.select=last"
        )
    denominators = dict.fromkeys((need.task for need in needs), 1.0)
    if rule.kind == "highest_normalised":
        denominators = {
            task: answers[f"individual/{task}"].selection[1.0][task] for task in denominators
        }

    def learned() -> float:
        found = accuracies(learner, needs)
        ratios = [found[task] / denominators[task] for task in found]
        return sum(ratios) / len(ratios)

    return learned


def accuracies(learner: Learner, needs: Sequence[Examples]) -> dict[str, float]:
    """Return the share of examples that the learner's model predicts as labelled, by task."""
    outcomes, _ = learner.given.evaluator.predictions(learner.composition(), needs, [1.0])
    found = {}
    for need in needs:
        predicted = outcomes[1.0][need]
        labels = learner.given[need].labels().cpu()
        found[need.task] = (predicted == labels).double().mean().item()
    return found
