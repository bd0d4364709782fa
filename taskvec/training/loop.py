"""The training loop: one function for every parameterisation, objective, penalty and optimiser."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.errors import NotFinite
from taskvec.needs import Checkpointed, Observe
from taskvec.training.callbacks import FORGET, Callback, Moment, State
from taskvec.training.finite import broken
from taskvec.training.objectives.base import MicroBatch, Steps
from taskvec.training.schedule import Schedule
from taskvec.training.sharpness import SharpnessAware
from taskvec.vectors import Tensors

log = logging.getLogger(__name__)

POINTS = 50  # of a curve, about
REMEDY = "lower the learning rate"

Loss = Callable[[Any, State], Tensor]  # of a micro-batch, given the objective's state
Penalty = Callable[[int], Tensor]  # of a step


@dataclass(frozen=True)
class Group:
    """Leaf tensors by name that are trained together: ``factor`` times the schedule's rate, and their weight decay.

    ``weight_decay`` None takes the schedule's.
    """

    leaves: Tensors
    factor: float = 1.0
    weight_decay: float | None = None


def train(
    groups: Sequence[Group],
    loss: Loss,
    steps: Steps,
    schedule: Schedule,
    *,
    epoch: Callable[[int, int, State], State] | None = None,
    penalties: Sequence[Penalty] = (),
    after: Sequence[Callback] = (),
    checkpoint: Checkpointed | None = None,
    observe: Observe | None = None,
) -> list[dict[str, float]]:
    """Minimise the mean of ``loss`` over each step's micro-batches plus the penalties, and return the curve.

    The optimiser changes the groups' leaves in place; how they enter the model is the business of ``loss``. ``epoch``
    makes the objective's state before epoch e of E, given the state so far. A run resumed from ``checkpoint``
    continues exactly as the interrupted one would have.

    Raises:
        NotFinite: naming the step if loss or gradient is not finite, or the leaf that is not.
    """
    total = schedule.total(steps.per_epoch)
    epochs = math.ceil(total / steps.per_epoch)
    interval = max(1, total // POINTS)
    run = _Run(groups, schedule, after)
    run.restore(checkpoint)
    slope = _Slope(run, loss, penalties, schedule.clip_norm)
    while run.done < total and not run.ended:
        step = run.done
        if epoch and step % steps.per_epoch == 0:
            with torch.no_grad():
                run.state = epoch(step // steps.per_epoch, epochs, run.state)
        rate = schedule.rate(step, total)
        run.set_rate(rate)
        slope.begin(step, steps.at(step, run.state))
        run.optimiser.step(slope)
        run.done = step + 1
        run.watch(slope)
        run.tell(Moment(run.done, total, steps.per_epoch, slope.loss, slope.moved))
        # Reading a loss waits for the device
        if run.done % interval == 0 or run.done == total or run.ended:
            run.check()
            point = {
                "step": run.done,
                "loss": slope.loss.item(),
                "grad_norm": slope.norm.item(),
                "lr": rate,
            }
            run.curve.append(point)
            if observe:
                observe(run.done, total, point)
        if checkpoint:
            checkpoint.save_if_due(run.pack)
    return run.curve


class _Slope:
    """The loss of a step and its clipped gradient, for an optimiser that may ask again at moved weights.

    ``loss`` and ``norm`` are those at the weights the step starts from, ``moved`` the loss when it was asked last.
    """

    def __init__(
        self, run: _Run, loss: Loss, penalties: Sequence[Penalty], clip_norm: float | None
    ):
        self.run, self.of, self.penalties = run, loss, penalties
        self.limit = math.inf if clip_norm is None else clip_norm

    def begin(self, step: int, batches: Sequence[MicroBatch]) -> None:
        """Turn to the micro-batches of a step."""
        self.step, self.batches = step, batches
        self.loss: Tensor | None = None
        self.norm: Tensor | None = None

    def __call__(self) -> Tensor:
        """Compute the leaves' gradients and return the mean loss over the micro-batches (0-d float32)."""
        leaves = list(self.run.leaves.values())
        self.run.optimiser.zero_grad()
        examples = sum(batch.size for batch in self.batches)
        mean = torch.zeros((), device=leaves[0].device)
        for batch in self.batches:
            part = self.of(batch, self.run.state) * (batch.size / examples)
            part.backward()
            mean += part.detach()
        for penalty in self.penalties:
            penalty(self.step).backward()
        norm = nn.utils.clip_grad_norm_(leaves, self.limit)
        self.moved = mean
        if self.loss is None:
            self.loss, self.norm = mean, norm
        return mean


