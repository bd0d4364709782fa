"""Coefficients without gradients: ask and tell of an optimiser of the nevergrad library (aTLAS, spec 6.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from taskvec.config import Config
from taskvec.errors import UserError

if TYPE_CHECKING:
    from taskvec.merge.learned.learning import Learner

LIBRARY = "nevergrad"


class Search(Config):
    """``budget`` evaluations of the loss by ``optimiser``, coefficients within [-bound, bound], from zero."""

    optimiser: str = "NGOpt"
    budget: int = Field(50, ge=1)
    bound: float = Field(1.5, gt=0)

    def check(self) -> None:
        """Check that the library is there.

        Raises:
            UserError: naming how to install it.
        """
        from importlib.util import find_spec

        if find_spec(LIBRARY) is None:
            raise UserError(
                "merge.search wants the nevergrad library; pip install 'taskvec[search]'"
            )


def search(learner: Learner, settings: Search, seed: int) -> list[dict[str, float]]:
    """Put the recommended coefficients into the learner's leaf and return the curve of losses.

    The loss is the mean over the batches of one epoch, the same at every evaluation.

    Raises:
        UserError: for an optimiser that the library does not have.
    """
    import nevergrad
    import torch

    leaf = learner.trained.coefficients
    start = torch.zeros(leaf.shape, dtype=torch.float64).numpy()
    space = nevergrad.p.Array(init=start).set_bounds(-settings.bound, settings.bound)
    space.random_state.seed(seed)
    known = nevergrad.optimizers.registry
    if settings.optimiser not in known:
        raise UserError(
            f"merge.search.optimiser: nevergrad has no {settings.optimiser!r}; NGOpt chooses by itself"
        )
    optimiser = known[settings.optimiser](space, budget=settings.budget)
    curve = []
    for step in range(1, settings.budget + 1):
        candidate = optimiser.ask()
        leaf.data.copy_(torch.as_tensor(candidate.value))
        loss = epoch_loss(learner)
        optimiser.tell(candidate, loss)
        curve.append({"step": step, "loss": loss})
        learner.given.observe(step, settings.budget, {"loss": loss})
    leaf.data.copy_(torch.as_tensor(optimiser.recommend().value))
    return curve


def epoch_loss(learner: Learner) -> float:
    """Return the mean loss over the micro-batches of the first epoch at the leaves' present values."""
    import torch

    total, examples = 0.0, 0
    with torch.no_grad():
        logits_of = learner.logits()
        state = learner.steps.epoch(logits_of, 0, 1, {})
        for step in range(learner.steps.per_epoch):
            for batch in learner.steps.at(step, state):
                loss = learner.steps.loss(logits_of, batch, state)
                total += loss.item() * batch.size
                examples += batch.size
    return total / examples
