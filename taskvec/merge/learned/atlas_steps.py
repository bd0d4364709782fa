"""The steps of aTLAS: blocks, vectors within the budget, training, adapters, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from taskvec.merge.learned.adapted import Jointly, detached, fitted
from taskvec.merge.learned.budget import chosen
from taskvec.merge.learned.composition import Learned, record
from taskvec.merge.learned.learning import KeepBest, Learner, judge_of
from taskvec.merge.learned.pictures import pictures
from taskvec.merge.learned.search import search
from taskvec.models.layers import LinearLayer
from taskvec.needs import Given, Signed, label_of
from taskvec.training.blocks import Blocks, blocks, divided, joined
from taskvec.training.coefficients import Coefficients
from taskvec.training.factor_coefficients import FactorCoefficients
from taskvec.training.loop import Group
from taskvec.vectors import Tensors

FUSED = (".q", ".k", ".v")  # ends of the roles that the authors' models pack into one tensor

Leaves = Coefficients | FactorCoefficients


def learn(merge: Any, base: Tensors, vectors: Sequence[Signed], given: Given) -> Learned:
    """Return the composition that is learned on ``given.learning``."""
    seed = merge.seed_of(given)
    trained, labels, report = parameterised(merge, base, vectors, given)
    learner = Learner(given, trained, merge.schedule, seed, total="sum")
    jointly = None
    if merge.adapter and merge.adapter.joint:
        jointly = Jointly(merge.adapter, learner, seed)
        learner.readouts = jointly.readouts()
    report |= _train(merge, learner, jointly, seed)
    coefficients = trained.coefficients.detach()
    report["figures"] = pictures(labels, coefficients, trained.blocks, given.model.layers)
    meta = record(base, vectors, trained.blocks)
    meta["rows"] = labels
    return Learned(
        base,
        trained.vector(),
        coefficients,
        meta,
        readouts=_readouts(merge, learner, jointly, seed),
        notes=learner.notes(),
        report=report,
    )


def parameterised(
    merge: Any, base: Tensors, vectors: Sequence[Signed], given: Given
) -> tuple[Leaves, Sequence[str], dict[str, Any]]:
    """Return the coefficients as leaves, the labels of their rows, and what to report of the choice of vectors."""
    seed = merge.seed_of(given)
    if merge.lora == "factor":
        merge.checked(vectors)
        products = [signed.vector for signed in vectors]
        labels = [label_of(signed.expression) for signed in vectors]
        return FactorCoefficients(base, products, seed), labels, {}
    cut = blocks_of(merge, base, given.model.layers, seed)
    found = chosen(merge, base, vectors, given, cut)
    trained = Coefficients(base, found.deltas, cut, half=merge.faithful)
    return trained, found.labels, dict(found.report)


def blocks_of(merge: Any, base: Tensors, layers: Sequence[LinearLayer], seed: int) -> Blocks:
    """Return the blocks of a merge's settings."""
    shapes = {name: tensor.shape for name, tensor in base.items()}
    found = blocks(merge.by, shapes, matrices=merge.matrices)
    if merge.by == "tensor" and merge.qkv == "joint":
        found = joined(found, packed(layers))
    if merge.parts > 1:
        found = divided(found, merge.parts, seed, by_shape=merge.share_parts)
    return found


def packed(layers: Sequence[LinearLayer]) -> dict[str, str]:
    """Return for each parameter of q, k and v layers the name of what the authors' models pack it into."""
    groups = {}
    for layer in layers:
        if not layer.role.endswith(FUSED):
            continue
        attention = layer.name.rsplit(".", 1)[0]
        for kind in ("weight", "bias"):
            groups[f"{layer.name}.{kind}"] = f"{attention}.qkv.{kind}"
    return groups


def _train(merge: Any, learner: Learner, jointly: Jointly | None, seed: int) -> dict[str, Any]:
    """Move the leaves to where they stay, and return what to report of it."""
    if merge.search:
        return {"curve": search(learner, merge.search, seed)}
    groups = [Group(learner.trained.leaves)]
    if jointly:
        groups += jointly.groups(merge.schedule.lr)
    keeper = _keeper(learner, jointly)
    after = [keeper] if keeper else []
    penalties = _penalties(merge, learner.trained.coefficients)
    curve = learner.run(groups=groups, penalties=penalties, after=after)
    if not keeper:
        return {"curve": curve}
    keeper.take()
    return {"curve": curve, "epoch": keeper.epoch, "validation": keeper.scores}


def _readouts(
    merge: Any, learner: Learner, jointly: Jointly | None, seed: int
) -> dict[str, dict[str, Tensor]]:
    """Return the adapter's tensors by task: those that were trained along, or else fitted to the learned model."""
    if jointly:
        return detached(jointly.readouts())
    return fitted(merge.adapter, learner, seed) if merge.adapter else {}


def _keeper(learner: Learner, jointly: Jointly | None) -> KeepBest | None:
    """Return what keeps the best epoch, None where the last one is kept."""
    if learner.given.learning.select is None:
        return None
    leaves = dict(learner.trained.leaves)
    if jointly:
        leaves |= jointly.named()
    return KeepBest(leaves, judge_of(learner))


def _penalties(merge: Any, coefficients: Tensor) -> list[Callable[[int], Tensor]]:
    """Return gamma * mean_j ||(lambda_1^(j) ... lambda_n^(j))||_p, where gamma is not zero."""
    if not merge.penalty:
        return []

    def penalty(step: int) -> Tensor:
        sizes = coefficients.norm(merge.penalty_norm, dim=0)
        return merge.penalty * sizes.mean()

    return [penalty]
