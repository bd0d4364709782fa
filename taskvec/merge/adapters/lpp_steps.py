"""The start and the steps of LP++ (Huang et al., CVPR 2024; spec 6.5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec.merge.adapters.base import Shots
from taskvec.training.readouts import SCALE, read_out

BLEND = 250.0  # of the start of alpha, the authors' constant


class Blend(NamedTuple):
    """W [C, d], b [C] and alpha [C]."""

    linear: Tensor
    bias: Tensor
    mix: Tensor


class StepSizes(NamedTuple):
    """The step of W and b, and that of alpha."""

    linear: float
    mix: float


def start(shots: Shots) -> Blend:
    """Return W_c = the sum of class c's features, b = 0, alpha = mean_c 250 (mean similarity of c with its text)."""
    one_hot = shots.one_hot()
    sums = one_hot.T @ shots.features
    similarities = shots.logits / SCALE
    own = (similarities * one_hot).sum(0) / one_hot.sum(0).clamp_min(1)
    blend = (BLEND * own).mean()
    return Blend(sums, torch.zeros_like(own), blend.expand_as(own).clone())


def step_sizes(shots: Shots) -> StepSizes:
    """Return 4N / lambda_max(F^T F) and N / (4 max_c sum_n (f_n t_c)^2) over the augmented examples."""
    features = shots.augmented
    count = len(features)
    largest = torch.linalg.eigvalsh(features.T @ features)[-1]
    similarities = shots.augmented_logits / SCALE
    widest = similarities.square().sum(0).max()
    return StepSizes(4 * count / largest.item(), count / (4 * widest.item()))


def train(begun: Blend, shots: Shots, *, steps: int, momentum: float, alternate: int) -> Blend:
    """Return the blend after full-batch steps of SGD with momentum on the mean cross-entropy."""
    leaves = Blend(*(leaf.clone().requires_grad_() for leaf in begun))
    sizes, classes = step_sizes(shots), shots.repeated
    often = torch.optim.SGD([leaves.linear, leaves.bias], lr=sizes.linear, momentum=momentum)
    seldom = torch.optim.SGD([leaves.mix], lr=sizes.mix, momentum=momentum)
    for step in range(steps):
        often.zero_grad()
        seldom.zero_grad()
        logits = read_out(leaves._asdict(), shots.augmented, shots.augmented_logits)
        F.cross_entropy(logits, classes).backward()
        often.step()
        if step % alternate == 0:
            seldom.step()
    return Blend(*(leaf.detach() for leaf in leaves))
