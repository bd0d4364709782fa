"""EMR: elect one vector, mask and rescale it for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from taskvec.merge.base import AS_IT_IS, Convention, Merge, names_of
from taskvec.merge.piece import Piece
from taskvec.needs import Given, Signed
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.masks.compositions import Mask
    from taskvec.vectors import Tensors
    from taskvec.vectors.composition import Composition


@register("merge", "emr", paper="Huang et al., NeurIPS 2024, arXiv 2405.17461, section 3")
class Emr(Merge):
    """theta_0 + lambda_t M_t * tau for task t, one vector, a bit per entry and a number for each task.

        g = +1 where sum_t tau_t > 0, else -1      M_t = (tau_t * g > 0)      tau = g max_t |tau_t * M_t|
        lambda_t = sum over tensors of mean |tau_t| / sum over tensors of mean |tau * M_t|

    The sums are of each tensor's mean, not of all entries. No hyper-parameters: alpha is 1.
    """

    kind: Literal["emr"] = "emr"

    grid = AS_IT_IS
    models = "per_task"
    conventions = (Convention("the authors' code, FusionBench, PAVE's code", ""),)

    def compose(self, base: Tensors, vectors: Sequence[Signed], given: Given) -> Composition:
        """Return a model for each task."""
        from taskvec.merge.masks.compositions import Masked
        from taskvec.merge.pieces import merge_parameter
        from taskvec.vectors import TaskVector

        deltas = self.checked(vectors)
        unified = {
            name: merge_parameter(unify, "entry", name, base, deltas) for name in names_of(deltas)
        }
        masks = {}
        for signed, own in zip(vectors, deltas, strict=True):
            mask = _mask(own, unified)
            masks |= dict.fromkeys(signed.tasks, mask)
        return Masked(base, TaskVector(unified), masks)

    def restore(self, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Composition:
        """Return a stored composition again."""
        from taskvec.merge.masks.compositions import Masked

        return Masked.unpack(base, tensors, meta)


def _mask(own: Tensors, unified: Tensors) -> Mask:
    """Return where a vector agrees with the unified one, and the factor that restores its magnitude."""
    from taskvec.merge.masks.bits import packed
    from taskvec.merge.masks.compositions import Mask, agreeing

    bits = {}
    whole = kept = 0.0
    for name, delta in own.items():
        mask = agreeing(delta, unified[name])
        bits[name] = packed(mask)
        whole += mean_magnitude(delta)
        kept += mean_magnitude(unified[name] * mask)
    scale = whole / kept if kept else 0.0
    return Mask(bits, scale)


def unify(piece: Piece) -> Tensor:
    """Return g * max_t |tau_t * M_t|: the largest magnitude among those that have the sign of the sum."""
    import torch

    from taskvec.merge.scheme.consensus import signs, summed

    sign = signs(summed(piece.parts), zero=-1)
    largest = torch.zeros_like(sign)
    for part in piece.parts:
        kept = (part * sign).clamp_(min=0)
        torch.maximum(largest, kept, out=largest)
    return largest.mul_(sign)


def mean_magnitude(tensor: Tensor) -> float:
    """Return mean |x| in float64; 0 of an empty tensor."""
    if not tensor.numel():
        return 0.0
    magnitudes = tensor.abs().double()
    return float(magnitudes.mean())