@dataclass
class _Run:
    """What changes while training, all of which a checkpoint holds."""

    groups: Sequence[Group]
    schedule: Schedule
    after: Sequence[Callback]
    done: int = 0
    ended: bool = False
    state: State = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.leaves = {name: leaf for group in self.groups for name, leaf in group.leaves.items()}
        self.optimiser = optimiser(self.groups, self.schedule)
        device = next(iter(self.leaves.values())).device
        # First step with a broken loss, gradient
        self.failed = torch.zeros(2, dtype=torch.long, device=device)

    def set_rate(self, rate: float) -> None:
        """Give each group its factor of a rate."""
        for group, settings in zip(self.groups, self.optimiser.param_groups, strict=True):
            settings["lr"] = rate * group.factor

    def tell(self, moment: Moment) -> None:
        """Let every callback look; any of them may end the training."""
        for callback in self.after:
            verdict = callback(moment)
            if verdict == FORGET:
                self.optimiser.state.clear()
            elif verdict:
                self.ended = True

    def watch(self, slope: _Slope) -> None:
        """Note a loss or gradient that is not finite, without waiting for the device."""
        values = torch.stack([slope.loss.isfinite(), slope.norm.isfinite()])
        fine = values | (self.failed > 0)
        self.failed = torch.where(fine, self.failed, self.done)

    def check(self) -> None:
        """Check all losses, gradients and leaves so far.

        Raises:
            NotFinite: naming what is not finite first.
        """
        for what, step in zip(("training loss", "gradient"), self.failed.tolist(), strict=True):
            if step:
                raise NotFinite(f"the {what} is not finite at step {step}; {REMEDY}")
        name = broken(self.leaves)
        if name:
            raise NotFinite(f"{name} is not finite after step {self.done} of training; {REMEDY}")

    def pack(self) -> dict[str, Any]:
        """Return everything a resumed training needs."""
        self.check()
        moments = self.optimiser.state_dict()["state"]
        callbacks = {str(number): callback.state() for number, callback in enumerate(self.after)}
        return {
            "done": self.done,
            "ended": self.ended,
            "curve": self.curve,
            "leaves": self.leaves,
            "optimiser": {str(number): held for number, held in moments.items()},
            "objective": self.state,
            "callbacks": callbacks,
        }

    def restore(self, checkpoint: Checkpointed | None) -> None:
        """Take up the state of a checkpoint; one of other leaves is not taken, with a warning."""
        saved = checkpoint.restore() if checkpoint else None
        if saved is None:
            return
        shapes = {name: leaf.shape for name, leaf in saved["leaves"].items()}
        if shapes != {name: leaf.shape for name, leaf in self.leaves.items()}:
            log.warning("the checkpoint is one of other parameters; training starts again")
            return
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(saved["leaves"][name])
        moments = {int(number): held for number, held in saved["optimiser"].items()}
        settings = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": settings})
        for number, callback in enumerate(self.after):
            callback.load(saved["callbacks"][str(number)])
        self.done, self.ended = saved["done"], saved["ended"]
        self.state, self.curve = saved["objective"], list(saved["curve"])
        log.info("training resumes at step %d", self.done)


def optimiser(groups: Sequence[Group], schedule: Schedule) -> torch.optim.Optimizer:
    """Return the schedule's optimiser over the leaves of the groups."""
    settings = []
    for group in groups:
        decay = schedule.weight_decay if group.weight_decay is None else group.weight_decay
        settings.append({"params": list(group.leaves.values()), "weight_decay": decay})
    if schedule.optimiser == "sgd":
        chosen = torch.optim.SGD(settings, lr=schedule.lr, momentum=schedule.momentum)
    else:
        chosen = torch.optim.AdamW(
            settings, lr=schedule.lr, betas=tuple(schedule.betas), eps=schedule.eps
        )
    return SharpnessAware(chosen, schedule.radius) if schedule.radius else chosen
