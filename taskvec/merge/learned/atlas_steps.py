"""The steps of aTLAS: blocks, vectors within the budget, training, adapters, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskvec.merge.learned import choosing
from taskvec.merge.learned.adapted import Jointly, detached, fitted
from taskvec.merge.learned.bases import RandomBasis
from taskvec.merge.learned.composition import Learned, record
from taskvec.merge.learned.learning import KeepBest, Learner, judge_of
from taskvec.merge.learned.pictures import pictures
from taskvec.merge.learned.search import search
from taskvec.models.layers import LinearLayer
from taskvec.needs import Examples, Given, Signed, label_of
from taskvec.training.blocks import Blocks, blocks, divided, joined
from taskvec.training.coefficients import Coefficients
from taskvec.training.factor_coefficients import FactorCoefficients
from taskvec.training.loop import Group

if TYPE_CHECKING:
    from taskvec.merge.learned.atlas import Atlas

FUSED = (".q", ".k", ".v")  # ends of the roles that the authors' models pack into one tensor
ROWS = 500  # of a batch of features

Chosen = tuple[list[Mapping[str, Tensor]], list[str], dict[str, Any]]  # vectors, labels, what to report


def learn(merge: Atlas, base: Mapping[str, Tensor], vectors: Sequence[Signed], given: Given) -> Learned:
    """Return the composition that is learned on ``given.learning``."""
    seed = merge.seed_of(given)
    if merge.lora == "factor":
        trained, labels, report = _factors(merge, base, vectors, seed)
    else:
        cut = blocks_of(merge, base, given.model.layers, seed)
        deltas, labels, report = chosen(merge, base, vectors, given, cut)
        trained = Coefficients(base, deltas, cut, half=merge.faithful)
    learner, jointly = _learner(merge, trained, given, seed)
    report |= _train(merge, learner, jointly, seed)
    readouts = detached(jointly.readouts()) if jointly else {}
    if merge.adapter and not jointly:
        readouts = fitted(merge.adapter, learner, seed)
    coefficients = trained.coefficients.detach()
    report |= {"figures": pictures(labels, coefficients, trained.blocks, given.model.layers)}
    return Learned(
        base,
        trained.vector(),
        coefficients,
        record(base, vectors, trained.blocks) | {"rows": labels},
        readouts=readouts,
        notes=learner.notes(),
        report=report,
    )


def _train(merge: Atlas, learner: Learner, jointly: Jointly | None, seed: int) -> dict[str, Any]:
    """Move the leaves to where they stay, and return what to report of it."""
    if merge.search:
        return {"curve": search(learner, merge.search, seed)}
    keeper = _keeper(learner, jointly)
    curve = learner.run(
        groups=_groups(merge, learner.trained, jointly),
        penalties=_penalties(merge, learner.trained.coefficients),
        after=[keeper] if keeper else [],
    )
    if not keeper:
        return {"curve": curve}
    keeper.take()
    return {"curve": curve, "epoch": keeper.epoch, "validation": keeper.scores}


def blocks_of(merge: Atlas, base: Mapping[str, Tensor], layers: Sequence[LinearLayer], seed: int) -> Blocks:
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


def chosen(merge: Atlas, base: Mapping[str, Tensor], vectors: Sequence[Signed], given: Given, cut: Blocks) -> Chosen:
    """Return the vectors that coefficients are learned for, their labels, and what the choice was."""
    seed = merge.seed_of(given)
    if merge.random_bases:
        count = merge.random_bases
        deltas: list[Mapping[str, Tensor]] = [RandomBasis(base, number, seed) for number in range(count)]
        labels = [f"random {number}" for number in range(count)]
    else:
        deltas = merge.checked(vectors)
        labels = [label_of(signed.expression) for signed in vectors]
    if merge.budget is None or merge.budget >= len(deltas):
        return deltas, labels, {}
    if merge.choose == "gradient_blockwise":
        ranks = choosing.block_ranks(_slopes(merge, deltas, given, cut), merge.budget)
        mixed: list[Mapping[str, Tensor]] = [choosing.Mixed(deltas, cut, rank) for rank in ranks]
        shares = torch.stack([(ranks == number).double().mean() for number in range(len(deltas))])
        share = dict(zip(labels, shares.tolist(), strict=True))
        return mixed, [f"rank {number + 1}" for number in range(merge.budget)], {"share_of_blocks": share}
    places = _whole(merge, vectors, deltas, given, cut)
    picked = [labels[place] for place in places]
    return [deltas[place] for place in places], picked, {"chosen": picked}


def _whole(
    merge: Atlas, vectors: Sequence[Signed], deltas: Sequence[Mapping[str, Tensor]], given: Given, cut: Blocks
) -> list[int]:
    """Return the positions of the vectors that are chosen as a whole."""
    if merge.choose == "random":
        return choosing.at_random(len(deltas), merge.budget, merge.seed_of(given))
    if merge.choose == "gradient":
        return choosing.by_slope(_slopes(merge, deltas, given, cut), merge.budget)
    target = torch.stack([_mean_features(given, examples) for examples in given.learning.examples]).mean(0)
    sources = []
    for signed in vectors:
        own = [_mean_features(given, Examples(task, "train", "calibration")) for task in signed.tasks]
        sources.append(torch.stack(own).mean(0))
    return choosing.by_features(target, sources, merge.budget)


@torch.no_grad()
def _mean_features(given: Given, need: Examples) -> Tensor:
    """Return the mean zero-shot feature [d] of examples."""
    parts = []
    for rows in given[need].batches(ROWS):
        parts.append(given.evaluator.features({}, need, rows))
    return torch.cat(parts).mean(0)


def _slopes(merge: Atlas, deltas: Sequence[Mapping[str, Tensor]], given: Given, cut: Blocks) -> Tensor:
    """Return the gradient at coefficients zero [n, m], summed over the tasks that are learned on."""
    total = torch.zeros(len(deltas), cut.count, dtype=torch.float64)
    for need in merge.gradients(given.scope):
        total += choosing.slopes(given[need].mean, deltas, cut)
    return total


def _factors(
    merge: Atlas, base: Mapping[str, Tensor], vectors: Sequence[Signed], seed: int
) -> tuple[FactorCoefficients, list[str], dict[str, Any]]:
    merge.checked(vectors)
    trained = FactorCoefficients(base, [signed.vector for signed in vectors], seed)
    return trained, [label_of(signed.expression) for signed in vectors], {}


def _learner(
    merge: Atlas, trained: Coefficients | FactorCoefficients, given: Given, seed: int
) -> tuple[Learner, Jointly | None]:
    """Return the learner, and the adapter that is trained along."""
    learner = Learner(given, trained, merge.schedule, seed, total="sum")
    if not merge.adapter or not merge.adapter.joint:
        return learner, None
    jointly = Jointly(merge.adapter, learner, seed)
    learner.readouts = jointly.readouts()
    return learner, jointly


def _groups(merge: Atlas, trained: Any, jointly: Jointly | None) -> list[Group]:
    groups = [Group(trained.leaves)]
    return groups + jointly.groups(merge.schedule.lr) if jointly else groups


def _keeper(learner: Learner, jointly: Jointly | None) -> KeepBest | None:
    """Return what keeps the best epoch, None where the last one is kept."""
    if learner.given.learning.select is None:
        return None
    leaves = dict(learner.trained.leaves) | (jointly.named() if jointly else {})
    return KeepBest(leaves, judge_of(learner))


def _penalties(merge: Atlas, coefficients: Tensor) -> list[Callable[[int], Tensor]]:
    """Return gamma * mean_j ||(lambda_1^(j) ... lambda_n^(j))||_p, where gamma is not zero."""
    if not merge.penalty:
        return []

    def penalty(step: int) -> Tensor:
        return merge.penalty * coefficients.norm(merge.penalty_norm, dim=0).mean()

    return [penalty]
