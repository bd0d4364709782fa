"""EMR: elect one vector, mask and rescale it for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from taskvec.merge.base import AS_IT_IS, Convention, Merge, names_of
from taskvec.merge.piece import Deltas, Tensors
from taskvec.needs import Given, Signed
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

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
        from taskvec.merge.masks.bits import packed
        from taskvec.merge.masks.compositions import Mask, Masked, mask_of
        from taskvec.vectors import TaskVector

        deltas = self.checked(vectors)
        unified = TaskVector({name: _unified(base, deltas, name) for name in names_of(deltas)})
        masks = {}
        for signed, own in zip(vectors, deltas, strict=True):
            bits, whole, kept = {}, 0.0, 0.0
            for name in own:
                mask = mask_of(own[name], unified[name])
                bits[name] = packed(mask)
                whole += mean_magnitude(own[name])
                kept += mean_magnitude(unified[name] * mask)
            scale = whole / kept if kept else 0.0
            masks |= {task: Mask(bits, scale) for task in signed.tasks}
        return Masked(base, unified, masks)

    def restore(self, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Composition:
        """Return a stored composition again."""
        from taskvec.merge.masks.compositions import Masked

        return Masked.unpack(base, tensors, meta)


def _unified(base: Tensors, deltas: Deltas, name: str) -> Tensor:
    import torch

    from taskvec.merge.pieces import promoted, read_together

    present = [delta[name] for delta in deltas if name in delta]
    out = torch.empty(base[name].shape, dtype=promoted([part.dtype for part in present]), device=present[0].device)
    flat = out.view(-1)
    for piece in read_together(base, deltas, name):
        found = unify([delta for _, delta in piece.present])
        flat[piece.start : piece.start + found.numel()] = found.to(out.dtype)
    return out


def unify(parts: Sequence[Tensor]) -> Tensor:
    """Return g * max_t |tau_t * M_t|: the largest magnitude among those that have the sign of the sum."""
    import torch

    from taskvec.merge.scheme.consensus import weighted_sum

    total = weighted_sum(parts, (1.0,) * len(parts))
    sign = (total > 0).to(total.dtype).mul_(2).sub_(1)
    largest = torch.zeros_like(total)
    for part in parts:
        agreeing = (part * sign).clamp_(min=0)
        torch.maximum(largest, agreeing, out=largest)
    return largest.mul_(sign)


def mean_magnitude(tensor: Tensor) -> float:
    """Return mean |x| in float64; 0 of an empty tensor."""
    if not tensor.numel():
        return 0.0
    return float(tensor.abs().double().mean())
